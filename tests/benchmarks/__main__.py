"""Speed and memory of training with CLO, against stock Axolotl and without each of its savings.

    python -m tests.benchmarks [--quick] [--out results.json]        in the root of the repository

prints one Markdown table, each figure beside its floor, which README.md beside this file derives. Each run is a process
of its own; runs that are compared follow each other, once in each repeat. On a machine with a GPU the shapes of
Llama-3.2-1B and Llama-3-8B are trained there, with random weights in bfloat16; elsewhere SmolLM2-135M-Instruct, in
float32. With `--out` results are kept run by run, and those that are there are not measured again: delete the file
after the code has changed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .training.models import CHECKPOINTED, SHAPES, SMOLLM2
from .training.processes import Results, run_all
from .training.runs import FIRST_EPOCHS_ONLY, RUNS, Run
from .training.table import lines, machine, profiles, table

LINES = ("startup", "curve")
STARTUP_ROWS, CURVE_STEPS, CURVE_ROWS = 6400, 50, 2


def main(arguments: list[str] | None = None) -> None:
    given = _parse(arguments)
    runs = plan(given)
    results = Results(given.out)
    run_all(runs, results)
    print(f"{machine(runs[0])}\n\n{table(runs, results)}\n\n{lines(runs, results)}\n{profiles(runs, results)}".rstrip())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = {"nargs": "+", "metavar": ""}
    parser.add_argument("--quick", action="store_true", help="few rows, one epoch, once, and half of the runs")
    parser.add_argument("--runs", nargs="+", choices=(*RUNS, *LINES), help="default: all but plain")
    parser.add_argument("--rows", type=int, help="default: 12, with a GPU 32")
    parser.add_argument("--batch", type=int, help="rows of an optimizer step; default: 4, with a GPU 2")
    parser.add_argument("--epochs", type=int, nargs="+", help="default: 1 3, with a GPU 1")
    parser.add_argument("--repeats", type=int, help="default: 2")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", **several, help=f"folders, {SMOLLM2}, or the shapes {', '.join(SHAPES)}")
    parser.add_argument(
        "--lengths", type=int, **several, help="tokens rows are filled up to; 0: starter rows as they are"
    )
    parser.add_argument("--attention", help="attn_implementation; default: flash_attention_2 where it is installed")
    parser.add_argument("--startup-rows", type=int, default=STARTUP_ROWS)
    parser.add_argument("--steps", type=int, default=CURVE_STEPS, help="of the two loss curves")
    parser.add_argument("--profile", action="store_true", help="also where the time of a step of CLO goes, by operator")
    parser.add_argument("--out", type=Path, help="JSON file of results, added to")
    return with_defaults(parser.parse_args(arguments))


def with_defaults(given: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on the device and on `--quick`."""
    if given.device is None:
        import torch

        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda, quick = given.device == "cuda", given.quick
    defaults = {
        "runs": ["clo", "dpo", "unshared", "curve"] if quick else [n for n in (*RUNS, *LINES) if n != "plain"],
        "rows": (8 if quick else 256) if cuda else (4 if quick else 12),
        "batch": 2 if cuda else 4,
        "epochs": [1] if quick or cuda else [1, 3],
        "repeats": 1 if quick else 2,
        "models": ["llama-1b", "llama-8b"] if cuda else [SMOLLM2],
        "lengths": [512, 2048] if cuda else [0],
        "attention": _attention() if cuda else "sdpa",
    }
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def _attention() -> str:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        return "sdpa"
    return "flash_attention_2"


def plan(given: argparse.Namespace) -> list[Run]:
    """The runs in their order: those that are compared follow each other, repeat by repeat."""
    common = {"threads": given.threads, "device": given.device, "attention": given.attention}
    runs = []
    for model in given.models:
        shape = {**common, "model": model, "checkpointing": model in CHECKPOINTED}
        sizes = {"rows": given.rows, "batch": given.batch}
        for length in given.lengths:
            for epochs in given.epochs:
                for repeat in range(given.repeats):
                    for name in given.runs:
                        if name in LINES or (name in FIRST_EPOCHS_ONLY and epochs != given.epochs[0]):
                            continue
                        runs.append(Run(name=name, length=length, epochs=epochs, repeat=repeat, **shape, **sizes))
    once = {"epochs": 1, "repeat": 0, "length": 0, "checkpointing": False}
    if "startup" in given.runs:
        sizes = {"rows": given.startup_rows, "batch": given.batch}
        for name in ("clo", "sft"):
            runs.append(Run(name=name, kind="startup", model=given.models[0], **once, **common, **sizes))
    if "curve" in given.runs:
        exact = {**common, "device": "cpu", "attention": "sdpa", "steps": given.steps}
        sizes = {"rows": given.steps * CURVE_ROWS, "batch": CURVE_ROWS}
        for name in ("clo", "plain"):
            runs.append(Run(name=name, kind="curve", model="small", **once, **exact, **sizes))
    if given.profile:
        for model in given.models:
            for length in given.lengths:
                shape = {"model": model, "length": length, "checkpointing": model in CHECKPOINTED}
                sizes = {"rows": 2 * given.batch, "batch": given.batch, "epochs": 1, "repeat": 0}
                runs.append(Run(name="clo", kind="profile", **shape, **common, **sizes))
    if not runs:
        sys.exit("nothing to run")
    return runs


if __name__ == "__main__":
    main()
