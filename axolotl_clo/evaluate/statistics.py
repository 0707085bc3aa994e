"""Confidence intervals of scores, and tests of two models on the same documents.

All of it treats the documents as a sample of those that could have been asked: an interval says how far the score may
lie from that of all of them. It says nothing of other seeds of a training run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_CELLS = 1 << 22  # of a table of resamples that is held in memory at a time


class Interval(NamedTuple):
    """A confidence interval, in the unit of the scores."""

    low: float
    high: float


class Paired(NamedTuple):
    """Two models on the same documents.

    Attributes:
        difference: mean score of the first minus that of the second.
        interval: of the difference.
        p_value: two-sided, of no difference; what says whether a difference is within noise.
    """

    difference: float
    interval: Interval
    p_value: float


def mean_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0, groups: Sequence[str] = ()
) -> Interval:
    """Bias-corrected and accelerated (BCa) bootstrap interval of the mean.

    The formula is that of Efron (1987), "Better Bootstrap Confidence Intervals", with the acceleration of a mean, a
    sixth of its skewness. It equals `scipy.stats.bootstrap(values, np.mean)`, whose cost grows with the square of the
    number of documents.

    Args:
        values: score of each document.
        level: confidence, between 0 and 1.
        resamples: how often the documents are drawn anew.
        seed: the same seed gives the same interval.
        groups: name of the group of each value, where several values belong together, as the languages of one prompt
            do; groups are then drawn, not values. None are given where every value stands alone.

    Returns:
        The interval. Values that are all 0 or all 1 would give one of no width; theirs is Wilson's. It is (nan, nan)
        where one value, or one group, is all there is.

    Raises:
        ValueError: there is no value, one is not finite, or an argument is out of its range.
    """
    scores = _checked("values", values)
    _check_level(level)
    _check_resamples(resamples)
    if groups:
        _same_length("values", scores, "groups", groups)
        totals, sizes = _by_group(scores, groups)
    else:
        totals, sizes = scores, np.ones_like(scores)
    n = len(totals)
    if np.all(scores == scores[0]) and scores[0] in (0, 1):
        return _wilson(n if scores[0] else 0, n, level)
    if n < 2:
        return Interval(math.nan, math.nan)
    if np.all(scores == scores[0]):
        return Interval(float(scores[0]), float(scores[0]))
    mean = totals.sum() / sizes.sum()
    means = _resampled(totals, sizes, resamples, seed)
    # Ties count half on either side: a mean of few discrete scores often falls on the observed one.
    below = (np.mean(means < mean) + np.mean(means <= mean)) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / (resamples + 1), resamples / (resamples + 1)))
    influence = totals - mean * sizes
    spread = np.sum(influence**2)
    acceleration = np.sum(influence**3) / (6 * spread**1.5) if spread else 0.0
    tails = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    quantiles = stats.norm.cdf(bias + tails / (1 - acceleration * tails))
    low, high = np.quantile(means, quantiles)
    return Interval(float(low), float(high))


def proportion_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Wilson's score interval of a share, the closed form for scores of 0 and 1 (Wilson 1927).

    It keeps its level for few documents and for shares near 0 and 1, where the bootstrap does not.

    Raises:
        ValueError: there is no value, or one that is neither 0 nor 1.
    """
    hits = _binary("values", values)
    _check_level(level)
    return _wilson(int(hits.sum()), len(hits), level)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Paired:
    """Difference of the means of two models on the same documents, by resampling documents.

    Percentile interval (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; for paired systems
    Koehn 2004). The p-value is that at which the interval begins to hold 0: twice the smaller share of the resamples
    at or beyond 0, and never below 2^(1−n), the least that n documents can say by their signs.

    Args:
        a: score of each document under the first model.
        b: under the second, in the same order.
        level: confidence of the interval, between 0 and 1.
        resamples: how often the documents are drawn anew.
        seed: the same seed gives the same result.

    Raises:
        ValueError: the lengths differ (both are named), there is no document, or a score is not finite.
    """
    first, second = _pair(a, b)
    _check_level(level)
    _check_resamples(resamples)
    differences = first - second
    difference, n = float(differences.mean()), len(differences)
    if not differences.any():
        return Paired(0.0, Interval(0.0, 0.0), 1.0)
    means = _resampled(differences, np.ones(n), resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    tail = min(np.sum(means <= 0), np.sum(means >= 0))
    p_value = max(2 * (1 + tail) / (resamples + 1), 2.0 ** (1 - n))
    return Paired(difference, Interval(float(low), float(high)), float(min(1.0, p_value)))


def mcnemar(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Paired:
    """Difference of two shares on the same documents, each of which is right (1) or wrong (0).

    The p-value is McNemar's exact one: only documents on which the models differ count, and without a difference either
    model is the right one as often (McNemar 1947). The interval is that of Agresti and Min (2005), "Simple improved
    confidence intervals for comparing matched proportions": half a document is added to each cell of the 2 × 2 table.

    Args:
        a: 0 or 1 for each document under the first model.
        b: under the second, in the same order.
        level: confidence of the interval, between 0 and 1.

    Raises:
        ValueError: the lengths differ (both are named), there is no document, or a score is neither 0 nor 1.
    """
    first, second = _pair(a, b)
    _check_level(level)
    _binary("a", first)
    _binary("b", second)
    only_a, only_b, n = int(np.sum(first > second)), int(np.sum(second > first)), len(first)
    differing = only_a + only_b
    p_value = stats.binomtest(only_a, differing, 0.5).pvalue if differing else 1.0
    centre = (only_a - only_b) / (n + 2)
    error = math.sqrt(differing + 1 - (only_a - only_b) ** 2 / (n + 2)) / (n + 2)
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    interval = Interval(max(-1.0, centre - reach), min(1.0, centre + reach))
    return Paired((only_a - only_b) / n, interval, float(p_value))


def _resampled(
    totals: NDArray[np.float64], sizes: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means of resamples of units that each have a total score and a size: `[resamples]`.

    How often each distinct unit is drawn is multinomial, so that thousands of documents with a handful of scores cost
    no more than that handful.
    """
    units, counts = np.unique(np.stack([totals, sizes]), axis=1, return_counts=True)
    generator, n = np.random.default_rng(seed), len(totals)
    few = len(counts) < n / 8
    means, at_once = [], max(1, _CELLS // (len(counts) if few else n))
    for start in range(0, resamples, at_once):
        now = min(at_once, resamples - start)
        if few:
            total, size = units @ generator.multinomial(n, counts / n, size=now).T
        else:
            drawn = generator.integers(n, size=(now, n))
            total, size = totals[drawn].sum(axis=1), sizes[drawn].sum(axis=1)
        means.append(total / size)
    return np.concatenate(means)


def _by_group(scores: NDArray[np.float64], groups: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _, places = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(places, weights=scores).astype(np.float64), np.bincount(places).astype(np.float64)


def _wilson(hits: int, n: int, level: float) -> Interval:
    found = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def _checked(name: str, values: Sequence[float]) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"{name}: expected one score for each of one or more documents, got shape {scores.shape}")
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{name}[{place}]: expected a finite score, got {scores[place]}")
    return scores


def _binary(name: str, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    scores = _checked(name, values)  # type: ignore[arg-type, unused-ignore]
    if (other := (scores != 0) & (scores != 1)).any():
        place = int(np.flatnonzero(other)[0])
        raise ValueError(f"{name}[{place}]: expected 0 or 1, got {scores[place]:g}")
    return scores


def _pair(a: Sequence[float], b: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _same_length("a", a, "b", b)
    return _checked("a", a), _checked("b", b)


def _same_length(
    name: str, values: Sequence[object] | NDArray[np.float64], other: str, others: Sequence[object]
) -> None:
    if len(values) != len(others):
        raise ValueError(
            f"{name} and {other}: expected one entry for each of the same documents, got {len(values)} and "
            f"{len(others)}"
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a confidence between 0 and 1, got {level}")


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
