"""One number for a language: target proficiency, or English retention.

It is the mean of one accuracy-like score of each task of the language that all runs share: of the benchmarks where
there are any, else of the starter rows'. A mean over other tasks would be another number, so tasks that a run lacks do
not count.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from axolotl_clo.evaluate.report.names import language_name, score_name
from axolotl_clo.evaluate.report.noise import standard_error
from axolotl_clo.evaluate.report.runs import SHARES, SOURCE, Run, Score, ScoreKey

_OFFLINE = re.compile(r"^axolotl_clo_[a-z]+_(fidelity|preference|bits_per_byte|echoes)$")


@dataclass(frozen=True)
class Proficiency:
    """The number of each run in one language.

    Attributes:
        keys: the scores it is the mean of.
        scores: by the name of the run; a run that lacks one of them has none.
        notes: what was left out, and how to let it in.
    """

    language: str
    keys: tuple[ScoreKey, ...]
    scores: Mapping[str, Score]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return "English retention" if self.language == SOURCE else f"{language_name(self.language)} proficiency"

    @property
    def definition(self) -> str:
        if not self.keys:
            return f"{self.title}: none, as the runs have no accuracy-like score of the language."
        what = "on the held-out starter rows" if _OFFLINE.match(self.keys[0].task) else "benchmarks that all runs share"
        names = [score_name(key) for key in self.keys]
        if len(names) == 1:
            return f"{self.title}: {names[0]} ({what})."
        return f"{self.title}: the mean of {len(names)} scores of equal weight ({what}), which are {'; '.join(names)}."


def proficiency(runs: Sequence[Run], language: str) -> Proficiency:
    """The number of a language over the runs that have scores in it."""
    scored = [run for run in runs if language in run.languages]
    of_runs = [_main_scores(run, language) for run in scored]
    everything = sorted({key for keys in of_runs for key in keys})
    keys: tuple[ScoreKey, ...] = ()
    for offline in (False, True):
        kind = [key for key in everything if bool(_OFFLINE.match(key.task)) == offline]
        keys = keys or tuple(key for key in kind if all(key in own for own in of_runs))
    if not keys and everything:  # nothing is shared: the tasks of most runs, and no number for the others
        sets = [tuple(sorted(own)) for own in of_runs if own]
        keys = max(sets, key=sets.count)
    scores = {
        run.name: mean_score(language, [run.scores[key] for key in keys])
        for run, own in zip(scored, of_runs, strict=True)
        if keys and set(keys) <= own
    }
    return Proficiency(language, keys, scores, tuple(_missing(scored, of_runs, everything, keys)))


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
                name = document if _OFFLINE.match(part.key.task) else f"{part.key.task}/{document}"
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
