"""Win rate as it would be if both models' answers were equally long.

Judges prefer long answers. AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, section 3) models a judge's preference
for model m over baseline b on instruction x as

    P(m wins) = σ( θ_m − θ_b + φ · tanh( (len_m − len_b) / std(len_m − len_b) ) + (ψ_m − ψ_b) · γ_x )

fits it by logistic regression, and gives the mean of the prediction with the term of length at 0. Here

    P(a wins) = σ( θ + φ · tanh( (len_a − len_b) / std ) ),   length-controlled win rate = σ(θ)

What differs, because one pair of models is all there is: the difficulty γ_x of an instruction is fitted over all models
of a leaderboard there, and left out here. φ is kept small by a fixed weak prior here, a normal one of variance 10, in
place of cross-validated L1 regularisation and of answers cut short on purpose, which AlpacaEval adds to the data.
Lengths are in characters, as there; they are divided by their spread within each language, as 100 characters say more
in Chinese than in English. Ties, and judgements that differ between the orders, count as probabilities between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from axolotl_clo.evaluate.statistics import Interval

_VARIANCE = 10.0  # of φ beforehand
_STEPS, _STEP = 50, 4.0  # of Newton's method, and the longest of them


class LengthControlled(NamedTuple):
    """Length-controlled win rate.

    Attributes:
        win_rate: of the first model, 0 to 1.
        interval: its percentile bootstrap interval.
        effect: φ, above 0 where the judge prefers long answers.
    """

    win_rate: float
    interval: Interval
    effect: float


def length_controlled(
    scores: Sequence[float],
    differences: Sequence[float],
    languages: Sequence[str] = (),
    groups: Sequence[str] = (),
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LengthControlled:
    """The win rate at equal lengths.

    Args:
        scores: of each prompt, from 0 (the second model won) to 1 (the first did).
        differences: characters of the first model's answer less those of the second's.
        languages: of each prompt; one where none are given.
        groups: of each prompt, those that are drawn together, such as a prompt in several languages; its own where
            none are given.
        level: confidence of the interval.
        resamples: how often prompts are drawn anew and the model is fitted again.
        seed: of the draws.

    Raises:
        ValueError: the lengths of the arguments differ, or there is no prompt.
    """
    wins, features = np.asarray(scores, dtype=np.float64), _features(differences, languages)
    if not len(wins) or len(wins) != len(features) or (groups and len(groups) != len(wins)):
        raise ValueError(
            f"scores, differences and groups: expected one entry for each prompt, got {len(wins)}, {len(features)} and "
            f"{len(groups)}"
        )
    theta, phi = _fit(wins, features, np.ones((1, len(wins))))
    _, places = np.unique(np.asarray(groups or range(len(wins))), return_inverse=True)
    n, generator, found = int(places.max()) + 1, np.random.default_rng(seed), []
    at_once = max(1, (1 << 20) // len(wins))
    for start in range(0, resamples, at_once):
        drawn = generator.multinomial(n, np.full(n, 1 / n), size=min(at_once, resamples - start))
        found.append(_fit(wins, features, drawn[:, places].astype(np.float64))[0])
    low, high = np.quantile(_sigmoid(np.concatenate(found)), [(1 - level) / 2, (1 + level) / 2])
    return LengthControlled(float(_sigmoid(theta)[0]), Interval(float(low), float(high)), float(phi[0]))


def _features(differences: Sequence[float], languages: Sequence[str]) -> NDArray[np.float64]:
    """tanh of the differences, each divided by their spread in its language; 0 where all are the same."""
    found = np.asarray(differences, dtype=np.float64).copy()
    codes = np.asarray(languages or [""] * len(found))
    if len(codes) != len(found):
        raise ValueError(
            f"differences and languages: expected one entry for each prompt, got {len(found)}, {len(codes)}"
        )
    for code in np.unique(codes):
        of_language = codes == code
        spread = found[of_language].std()
        found[of_language] = np.tanh(found[of_language] / spread) if spread else 0.0
    return found


def _fit(
    wins: NDArray[np.float64], features: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """θ and φ of greatest posterior probability for each row of `weights` `[fits, prompts]`, by Newton's method."""
    total = weights.sum(axis=1)
    share = np.clip((weights @ wins) / total, 1e-9, 1 - 1e-9)
    theta = np.log(share / (1 - share))  # the answer where lengths have no effect
    phi = np.zeros_like(theta)
    for _ in range(_STEPS):
        predicted = _sigmoid(theta[:, None] + phi[:, None] * features)
        error = weights * (wins - predicted)
        curvature = weights * predicted * (1 - predicted)
        gradient_theta, gradient_phi = error.sum(axis=1), error @ features - phi / _VARIANCE
        tt, tp = curvature.sum(axis=1) + 1e-12, curvature @ features
        pp = curvature @ features**2 + 1 / _VARIANCE
        determinant = tt * pp - tp**2
        step_theta = np.clip((pp * gradient_theta - tp * gradient_phi) / determinant, -_STEP, _STEP)
        step_phi = np.clip((tt * gradient_phi - tp * gradient_theta) / determinant, -_STEP, _STEP)
        # Where one model won everywhere θ has no end; it stays where it says so.
        one_sided = (share <= 1e-9) | (share >= 1 - 1e-9)
        theta, phi = np.where(one_sided, theta, theta + step_theta), np.where(one_sided, phi, phi + step_phi)
        if max(np.abs(step_theta[~one_sided]).max(initial=0), np.abs(step_phi[~one_sided]).max(initial=0)) < 1e-9:
            break
    return theta, phi


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(x, -40, 40)))
