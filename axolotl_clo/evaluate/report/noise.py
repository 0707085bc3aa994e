"""How sure a score is, and whether two runs differ in it by more than noise."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from scipy import stats

from axolotl_clo.evaluate.report.runs import SHARES, Score
from axolotl_clo.evaluate.statistics import (
    Interval,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    proportion_interval,
)

LEVEL = 0.95
RESAMPLES = 10_000  # fewer could not show a difference among many pairs: a p-value is 2 / 10,001 at least
_Z = float(stats.norm.ppf((1 + LEVEL) / 2))
_Name = TypeVar("_Name", bound=Hashable)

Kind = Literal["better", "worse", "differs", "noise", "untested"]


@dataclass(frozen=True)
class Verdict:
    """How a run compares with another in one score.

    Attributes:
        kind: `noise` where the p-value is 5 % or more; `differs` where neither direction is better.
        difference: the run's score less the other's, on the documents both have.
        interval: of the difference; None where nothing is known.
        p_value: adjusted for the comparisons made (`adjusted`).
        test: its name; empty where none was possible.
        common: documents that both were scored on; 0 for a test without documents.
    """

    kind: Kind
    difference: float
    interval: Interval | None = None
    p_value: float | None = None
    test: str = ""
    common: int = 0


def score_interval(score: Score) -> Interval | None:
    """95 % interval of a score, or None where its file does not tell how sure it is.

    Of documents: Wilson's for scores of 0 and 1, else BCa bootstrap. Without documents: from the standard error.
    """
    values = list(score.documents.values())
    if len(values) > 1:
        if set(values) <= {0.0, 1.0}:
            return proportion_interval(values, LEVEL)
        return mean_interval(values, LEVEL, RESAMPLES)
    error = standard_error(score)
    if error is None:
        return None
    if not score.documents and score.error is None and score.count and not score.by_seed:
        hits = round(score.value * score.count)
        return proportion_interval([1.0] * hits + [0.0] * (score.count - hits), LEVEL)
    low, high = score.value - _Z * error, score.value + _Z * error
    return Interval(max(0.0, low), min(1.0, high)) if score.key.metric in SHARES else Interval(low, high)


def standard_error(score: Score) -> float | None:
    """Of the mean over documents; where a share comes without them, that of as many answers right or wrong."""
    values = list(score.documents.values())
    if len(values) > 1:
        return float(np.std(values, ddof=1) / math.sqrt(len(values)))
    if score.error is not None:
        return score.error
    if score.count and score.key.metric in SHARES and 0 <= score.value <= 1:
        # One answer is added to either side, so that a share of 0 or 1 is not certain.
        share = (score.value * score.count + 1) / (score.count + 2)
        return math.sqrt(share * (1 - share) / score.count)
    return None


def compare(score: Score, other: Score) -> Verdict:
    """Test one score of two runs, on the same documents where both files tell of them."""
    common = [document for document in score.documents if document in other.documents]
    if len(common) > 1:
        a, b = ([side.documents[document] for document in common] for side in (score, other))
        if set(a) | set(b) <= {0.0, 1.0}:
            found, test = mcnemar(a, b, LEVEL), "McNemar"
        else:
            found, test = paired_bootstrap(a, b, LEVEL, RESAMPLES), "paired bootstrap"
        return Verdict("noise", found.difference, found.interval, found.p_value, test, len(common))
    difference = score.value - other.value
    errors = standard_error(score), standard_error(other)
    if errors[0] is None or errors[1] is None or (score.documents and other.documents):
        return Verdict("untested", difference)
    error = math.hypot(errors[0], errors[1])
    if not error:
        return Verdict("untested", difference)
    p_value = float(2 * stats.norm.sf(abs(difference) / error))
    return Verdict("noise", difference, Interval(difference - _Z * error, difference + _Z * error), p_value, "unpaired")


def judge(verdicts: Mapping[_Name, Verdict], higher_is_better: bool | None) -> dict[_Name, Verdict]:
    """Say of comparisons made together which are beyond noise: p below 5 % after Holm's adjustment."""
    tested = {name: verdict.p_value for name, verdict in verdicts.items() if verdict.p_value is not None}
    p_values = dict(zip(tested, adjusted(list(tested.values())), strict=True))
    judged = dict(verdicts)
    for name, p_value in p_values.items():
        verdict = verdicts[name]
        kind: Kind = "noise"
        if p_value < 1 - LEVEL and verdict.difference:
            up = verdict.difference > 0
            kind = "differs" if higher_is_better is None else "better" if up == higher_is_better else "worse"
        judged[name] = replace(verdict, kind=kind, p_value=p_value)
    return judged


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), which bounds the chance of any false difference among all."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    result, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        result[i] = highest
    return result
