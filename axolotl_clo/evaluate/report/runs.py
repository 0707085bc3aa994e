"""What a report is about: runs, their scores, answers, training curves and verdicts of a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

SOURCE = "en"
BASE = "base"
METHODS = {
    BASE: "base",
    "sft": "SFT",
    "sft_dpo": "SFT, then DPO",
    "dpo": "DPO",
    "ipo": "IPO",
    "orpo": "ORPO",
    "simpo": "SimPO",
    "kto": "KTO",
    "clo": "CLO",
}

# Scores that say how much of a task is right, from 0 to 1. Of a task with several the first counts in the two numbers.
SHARES = (
    "macro_f1",
    "f1",
    "acc",
    "exact_match",
    "acc_norm",
    "fidelity_no_echo",
    "fidelity",
    "line_pass_rate",
    "word_pass_rate",
    "language_confusion_pass_rate",
    "preference",
    "preference_per_byte",
)
_IN_PER_CENT = (*SHARES, "echoes", "skipped", "retention")


class Answer(NamedTuple):
    """One answer; `shots` are the examples before the prompt."""

    language: str
    prompt: str
    text: str
    shots: int = 0


class ScoreKey(NamedTuple):
    """What makes scores of two runs comparable."""

    language: str | None
    task: str
    metric: str
    shots: int


@dataclass(frozen=True)
class Score:
    """One score of one run.

    Attributes:
        key: language, task, metric and few-shot examples.
        value: as the result file states it; for several seeds their mean.
        higher_is_better: None where neither direction is.
        error: standard error as the file states it.
        documents: score of each document, whose mean is `value`; empty where the file does not tell.
        count: documents scored, where known.
        by_seed: the value of each seed; empty for a single run.
    """

    key: ScoreKey
    value: float
    higher_is_better: bool | None = True
    error: float | None = None
    documents: Mapping[str, float] = field(default_factory=dict)
    count: int | None = None
    by_seed: tuple[float, ...] = ()

    @property
    def is_share(self) -> bool:
        """Whether it is shown in per cent."""
        return self.key.metric.partition(",")[0] in _IN_PER_CENT


@dataclass(frozen=True)
class Curves:
    """What one training logged: by name, such as `loss` or `eval_clo/nll`, `(step, value)` in the order of steps."""

    name: str
    points: Mapping[str, Sequence[tuple[float, float]]]


class Tally(NamedTuple):
    """Verdicts in one language; rates are 0 to 1."""

    language: str
    n: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    interval: tuple[float, float] | None
    length_controlled: float | None


@dataclass(frozen=True)
class Judgement:
    """What a judge said of the answers of two models, `a` against `b`."""

    a: str
    b: str
    judge: str
    tallies: tuple[Tally, ...]
    unjudged: int


class Command(NamedTuple):
    """A command, and the text of the config it takes, if any."""

    text: str
    config: str = ""


@dataclass(frozen=True)
class Run:
    """One model, or one method under several seeds.

    Attributes:
        name: as it is shown; unlike all others of a report.
        method: a key of `METHODS`, or None.
        rows: examples trained on, where known.
        seeds: how many runs this is the mean of.
        notes: what a reader has to know, such as what was left out.
        chat_template: whether the harness applied one; None where unknown.
    """

    name: str
    folder: Path
    method: str | None = None
    rows: int | None = None
    seeds: int = 1
    scores: Mapping[ScoreKey, Score] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    curves: tuple[Curves, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    commands: tuple[Command, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chat_template: bool | None = None

    @property
    def languages(self) -> set[str | None]:
        return {key.language for key in self.scores}


def merge_seeds(name: str, runs: Sequence[Run]) -> Run:
    """One run whose scores are the means of runs that differ in their seed alone.

    A document's score is the mean of its scores; answers are those of the first seed.
    """
    if len(runs) == 1:
        return replace(runs[0], name=name)
    merged: dict[ScoreKey, Score] = {}
    for key in runs[0].scores:
        found = [run.scores[key] for run in runs if key in run.scores]
        documents = set.intersection(*(set(score.documents) for score in found))
        complete = all(len(score.documents) == len(documents) for score in found)
        merged[key] = replace(
            found[0],
            value=mean(score.value for score in found),
            error=None,
            documents={d: mean(score.documents[d] for score in found) for d in sorted(documents)} if complete else {},
            by_seed=tuple(score.value for score in found),
        )
    return replace(
        runs[0],
        name=name,
        seeds=len(runs),
        scores=merged,
        curves=tuple(curves for run in runs for curves in run.curves),
        commands=tuple(command for run in runs for command in run.commands),
        notes=tuple(dict.fromkeys(note for run in runs for note in run.notes)),
    )


def seed_spread(score: Score) -> float | None:
    """Sample standard deviation over seeds."""
    return stdev(score.by_seed) if len(score.by_seed) > 1 else None
