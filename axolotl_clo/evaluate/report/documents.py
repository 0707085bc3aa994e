"""A score of the harness as the mean of one number for each document, which is what paired tests need.

The harness stores, for each document, what its aggregation takes: a number, or a pair of which a ratio or an F1 is
made. A ratio and an F1 are no means, so they are replaced by their linearisation: numbers whose mean is the score and
whose variance is that of the score to first order (the delta method for a ratio, the jackknife for F1; Efron and
Tibshirani 1993, "An Introduction to the Bootstrap", chapters 11 and 21). Which rule holds for a score is not looked up
by its name: it is the one that gives the value in the results file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-6
_Values = NDArray[np.float64]


def per_document(raw: Mapping[str, Any], reported: float, parts: Mapping[str, str] | None = None) -> dict[str, float]:
    """Numbers of the documents whose mean is the reported score.

    Args:
        raw: what the harness stored for each document.
        reported: the score in the results file.
        parts: task of each document, for the score of a group of tasks, which may be the mean of their scores.

    Returns:
        By document; empty where no rule gives the reported score.
    """
    if not raw:
        return {}
    stored = list(raw.values())
    tasks = [parts[document] for document in raw] if parts else None
    for rule in (_mean, _ratio, _bits, _macro_f1, _binary_f1, _harmonic_mean):
        values = rule(stored)
        if values is None:
            continue
        for found in (values, _mean_of_tasks(values, tasks)):
            if found is not None and math.isclose(float(found.mean()), reported, rel_tol=0, abs_tol=TOLERANCE):
                return dict(zip(raw, (float(value) for value in found), strict=True))
    return {}


def _mean(stored: list[Any]) -> _Values | None:
    if not all(isinstance(value, Real) and math.isfinite(value) for value in stored):
        return None
    return np.array(stored, dtype=np.float64)


def _pairs(stored: list[Any]) -> _Values | None:
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, Real) for x in pair) for pair in stored):
        return None
    return np.array(stored, dtype=np.float64)


def _ratio(stored: list[Any]) -> _Values | None:
    """Sum of the first parts over the sum of the second."""
    pairs = _pairs(stored)
    if pairs is None or not pairs[:, 1].sum():
        return None
    tops, bottoms = pairs.T
    ratio = tops.sum() / bottoms.sum()
    return ratio + len(pairs) * (tops - ratio * bottoms) / bottoms.sum()


def _bits(stored: list[Any]) -> _Values | None:
    """The harness's bits per byte: of pairs of log-probability in nats and bytes."""
    ratios = _ratio(stored)
    return None if ratios is None else -ratios / math.log(2)


def _macro_f1(stored: list[Any]) -> _Values | None:
    return _jackknife(stored, lambda f1: sum(f1.values()) / len(f1))


def _binary_f1(stored: list[Any]) -> _Values | None:
    return _jackknife(stored, lambda f1: f1.get(1.0, 0.0))


def _jackknife(stored: list[Any], of_classes: Callable[[dict[float, float]], float]) -> _Values | None:
    pairs = _pairs(stored)
    if pairs is None or len(pairs) < 2:
        return None
    cells = Counter(map(tuple, pairs.tolist()))
    whole = of_classes(_f1(cells))
    without = {cell: of_classes(_f1(cells - Counter([cell]))) for cell in cells}
    left_out = np.array([without[tuple(pair)] for pair in pairs.tolist()])
    return whole + (len(pairs) - 1) * (left_out.mean() - left_out)


def _f1(cells: Counter[tuple[float, ...]]) -> dict[float, float]:
    """F1 of each class, from how often each pair of gold and predicted class occurs."""
    gold, predicted = Counter[float](), Counter[float]()
    for (is_, said), count in cells.items():
        gold[is_] += count
        predicted[said] += count
    return {c: 2 * cells[c, c] / (gold[c] + predicted[c]) for c in gold.keys() | predicted.keys()}


def _harmonic_mean(stored: list[Any]) -> _Values | None:
    """Harmonic mean of two rates, each over the documents that count for it; None marks those that do not."""
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in stored):
        return None
    if not all(x is None or isinstance(x, Real) for pair in stored for x in pair):
        return None
    rates = np.array(stored, dtype=np.float64)  # None becomes NaN
    counts = (~np.isnan(rates)).sum(axis=0)
    if not counts.all():
        return None
    means = np.nanmean(rates, axis=0)
    if not means.sum():
        return np.zeros(len(rates))
    slopes = 2 * means[::-1] ** 2 / means.sum() ** 2
    influence = np.nan_to_num((rates - means) * slopes / counts)
    return 2 * means.prod() / means.sum() + len(rates) * influence.sum(axis=1)


def _mean_of_tasks(values: _Values, tasks: list[str] | None) -> _Values | None:
    """The same for the unweighted mean of the tasks' means."""
    if tasks is None:
        return None
    names, places = np.unique(tasks, return_inverse=True)
    sizes = np.bincount(places)
    means = np.bincount(places, weights=values) / sizes
    return means.mean() + len(values) * (values - means[places]) / (len(names) * sizes[places])
