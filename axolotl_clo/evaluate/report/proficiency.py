"""One number for a language: target proficiency, or English retention.

Proficiency is defined in `axolotl_clo/evaluate/aggregates.py`: the mean accuracy on Belebele and MMMLU (MMLU in
English), or for runs without them the mean of two scores of the offline set. Where a run has neither, it is the mean of
one accuracy-like score of each task of the language that all runs share; a mean over other tasks would be another
number, so tasks that a run lacks do not count. English retention is proficiency in English divided by that of the base
model.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from axolotl_clo.evaluate import aggregates
from axolotl_clo.evaluate.report.names import language_name, score_name
from axolotl_clo.evaluate.report.noise import standard_error
from axolotl_clo.evaluate.report.runs import SHARES, SOURCE, Run, Score, ScoreKey

OFFLINE = re.compile(r"^axolotl_clo_[a-z]+_(fidelity|preference|bits_per_byte|echoes)$")


@dataclass(frozen=True)
class Proficiency:
    """The number of each run in one language.

    Attributes:
        keys: the scores it is the mean of.
        scores: by the name of the run; a run that lacks one of them has none.
        notes: what was left out, and how to let it in.
        base: name of the run that English is divided by.
    """

    language: str
    keys: tuple[ScoreKey, ...]
    scores: Mapping[str, Score]
    notes: tuple[str, ...]
    base: str | None = None

    @property
    def title(self) -> str:
        return "English retention" if self.language == SOURCE else f"{language_name(self.language)} proficiency"

    @property
    def definition(self) -> str:
        if not self.keys:
            return f"{self.title}: none, as the runs have no accuracy-like score of the language."
        what = "on the held-out starter rows" if OFFLINE.match(self.keys[0].task) else "benchmarks"
        names = [score_name(key) for key in self.keys]
        mean = f"the mean of {len(names)} scores of equal weight ({what}), which are {'; '.join(names)}"
        said = mean if len(names) > 1 else f"{names[0]} ({what})"
        return f"{self.title}: {said}{f', divided by that of {self.base}' if self.base else ''}."


def proficiency(runs: Sequence[Run], language: str) -> Proficiency:
    """The number of a language over the runs that have scores in it."""
    scored = [run for run in runs if language in run.languages]
    of_runs = [_main_scores(run, language) for run in scored]
    everything = sorted({key for keys in of_runs for key in keys})
    keys: tuple[ScoreKey, ...] = ()
    complete = False
    bases: tuple[aggregates.Basis, ...] = ("benchmarks", "offline")
    for basis in bases:
        if not keys:
            keys = _defined(scored, language, basis)
            complete = bool(keys)
        of_kind = [key for key in everything if bool(OFFLINE.match(key.task)) == (basis == "offline")]
        keys = keys or tuple(key for key in of_kind if all(key in own for own in of_runs))
    if not keys and everything:  # nothing is shared: the tasks of most runs, no number for the others
        sets = [tuple(sorted(own)) for own in of_runs if own]
        keys = max(sets, key=sets.count)
    scores = {
        run.name: mean_score(language, [run.scores[key] for key in keys])
        for run, own in zip(scored, of_runs, strict=True)
        if keys and all(key in run.scores for key in keys)
    }
    notes = () if complete else tuple(_missing(scored, of_runs, everything, keys))
    return Proficiency(language, keys, scores, notes)


def _defined(runs: Sequence[Run], language: str, basis: aggregates.Basis) -> tuple[ScoreKey, ...]:
    """The scores that proficiency is the mean of, if all runs have them."""
    for shots in sorted({key.shots for run in runs for key in run.scores}):
        keys = tuple(ScoreKey(language, part.task, part.metric, shots) for part in aggregates.parts(language, basis))
        if all(key in run.scores for run in runs for key in keys):
            return keys
    return ()


def retention(number: Proficiency, base: str) -> Proficiency:
    """Proficiency in English divided by that of the base model, with documents where both have them.

    The ratio r of two means over documents is linearised: r + (x − r · b) / mean(b) for scores x and b of a document,
    so that its interval knows of what both models find hard alike.
    """
    before = number.scores.get(base)
    if before is None or before.value == 0:
        return number
    scores = {name: _ratio(score, before) for name, score in number.scores.items()}
    return replace(number, scores=scores, base=base)


def _ratio(score: Score, base: Score) -> Score:
    ratio = score.value / base.value
    key = ScoreKey(SOURCE, "mean", "retention", 0)
    by_seed = tuple(value / base.value for value in score.by_seed)
    if score is base:
        return Score(key, 1.0, error=0.0, documents=dict.fromkeys(base.documents, 1.0))
    if score.documents and score.documents.keys() == base.documents.keys():
        documents = {d: ratio + (x - ratio * base.documents[d]) / base.value for d, x in score.documents.items()}
        return Score(key, ratio, documents=documents, by_seed=by_seed)
    errors = standard_error(score), standard_error(base)
    error = None if None in errors else math.hypot(errors[0] or 0, ratio * (errors[1] or 0)) / base.value
    return Score(key, ratio, error=error, by_seed=by_seed)


def _main_scores(run: Run, language: str) -> set[ScoreKey]:
    """One accuracy-like score of each task."""
    of_tasks: dict[tuple[str, int], list[tuple[int, ScoreKey]]] = defaultdict(list)
    for key in run.scores:
        metric = key.metric.partition(",")[0]
        if key.language == language and metric in SHARES:
            of_tasks[key.task, key.shots].append((SHARES.index(metric), key))
    return {min(found)[1] for found in of_tasks.values()}


def _missing(
    runs: Sequence[Run], of_runs: Sequence[set[ScoreKey]], everything: Sequence[ScoreKey], keys: Sequence[ScoreKey]
) -> list[str]:
    notes = []
    for key in everything:
        lacking = [run.name for run, own in zip(runs, of_runs, strict=True) if key not in own]
        if not lacking:
            continue
        names = ", ".join(lacking)
        if key in keys:
            notes.append(f"{names} has no number in {key.language}: score it with `--tasks {key.task}` too")
        else:
            notes.append(
                f"{score_name(key)} ({key.language}) does not count, as {names} lacks it: score with "
                f"`--tasks {key.task}` to let it in"
            )
    return notes


def mean_score(language: str, parts: Sequence[Score]) -> Score:
    """The mean of scores as a score of its own, with documents where all parts have them.

    A document that several tasks share counts once, with all that was scored on it: its share of the variance is that
    of the sum. With K tasks of n_k documents x and means μ_k, document d of N weighs in as
    mean + N · Σ_k (x_kd − μ_k) / (K n_k), whose mean is the score.
    """
    count = len(parts)
    value = math.fsum(part.value for part in parts) / count
    metric = "acc"  # a share as those it is made of
    key = ScoreKey(language, "mean", metric, 0)
    if count == 1:
        return parts[0]
    if all(part.documents for part in parts):
        sums: dict[str, float] = defaultdict(float)
        for part in parts:
            size = len(part.documents)
            mean = math.fsum(part.documents.values()) / size
            for document, x in part.documents.items():
                # Documents of benchmarks are known by a hash alone, which need not differ between tasks.
                name = document if OFFLINE.match(part.key.task) else f"{part.key.task}/{document}"
                sums[name] += (x - mean) / (count * size)
        documents = {name: value + len(sums) * share for name, share in sums.items()}
        return Score(key, value, documents=documents, count=len(documents), by_seed=_seeds(parts))
    errors = [standard_error(part) for part in parts]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) / count if len(known) == count else None
    return Score(key, value, error=error, by_seed=_seeds(parts))


def _seeds(parts: Sequence[Score]) -> tuple[float, ...]:
    if len({len(part.by_seed) for part in parts}) != 1:
        return ()
    return tuple(math.fsum(seed) / len(seed) for seed in zip(*(part.by_seed for part in parts), strict=True))
