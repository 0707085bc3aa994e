"""Weak scaling: the rows of a step grow with the processes, so a step as long as that of one is perfect."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from conftest import make_tiny_llama, starter_rows, write_rows
from engines import Case, run
from equality import Run

SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
STEPS, REPEATS = 12, 3
ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2, activations kept")


def print_scaling(folder: Path) -> None:
    """Seconds a step of one process, of two that know nothing of one another, and of two under each engine.

    What two apart lose to one is the machine's: cores and memory are shared. What an engine adds is its communication.
    All run once in each repeat, so that a machine that is faster at times is so for all.
    """
    base = make_tiny_llama(folder / "llama", **SHAPE, num_key_value_heads=6)
    rows = write_rows(folder / "rows.jsonl", starter_rows()[:64])
    cases = [*(Case("one process", "attention", n) for n in (1, 2)), *(Case(name, "attention") for name in ENGINES)]
    work: dict[str, Any] = {
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "val_set_size": 0.0,
        "eval_steps": None,
    }
    places = [folder / str(repeat) for repeat in range(REPEATS)]
    for place in places:
        run(cases, base, rows, place, **work)
    one, apart, *_ = seconds = [median(_seconds_a_step(Run(p / case.name)) for p in places) for case in cases]
    print("| engine | processes | seconds a step | of that communication | rows a second, times one process |")
    print("|---|---:|---:|---:|---:|")
    for case, took in zip(cases, seconds, strict=True):
        name = "two that are apart" if case is cases[1] else case.engine
        talk = f"{took - apart:.2f}" if case.engine in ENGINES else "–"
        print(f"| {name} | {case.processes} | {took:.2f} | {talk} | {case.processes * one / took:.2f} |")


def _seconds_a_step(run: Run) -> float:
    """Median over the steps after the first two, of the slowest rank."""
    return max(median(rank["step_seconds"][2:]) for rank in run.ranks)
