"""Verdicts as wins, ties and losses, win rates and their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier, supported
from axolotl_clo.evaluate.length_control import length_controlled
from axolotl_clo.evaluate.statistics import Interval, mean_interval


@dataclass(frozen=True)
class Judged:
    """Two answers to a prompt, and their line of `verdicts.jsonl`, which has a score."""

    id: str
    language: str
    a: str
    b: str
    verdict: Mapping[str, Any]

    @property
    def score(self) -> float:
        return float(self.verdict["score"])


def summarise(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """What `judge.json` says of each language, and of `all` together.

    Counts are of prompts, rates and shares from 0 to 1; of pairs of values the first is of model a:

    * `win_rate`: mean score, with its bootstrap `interval`; `length_controlled` and its interval: see `length_control`.
    * `length_effect`: φ there; `mean_length`: characters of an answer.
    * `consistent`: of prompts that were asked, the share where both orders gave the same verdict.
    * `first_shown`: of verdicts that are no ties, the share for the answer shown first; 0.5 is a fair judge.
    * `right_language`: share of answers in the prompt's language, by this package's identifier (None where it does not
      know the language) and by the judge (of the verdicts that name one).

    In `all`, a prompt in several languages is drawn as one for the intervals.
    """
    right = _in_their_language(judged)
    found = {}
    for language in dict.fromkeys(one.language for one in judged):
        places = [i for i, one in enumerate(judged) if one.language == language]
        found[language] = _summary([judged[i] for i in places], [right[i] for i in places])
    return found | ({"all": _summary(judged, right)} if judged else {})


def _summary(judged: Sequence[Judged], right: Sequence[tuple[bool, bool] | None]) -> dict[str, Any]:
    scores, ids = [one.score for one in judged], [one.id for one in judged]
    outcomes = [one.verdict["outcome"] for one in judged]
    lengths = [one.verdict["lengths"] for one in judged]
    orders = [(one.verdict["first"], one.verdict["second"]) for one in judged if "first" in one.verdict]
    shown_first = [
        better == place
        for pair in orders
        for verdict, place in zip(pair, "ab", strict=True)
        if (better := verdict["better"]) != "tie"
    ]
    controlled = length_controlled(scores, [a - b for a, b in lengths], [one.language for one in judged], ids)
    return {
        "n": len(judged),
        "wins": outcomes.count("win"),
        "ties": outcomes.count("tie"),
        "losses": outcomes.count("loss"),
        "win_rate": fmean(scores),
        "interval": _ends(mean_interval(scores, groups=ids)),
        "length_controlled": controlled.win_rate,
        "length_controlled_interval": _ends(controlled.interval) if len(set(ids)) > 1 else None,
        "length_effect": controlled.effect,
        "mean_length": [fmean(a for a, _ in lengths), fmean(b for _, b in lengths)],
        "consistent": fmean(one["better"] == other["better"] for one, other in orders) if orders else None,
        "first_shown": fmean(shown_first) if shown_first else None,
        "right_language": {
            "identified": _shares([pair for pair in right if pair is not None]),
            "judge": _said_by_judge(judged),
        },
    }


def _ends(interval: Interval) -> list[float] | None:
    return None if math.isnan(interval.low) else list(interval)


def _in_their_language(judged: Sequence[Judged]) -> list[tuple[bool, bool] | None]:
    """Whether each model's answer is in the prompt's language; None where that is not among those identified."""
    known = [code for code in dict.fromkeys(one.language for one in judged) if supported(code)]
    identifier = LanguageIdentifier((*LANGUAGES, *known))
    a, b = (identifier.identify_many(texts) for texts in ([one.a for one in judged], [one.b for one in judged]))
    return [
        (of_a == one.language, of_b == one.language) if one.language in known else None
        for one, of_a, of_b in zip(judged, a, b, strict=True)
    ]


def _said_by_judge(judged: Sequence[Judged]) -> list[float] | None:
    said = [
        (one.language, order["languages"])
        for one in judged
        for order in (one.verdict.get("first"), one.verdict.get("second"))
        if order and None not in order["languages"]
    ]
    return _shares([(a == language, b == language) for language, (a, b) in said])


def _shares(pairs: Sequence[tuple[bool, bool]]) -> list[float] | None:
    return [fmean(a for a, _ in pairs), fmean(b for _, b in pairs)] if pairs else None
