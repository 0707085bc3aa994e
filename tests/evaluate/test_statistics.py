"""Intervals and tests against scipy, closed forms, and their own promise: how often they hold the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from axolotl_clo.evaluate.statistics import mcnemar, mean_interval, paired_bootstrap, proportion_interval

RNG = np.random.default_rng


@pytest.mark.parametrize(
    "values", [RNG(0).normal(size=60), RNG(1).exponential(size=40), RNG(2).choice([0, 0.5, 1], 80)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_a_mean_is_scipys(values: Any, level: float) -> None:
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=20_000, rng=RNG(3)
    ).confidence_interval
    found = mean_interval(values, level, resamples=20_000, seed=4)
    tolerance = 0.06 * (expected.high - expected.low)  # of two draws of 20,000
    assert found == pytest.approx(tuple(expected), abs=tolerance)


def test_many_documents_cost_little_memory_and_give_the_normal_interval() -> None:
    values = RNG(0).normal(3.0, 2.0, size=20_000)
    reach = 1.96 * values.std() / math.sqrt(len(values))
    low, high = mean_interval(values, resamples=1000)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.2 * reach)


def coverage(interval: Any, draw: Any, truth: float, trials: int = 400) -> float:
    generator = RNG(5)
    found = [interval(draw(generator)) for _ in range(trials)]
    return sum(low <= truth <= high for low, high in found) / trials


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    ties = coverage(
        lambda values: mean_interval(values, resamples=1000),
        lambda g: g.choice([0, 0.5, 1], 60, p=[0.5, 0.2, 0.3]),
        0.4,
    )
    assert 0.92 <= ties <= 0.98
    rare = coverage(proportion_interval, lambda g: g.random(40) < 0.05, 0.05)
    assert 0.92 <= rare <= 0.99

    def two_models(generator: Any) -> Any:
        shared = generator.random(80)
        return (shared < 0.6).astype(float), np.where(
            generator.random(80) < 0.8, shared < 0.6, generator.random(80) < 0.3
        )

    truth = 0.2 * (0.6 - 0.3)
    assert 0.92 <= coverage(lambda pair: mcnemar(*pair).interval, two_models, truth) <= 0.98
    assert 0.92 <= coverage(lambda pair: paired_bootstrap(*pair, resamples=1000).interval, two_models, truth) <= 0.98


def test_equal_models_are_told_apart_no_more_often_than_the_level_says() -> None:
    generator, trials = RNG(6), 400
    pairs = [(generator.normal(size=50), generator.normal(size=50)) for _ in range(trials)]
    assert sum(paired_bootstrap(a, b, resamples=1000).p_value < 0.05 for a, b in pairs) / trials <= 0.08
    answers = [(generator.random(60) < 0.5, generator.random(60) < 0.5) for _ in range(trials)]
    assert sum(mcnemar(a, b).p_value < 0.05 for a, b in answers) / trials <= 0.06


def test_paired_scores_are_compared_by_their_differences() -> None:
    a = RNG(7).normal(size=200)
    b = a - 0.1 + RNG(8).normal(scale=0.2, size=200)
    found = paired_bootstrap(a, b)
    expected = stats.ttest_rel(a, b)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=0.004)
    assert found.p_value < 0.001
    other = paired_bootstrap(b, a)
    assert other.difference == -found.difference
    assert stats.ttest_ind(a, b).pvalue > 0.05  # what an unpaired test would have missed


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.04, 0.06, 0.2])
def test_the_p_value_and_the_interval_agree(shift: float) -> None:
    a = RNG(9).normal(size=100) * 0.2
    found = paired_bootstrap(a + shift, np.zeros(100))
    assert (found.p_value < 0.05) == (not found.interval.low <= 0 <= found.interval.high)


def test_few_documents_prove_nothing() -> None:
    assert paired_bootstrap([1, 1, 1], [0, 0, 0]).p_value == 0.25


def test_mcnemar_is_the_exact_binomial_test_of_the_documents_that_differ() -> None:
    a = [1] * 12 + [0] * 3 + [1] * 40 + [0] * 45
    b = [0] * 12 + [1] * 3 + [1] * 40 + [0] * 45
    found = mcnemar(a, b)
    by_hand = 2 * sum(math.comb(15, k) for k in range(4)) / 2**15
    assert found.difference == pytest.approx(0.09)
    assert found.p_value == pytest.approx(by_hand)
    centre, n = (12.5 - 3.5) / 102, 102  # Agresti and Min: 0.5 in each cell
    error = math.sqrt((12.5 + 3.5) / n - centre**2) / math.sqrt(n)
    assert found.interval == pytest.approx((centre - 1.959964 * error, centre + 1.959964 * error))


def test_models_that_answer_alike_do_not_differ() -> None:
    alike = [0, 1, 1, 0]
    assert mcnemar(alike, alike).p_value == 1
    assert paired_bootstrap(alike, alike) == (0, (0, 0), 1)


@pytest.mark.parametrize("score", [0, 1])
def test_all_right_or_all_wrong_is_no_certainty(score: int) -> None:
    low, high = mean_interval([score] * 20)
    assert high - low > 0.1
    assert (low, high) == proportion_interval([score] * 20)


def test_one_document_has_no_interval() -> None:
    assert all(math.isnan(end) for end in mean_interval([0.3]))


def test_values_that_belong_together_are_drawn_together() -> None:
    scores = np.repeat(RNG(10).random(30), 4)
    alone = mean_interval(scores)
    together = mean_interval(scores, groups=[str(i // 4) for i in range(120)])
    assert together == pytest.approx(mean_interval(scores[::4]), abs=0.01)
    assert together.high - together.low == pytest.approx(2 * (alone.high - alone.low), rel=0.1)


def test_the_seed_decides() -> None:
    values = RNG(0).normal(size=50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1, 2], [1]), "a and b: expected .* got 2 and 1"),
        (lambda: mcnemar([1, 0], [1, 0, 1]), "a and b: expected .* got 2 and 3"),
        (lambda: mean_interval([1.0], groups=["a", "b"]), "values and groups: .* got 1 and 2"),
        (lambda: mean_interval([]), "values: expected one score"),
        (lambda: mean_interval([1.0, math.nan]), r"values\[1\]: expected a finite score, got nan"),
        (lambda: mcnemar([1, 0.5], [1, 0]), r"a\[1\]: expected 0 or 1, got 0.5"),
        (lambda: proportion_interval([2]), r"values\[0\]: expected 0 or 1, got 2"),
        (lambda: mean_interval([1, 0], level=95), "level: expected a confidence between 0 and 1, got 95"),
        (lambda: paired_bootstrap([1], [0], resamples=0), "resamples: expected at least 1, got 0"),
    ],
)
def test_wrong_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
