"""Results as one Markdown table, and the measured lines below it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .processes import Results
from .runs import LABELS, Run

HEADER = (
    "| model and rows | epochs | run | s | floor s | s / floor | CLO is × as fast | goal "
    "| peak MiB | floor MiB | CLO's peak is × | goal |\n"
    "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
STARTUP_GOAL, CURVE_GOAL, FLOOR_GOAL = 10.0, 1e-4, 1.6

Measured = dict[str, Any]


def machine(run: Run) -> str:
    """What the figures were taken on."""
    import torch

    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if run.device == "cuda":
        return f"{torch.cuda.get_device_name()}, bfloat16, {run.attention}, seconds of the wall; {versions}"
    return f"{run.threads} of {os.cpu_count()} threads of {_processor()}, float32, seconds of the processor; {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(runs: Iterable[Run], results: Results) -> str:
    """A line for each run, over its repeats.

    The ratios are CLO's against that run, of the same repeat; ± is their standard deviation over the repeats.
    """
    repeats: dict[str, list[Run]] = {}
    for run in runs:
        if run.kind == "train":
            repeats.setdefault(replace(run, repeat=0).key, []).append(run)
    return "\n".join([HEADER, *(_line(one, results) for one in repeats.values())])


def _line(runs: list[Run], results: Results) -> str:
    run = runs[0]
    start = f"| {run.where}, {run.batch} of {run.rows} rows a step | {run.epochs} | {LABELS[run.name]} | "
    failed = [results[one]["error"] for one in runs if one not in results]
    if failed:
        return f"{start}failed: {failed[0].replace('|', '/')} | | | | | | | | |"
    own = [results[one] for one in runs]
    clo = [_clo(one, results) for one in runs]
    faster, smaller = _goals(run)
    cells = [
        _spread(own, lambda one: one["seconds"], ".1f"),
        f"{mean(one['seconds_floor'] for one in own):.1f}",
        _spread(own, lambda one: one["seconds"] / one["seconds_floor"], ".2f"),
        _ratio(clo, own, lambda clo, one: one["seconds"] / clo["seconds"]) if run.name != "clo" else "",
        faster,
        f"{mean(one['peak'] for one in own):.0f}",
        f"{mean(one['peak_floor'] for one in own):.0f}",
        _ratio(clo, own, lambda clo, one: clo["peak"] / one["peak"]) if run.name != "clo" else "",
        smaller,
    ]
    return start + " | ".join(cells) + " |"


def _clo(run: Run, results: Results) -> Measured | None:
    """The run of CLO beside this one."""
    beside = replace(run, name="clo")
    return results[beside] if beside in results else None  # noqa: SIM401 (not a dict)


def _goals(run: Run) -> tuple[str, str]:
    """For CLO against this run: × as fast, and × the peak."""
    if run.name == "dpo" and run.device == "cpu":
        return {1: "≥ 3", 3: "≥ 4"}.get(run.epochs, ""), "≤ 0.35"
    if run.name == "dpo":
        return "≥ 2.5" if run.model == "llama-1b" else "", "≤ 0.35"
    return "", "≤ 1" if run.name == "sft" and run.device == "cuda" else ""


def _ratio(clo: list[Measured | None], own: list[Measured], of: Callable[[Measured, Measured], float]) -> str:
    pairs = [(one, other) for one, other in zip(clo, own, strict=True) if one is not None]
    return _spread(pairs, lambda pair: of(*pair), ".2f") if pairs else "–"


def _spread(measured: list[Any], of: Callable[[Any], float], form: str) -> str:
    values = [of(one) for one in measured]
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def lines(runs: list[Run], results: Results) -> str:
    """What is not a ratio: the way to the first step, and the loss without any saving."""
    said = [_floor_line(runs, results)]
    for name, say in (("startup", _startup), ("curve", _curve)):
        pairs: dict[str, list[Run]] = {}
        for run in runs:
            if run.kind == name:
                pairs.setdefault(replace(run, name="").key, []).append(run)
        for pair in pairs.values():
            failed = [f"{one} failed: {results[one]['error']}" for one in pair if one not in results]
            said.append(f"* {failed[0]}" if failed else say(pair, results))
    return "\n".join(filter(None, said))


def _floor_line(runs: list[Run], results: Results) -> str:
    found = [
        (run, results[run]["seconds"] / results[run]["seconds_floor"])
        for run in runs
        if run.kind == "train" and run.name == "clo" and run.device == "cuda" and run.length == 2048 and run in results
    ]
    if not found:
        return ""
    worst, over = max(found, key=lambda one: one[1])
    return f"* CLO's time over its floor, at worst ({worst.where}): {over:.2f} (goal: within {FLOOR_GOAL})"


def _startup(pair: list[Run], results: Results) -> str:
    clo, sft = (next(results[run] for run in pair if run.name == name)["seconds"] for name in ("clo", "sft"))
    return (
        f"* Before the first step, {pair[0].rows} rows cached, {pair[0].where}: {clo - sft:.1f} processor seconds more "
        f"than stock SFT's {sft:.1f} (goal: ≤ {STARTUP_GOAL:.0f})"
    )


def _curve(pair: list[Run], results: Results) -> str:
    one, other = (next(results[run] for run in pair if run.name == name)["losses"] for name in ("clo", "plain"))
    apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
    return (
        f"* Loss of {len(one)} steps in float32 ({pair[0].where}: {one[0]:.3f} to {one[-1]:.3f}), all savings against "
        f"none: at most {apart:.1e} apart (goal: {CURVE_GOAL:.0e})"
    )


def profiles(runs: Iterable[Run], results: Results) -> str:
    """Where the time of one step goes, by operator."""
    parts = []
    for run in runs:
        if run.kind != "profile":
            continue
        if run not in results:
            parts.append(f"* {run} failed: {results[run]['error']}")
            continue
        result = results[run]
        parts += [
            f"\nOne step of {LABELS[run.name]}, {run.where}, {run.batch} rows, {result['milliseconds']:.0f} ms:\n",
            "| operator | calls | own ms | share |\n|---|---:|---:|---:|",
            *(
                f"| `{name[:70]}` | {calls} | {ms:.0f} | {share:.1%} |"
                for name, calls, ms, share in result["operators"]
            ),
        ]
    return "\n".join(parts)
