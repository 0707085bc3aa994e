"""One number for a target language and one for English, from a results file of lm-evaluation-harness.

The harness can average the tasks of a group, but a task may stand in one group of a call only, so that a number over
`clo_LANG_belebele` and `clo_LANG_mmmlu` needs their documents run twice. It is computed from their results instead.

**Proficiency** in a language, 0 to 1: the unweighted mean of a model's accuracy on Belebele and its accuracy on MMMLU,
or for English on MMLU. Both ask questions with four choices, so that chance is 0.25, and exist in all seven languages.
MMMLU's and MMLU's accuracy is over all documents, as the harness's groups have it. KoBEST is left out, so that
languages compare.

**English retention**: proficiency in English of the trained model, divided by that of the model before training; 1 is
English kept, and below 1 some of it lost.

A run without the benchmarks may have the offline set. Its proficiency is another number, the mean of the shares
`fidelity_no_echo` and `preference_per_byte` of the starter rows, and never compared with the first: whoever shows
either names its `basis`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

SOURCE = "en"

Basis = Literal["benchmarks", "offline"]


class Proficiency(NamedTuple):
    """How well a model knows a language."""

    value: float
    """0 to 1; chance is 0.25 on the benchmarks."""
    basis: Basis
    parts: dict[str, float]
    """What `value` is the mean of, by group and metric."""


class Part(NamedTuple):
    """A score that proficiency is the mean of."""

    group: str
    task: str
    """Whose score it is: a task of the group, or the group itself where its tasks are one benchmark's subjects."""
    metric: str

    @property
    def name(self) -> str:
        """The group, of which the offline set has but one, with two metrics."""
        return self.group if self.metric == "acc" else f"{self.group} {self.metric}"


def parts(language: str, basis: Basis) -> tuple[Part, Part]:
    """What proficiency in a language is the mean of."""
    group, own = f"clo_{language}", f"axolotl_clo_{language}"
    if basis == "offline":
        return (
            Part(group, f"{own}_fidelity", "fidelity_no_echo"),
            Part(group, f"{own}_preference", "preference_per_byte"),
        )
    subjects = f"{group}_mmlu" if language == SOURCE else f"{group}_mmmlu"
    return Part(f"{group}_belebele", f"{own}_belebele", "acc"), Part(subjects, subjects, "acc")


def missing(results: Mapping[str, Any], language: str, basis: Basis) -> list[str]:
    """The parts of proficiency that a run does not have."""
    return [part.name for part in parts(language, basis) if _value(results, part) is None]


def proficiency(results: Mapping[str, Any], language: str, basis: Basis = "benchmarks") -> Proficiency | None:
    """Proficiency in a language, or None where the run lacks a part of it.

    Args:
        results: a results file of lm-evaluation-harness, or what `lm_eval.simple_evaluate` returns.
        language: ISO 639-1 code.
        basis: the benchmarks, or the offline set.

    Raises:
        ValueError: these are no results of the harness, or not of a version that is understood.
    """
    found = {part.name: _value(results, part) for part in parts(language, basis)}
    known = {name: value for name, value in found.items() if value is not None}
    return Proficiency(sum(known.values()) / len(known), basis, known) if len(known) == len(found) else None


def english_retention(trained: Mapping[str, Any], base: Mapping[str, Any], basis: Basis = "benchmarks") -> float | None:
    """Proficiency in English of a trained model divided by that of its base model, or None where a run lacks a part.

    Raises:
        ValueError: as `proficiency`.
    """
    after, before = (proficiency(results, SOURCE, basis) for results in (trained, base))
    if after is None or before is None or before.value == 0:
        return None
    return after.value / before.value


def _value(results: Mapping[str, Any], part: Part) -> float | None:
    tables = results.get("results")
    if not isinstance(tables, Mapping):
        raise ValueError(
            f"no results of lm-evaluation-harness: no table 'results', but {', '.join(results) or 'nothing'}"
        )
    # A group without a table of its own is not in `results`; all of these have one.
    row = tables.get(part.group)
    value = row.get(f"{part.metric},none") if isinstance(row, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
