"""Which learning rate each method trains with: candidates, and the criterion that holds for all."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from axolotl_clo.compare.plan import HELD_OUT_EVERY, LEARNING_RATES, SOURCE, Comparison, starter_rows
from axolotl_clo.compare.workers import Queue

MAX_ENGLISH_RISE = 0.05  # share of the base model's English bits per byte
FIDELITY_TIE = 0.125  # two answers of sixteen: about one standard error


class Candidate(NamedTuple):
    """A learning rate's scores on rows held out of the search.

    target: bits per byte in the target language.
    english: bits per byte in English.
    fidelity: share of answers in the target language that do not repeat the prompt.
    """

    target: float
    english: float
    fidelity: float


def choose_learning_rate(candidates: Mapping[float, Candidate], base: Candidate) -> float:
    """The best of the candidates by the one criterion that holds for all methods.

    Args:
        candidates: scores by learning rate.
        base: those of the base model on the same rows.

    Returns:
        Among the rates whose English bits per byte rose by at most `MAX_ENGLISH_RISE` and whose target's did not rise:
        of those within `FIDELITY_TIE` of the highest fidelity, the one with the lowest target bits per byte. Where
        there is none, the one whose English rose least.
    """
    kept = {
        rate: scores
        for rate, scores in candidates.items()
        if scores.english <= base.english * (1 + MAX_ENGLISH_RISE) and scores.target <= base.target
    }
    if kept:
        best = max(scores.fidelity for scores in kept.values())
        ties = [rate for rate, scores in kept.items() if scores.fidelity >= best - FIDELITY_TIE]
        return min(ties, key=lambda rate: kept[rate].target)
    rises = {rate: scores.english for rate, scores in candidates.items()}
    return min(rises, key=lambda rate: (math.isnan(rises[rate]), rises[rate]))  # NaN: training diverged


@dataclass
class Search:
    """What the search for learning rates found.

    Attributes:
        language: the target language searched in.
        base: the base model's scores on the rows that score the search.
        candidates: by method, scores by learning rate.
        rates: by method, the learning rate chosen.
    """

    language: str
    base: Candidate
    candidates: dict[str, dict[float, Candidate]]
    rates: dict[str, float]


def search_rates(plan: Comparison, queue: Queue, base: dict[str, Any]) -> Search:
    """Choose a learning rate for each method; one is missing where all of its candidates failed."""
    (plan.out / "search").mkdir(parents=True, exist_ok=True)
    kept = [row for i, row in enumerate(starter_rows(), start=1) if i % HELD_OUT_EVERY]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (plan.out / "search" / "rows.jsonl").write_text(text, encoding="utf-8")
    language = plan.languages[0]
    search = Search(language, _candidate(base["search"], language), defaultdict(dict), {})
    for methods in plan.search_phases:
        wanted = [
            (method, rate)
            for method in methods
            for rate in LEARNING_RATES[method]
            if method != "sft_dpo" or "sft" in search.rates
        ]
        runs = [plan.search(method, language, rate, search.rates.get("sft")) for method, rate in wanted]
        for (method, rate), result in zip(wanted, queue.finish(runs), strict=True):
            if result is not None:
                search.candidates[method][rate] = _candidate(result["scores"], language)
        for method, found in search.candidates.items():
            search.rates[method] = choose_learning_rate(found, search.base)
    return search


def _candidate(scores: Mapping[str, Mapping[str, float]], language: str) -> Candidate:
    own = scores[language]
    return Candidate(own["bits_per_byte"], scores[SOURCE]["bits_per_byte"], own["fidelity_no_echo"])
