"""The length-controlled win rate on data of the model it assumes, and what AlpacaEval demands of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from axolotl_clo.evaluate.length_control import length_controlled


def made(theta: float, phi: float, n: int = 4000, seed: int = 0, shift: float = 0.0) -> tuple[Any, Any]:
    """Verdicts of a judge with a known liking for length, and the differences in length."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(shift, 300, size=n)
    feature = np.tanh(differences / differences.std())
    return (generator.random(n) < 1 / (1 + np.exp(-theta - phi * feature))).astype(float), differences


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 2.0), (1.0, 1.0), (-0.8, 0.0), (0.4, -1.5)])
def test_finds_the_win_rate_at_equal_length(theta: float, phi: float) -> None:
    scores, differences = made(theta, phi, shift=200)
    found = length_controlled(scores, differences, resamples=50)
    assert found.win_rate == pytest.approx(1 / (1 + np.exp(-theta)), abs=0.03)
    assert found.effect == pytest.approx(phi, abs=0.2)
    if abs(phi) >= 1:
        assert abs(scores.mean() - found.win_rate) > 0.05  # what the raw win rate owes to length


def test_is_the_win_rate_where_lengths_are_equal_or_make_no_difference() -> None:
    scores = [1, 1, 0.5, 0, 1, 0.75]
    assert length_controlled(scores, [0] * 6).win_rate == pytest.approx(np.mean(scores))
    assert length_controlled(scores, [-70] * 6).effect == 0
    both_ways = length_controlled([1, 0, 0.5, 1, 0, 0.5], [10, 10, 10, -10, -10, -10])
    assert both_ways.win_rate == pytest.approx(0.5)
    assert both_ways.effect == pytest.approx(0)


def test_the_two_models_shares_add_up_to_one() -> None:
    scores, differences = made(0.7, 1.0, n=60)
    a = length_controlled(scores, differences, resamples=200)
    b = length_controlled(1 - scores, -differences, resamples=200)
    assert a.win_rate + b.win_rate == pytest.approx(1)
    assert (a.interval.low, a.interval.high) == pytest.approx((1 - b.interval.high, 1 - b.interval.low))


def test_a_model_that_always_wins_stays_within_bounds() -> None:
    found = length_controlled([1.0] * 20, list(range(20)))
    assert 0.99 < found.win_rate <= 1
    separated = length_controlled([1.0] * 10 + [0.0] * 10, [500] * 10 + [-500] * 10)  # by length alone
    assert separated.win_rate == pytest.approx(0.5, abs=0.01)


def test_lengths_count_by_what_is_usual_in_their_language() -> None:
    scores, differences = made(0.5, 1.5, n=1000)
    alone = length_controlled(scores, differences, resamples=10)
    twice = length_controlled(
        np.tile(scores, 2), np.concatenate([differences, differences / 5]), ["en"] * 1000 + ["zh"] * 1000, resamples=10
    )
    assert twice.win_rate == pytest.approx(alone.win_rate, abs=0.002)
    assert twice.effect == pytest.approx(alone.effect, abs=0.02)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(150):
        scores, differences = made(0.4, 1.0, n=100, seed=seed, shift=100)
        low, high = length_controlled(scores, differences, resamples=200).interval
        held += low <= 1 / (1 + np.exp(-0.4)) <= high
    assert 0.9 <= held / 150 <= 0.99


def test_prompts_of_one_group_are_drawn_together() -> None:
    scores, differences = made(0.2, 0.5, n=50)
    groups = [str(i) for i in range(50)] * 4
    found = length_controlled(np.tile(scores, 4), np.tile(differences, 4), groups=groups).interval
    alone = length_controlled(scores, differences).interval
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.15)


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    "arguments", [([1.0], [1.0, 2.0]), ([], []), ([1.0], [1.0], ["en", "ko"]), ([1.0], [1.0], ["en"], ["a", "b"])]
)
def test_wrong_lengths_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match="expected one"):
        length_controlled(*arguments)
