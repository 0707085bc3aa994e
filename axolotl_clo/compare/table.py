"""The table, and below it how it was made."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from statistics import mean, stdev
from typing import Any

from axolotl_clo.compare.plan import (
    BETA,
    HELD_OUT_EVERY,
    LEARNING_RATES,
    METHODS,
    SOURCE,
    Cell,
    Comparison,
    Rows,
    starter_rows,
)
from axolotl_clo.compare.search import MAX_ENGLISH_RISE, Search

# Column: language ("" for the target), metric, factor, format.
COLUMNS: dict[str, tuple[str, str, float, str]] = {
    "fidelity %": ("", "fidelity", 100, ".1f"),
    "without echoes %": ("", "fidelity_no_echo", 100, ".1f"),
    "preference %": ("", "preference", 100, ".1f"),
    "bits per byte": ("", "bits_per_byte", 1, ".3f"),
    "echoes %": ("", "echoes", 100, ".1f"),
    f"{SOURCE} fidelity %": (SOURCE, "fidelity", 100, ".1f"),
    f"{SOURCE} bits per byte": (SOURCE, "bits_per_byte", 1, ".3f"),
    f"{SOURCE} KL": (SOURCE, "kl", 1, ".3f"),
    f"{SOURCE} characters": (SOURCE, "characters", 1, ".0f"),
    "of base's": (SOURCE, "characters_ratio", 1, ".2f"),
}

LEGEND = f"""\
Mean ± sample standard deviation over seeds, on the 32 held-out prompts of a language.
Fidelity: answers in the prompt's language; without echoes: and not a repetition of the prompt; echoes: repetitions.
Preference: the reference response is likelier than its English translation.
Bits per byte of the reference response: lower is better.
{SOURCE} KL: KL(base ‖ trained) in nats per token, over the base model's own greedy English answers.
{SOURCE} characters: mean length of an English answer of at most 64 tokens, and its ratio to the base model's."""


def report(
    plan: Comparison, base: dict[str, Any], search: Search, results: Mapping[Cell, dict[str, Any]], minutes: float
) -> str:
    """The whole of `table.md`: a table for each language, and below them how they were made."""
    blocks = [_block(language, plan, base["scores"], results) for language in plan.languages]
    return "\n\n".join([*blocks, LEGEND, _rates(plan, search), _budget(plan, results, minutes)])


def _block(language: str, plan: Comparison, base: dict[str, Any], results: Mapping[Cell, dict[str, Any]]) -> str:
    lines = [
        f"### {SOURCE} → {language}\n",
        f"| {' | '.join(['method', 'rows', 'seeds', *COLUMNS])} |",
        "|---" + "|---:" * (2 + len(COLUMNS)) + "|",
        f"| base | | | {' | '.join(_cells(language, [base], base))} |",
    ]
    for size in sorted(plan.sizes):
        for method in plan.methods:
            found = [results[cell]["scores"] for cell in results if cell[:3] == (method, language, size)]
            if found:
                lines.append(
                    f"| {METHODS[method]} | {size} | {len(found)} | {' | '.join(_cells(language, found, base))} |"
                )
    return "\n".join(lines)


def _cells(language: str, found: Rows, base: dict[str, Any]) -> list[str]:
    """One line's cells; `found` holds the scores of each seed."""
    length = base[SOURCE]["characters"] or math.nan
    ratios = [{"characters_ratio": scores[SOURCE]["characters"] / length} for scores in found]
    full = [{**scores, SOURCE: {**scores[SOURCE], **ratio}} for scores, ratio in zip(found, ratios, strict=True)]
    return [
        spread([factor * scores[code or language][metric] for scores in full], form)
        for code, metric, factor, form in COLUMNS.values()
    ]


def spread(values: Sequence[float], form: str) -> str:
    """`mean ± sample standard deviation`, or the value alone where there is one."""
    text = format(mean(values), form)
    return f"{text} ± {format(stdev(values), form)}" if len(values) > 1 else text


def _rates(plan: Comparison, search: Search) -> str:
    """The candidates of the search, and a line for each choice at the edge of its candidates."""
    lines = [
        f"Learning rates were searched in {search.language} and hold for all languages: {plan.search_steps} steps on",
        f"{plan.search_size} rows, scored on {len(starter_rows()) // HELD_OUT_EVERY} other training rows. Chosen is",
        "the one with the lowest target bits per byte, of those with most answers in the prompt's language that do",
        "not repeat it (within two of the best), whose English bits per byte rose against base by at most",
        f"{MAX_ENGLISH_RISE:.0%} and whose target's did not rise. For SFT, then DPO it is the DPO stage's; its SFT",
        f"stage takes SFT's. β of CLO and DPO is {BETA:g}, as is the weight of ORPO's preference term.\n",
        "| method | learning rate: answers / bits per byte / rise of English | chosen |",
        "|---|---|---|",
    ]
    edges = []
    for method, rate in search.rates.items():
        found, english = search.candidates[method], search.base.english
        tried = (f"{r:g}: {c.fidelity:.0%} / {c.target:.3f} / {c.english / english - 1:+.1%}" for r, c in found.items())
        lines.append(f"| {METHODS[method]} | {', '.join(tried)} | {rate:g} |")
        if rate in (LEARNING_RATES[method][0], LEARNING_RATES[method][-1]):
            side = "lowest" if rate == LEARNING_RATES[method][0] else "highest"
            edges.append(f"- {METHODS[method]}: {rate:g} is the {side} candidate; a better one may lie beyond.")
    return "\n".join([*lines, *(["", *edges] if edges else [])])


def _budget(plan: Comparison, results: Mapping[Cell, dict[str, Any]], minutes: float) -> str:
    import torch

    steps = ", ".join(f"{plan.steps(size)} on {size}" for size in sorted(plan.sizes))
    seconds = [sum(result["seconds"].values()) for result in results.values()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    packages = ("axolotl-clo", "axolotl", "transformers", "trl", "torch", "lm_eval")
    return "\n".join(
        [
            f"{len(results)} of {len(plan.cells)} runs, {sum(seconds) / 60:.0f} minutes of training and scoring;",
            f"optimizer steps: {steps} rows. This call took {minutes:.0f} minutes, {plan.jobs} at a time on {device}.",
            f"Base model: {plan.base_model.name}. Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in packages)
            + ".",
        ]
    )
