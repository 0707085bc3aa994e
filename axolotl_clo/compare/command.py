"""The command line: options, checks of the machine, all runs, the table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from axolotl_clo.compare.plan import (
    FULL,
    LEARNING_RATES,
    METHODS,
    SMALL,
    SOURCE,
    Comparison,
    starter_rows,
)
from axolotl_clo.compare.search import search_rates
from axolotl_clo.compare.table import report
from axolotl_clo.compare.workers import Queue, Workers
from axolotl_clo.quickstart import check_machine, ensure_smollm2
from axolotl_clo.translate.store import OutputError, held

DEFAULT_MODEL = Path("outputs/quickstart/smollm2-135m-instruct")
NEEDED_MEMORY_GB = 4.0  # for each worker
COMMAND = "axolotl_clo.compare"


def main(arguments: list[str] | None = None) -> None:
    """Compare base, SFT, SFT then DPO, ORPO and CLO on the starter rows with equal budgets; print one table."""
    plan = parse(arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.base_model == DEFAULT_MODEL:
        ensure_smollm2(plan.base_model, COMMAND)
    check_disk_and_memory(plan)
    try:
        with held(plan.out / ".lock", plan.out):
            failed = compare(plan)
    except OutputError as refused:
        raise SystemExit(f"{COMMAND}: {refused}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"{COMMAND}: stopped; the same command goes on with the runs that are missing") from None
    for name, error in failed.items():
        print(f"\n✗ {name} failed: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def compare(plan: Comparison) -> dict[str, str]:
    """Do all runs that are not done, write and print the table of what there is; returns what failed, by name."""
    start = time.perf_counter()
    threads = max(1, (os.cpu_count() or 1) // plan.jobs)
    searches = sum(len(LEARNING_RATES[method]) for phase in plan.search_phases for method in phase)
    total = 1 + searches + len(plan.cells)
    with Workers(plan.jobs, threads) as workers, tqdm(total=total, unit="run", file=sys.stderr) as bar:
        queue = Queue(workers, bar)
        (base,) = queue.finish([plan.base()])
        if base is None:
            return queue.failed
        search = search_rates(plan, queue, base)
        runs = {}
        for method, language, size, seed in plan.cells:
            if method in search.rates:
                rates = search.rates[method], search.rates.get("sft")
                runs[method, language, size, seed] = plan.run(method, language, size, seed, *rates)
            else:
                queue.failed[f"runs/{method}-{language}-{size}-{seed}"] = "all candidates of its search failed"
        try:
            queue.finish(list(runs.values()))
        finally:
            bar.close()
            results = {cell: result for cell, run in runs.items() if (result := run.result()) is not None}
            minutes = (time.perf_counter() - start) / 60
            text = report(plan, base, search, results, minutes)
            (plan.out / "table.md").write_text(text + "\n", encoding="utf-8")
            print(text)
    return queue.failed


def parse(arguments: list[str] | None) -> Comparison:
    """The checked options.

    Raises:
        SystemExit: an option is wrong; the message names it and what is accepted.
    """
    rows = starter_rows()
    languages = [code for code in rows[0]["prompt"] if code != SOURCE]
    parser = argparse.ArgumentParser(prog=f"python -m {COMMAND}", description=main.__doc__)
    add = parser.add_argument
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD", help="of %(choices)s")
    add("--languages", nargs="+", choices=languages, default=["de", "sw"], metavar="LANG", help="of %(choices)s")
    size, seed, count = (_whole_number(*bounds) for bounds in ((1, len(rows)), (0, 2**32 - 1), (1, 2**31)))
    add("--sizes", nargs="+", type=size, metavar="ROWS", help=f"parallel rows trained on, 1 to {len(rows)}")
    add("--seeds", nargs="+", type=seed, metavar="SEED", help="of the rows drawn and of training")
    add("--steps", type=_whole_number(2, 2**31), help="optimizer steps of a run; default: a rule over the size")
    add("--out", type=Path, default=Path("outputs/compare"), help="folder of all runs and of table.md")
    add("--base-model", type=Path, default=DEFAULT_MODEL, help="folder of a chat model; default: SmolLM2, converted")
    add("--jobs", type=count, help="runs at a time; default: 2 on a CPU with more than one core, else 1")
    add("--keep-models", action="store_true", help="leave the weights of the runs in the table")
    add("--small", action="store_true", help=f"a grid for two CPU cores: {SMALL}")
    given = parser.parse_args(arguments)
    if given.base_model != DEFAULT_MODEL and not (given.base_model / "config.json").is_file():
        parser.error(
            f"argument --base-model: no config.json in {given.base_model}; a folder with a model in the Hugging Face "
            "format is accepted (`hf download NAME --local-dir FOLDER` makes one)"
        )
    grid = SMALL if given.small else FULL
    return Comparison(
        out=given.out,
        base_model=given.base_model,
        methods=tuple(dict.fromkeys(given.methods)),
        languages=tuple(dict.fromkeys(given.languages)),
        sizes=tuple(dict.fromkeys(given.sizes or grid.sizes)),
        seeds=tuple(dict.fromkeys(given.seeds or grid.seeds)),
        grid=grid,
        given_steps=given.steps,
        jobs=given.jobs or _default_jobs(),
        keep_models=given.keep_models,
    )


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}; whole numbers from {least} to {most} are accepted")
        return int(text)

    return check


def _default_jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def check_disk_and_memory(plan: Comparison) -> None:
    """Stop before anything is trained where disk or memory is short.

    Raises:
        NotEnough: names the folder of --out or the memory, what is free and what is needed.
    """
    model_gb = sum(file.stat().st_size for file in plan.base_model.iterdir()) / 1e9
    kept = len(plan.cells) if plan.keep_models else 0
    # A worker has at most two models on disk, those of two stages; a kept run too.
    name = f"{COMMAND}: --out"
    check_machine(plan.out, 1 + 2 * model_gb * (plan.jobs + kept), NEEDED_MEMORY_GB * plan.jobs, name)
