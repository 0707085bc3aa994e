"""Prints how far each engine is from one process, and what two processes gain: `python -m tests.distributed`.

`--all` adds four processes, weights in main memory, bf16 and further scopes; `--scaling` measures instead.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from conftest import make_tiny_llama, starter_rows, write_rows  # noqa: E402
from engines import ENGINES, FURTHER, ROWS, USUAL, Case, baseline, run  # noqa: E402
from equality import Run, differences  # noqa: E402
from scaling import print_scaling  # noqa: E402


def print_table(cases: list[Case], folder: Path) -> int:
    """Run the cases and print a row for each; returns how many failed."""
    base = make_tiny_llama(folder / "tiny-llama")
    rows = write_rows(folder / "rows.jsonl", starter_rows()[:ROWS])
    baselines = dict.fromkeys(baseline(case.scope) for case in cases)
    run([*baselines, *cases], base, rows, folder)
    failures = []
    print("| engine | shared by the ranks | scope | processes | loss | metrics | gradient norm | weights | reference |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for case in cases:
        row = f"| {case.engine} | {ENGINES[case.engine].sharded} | {case.scope} | {case.processes} |"
        try:
            found = differences(Run(folder / case.name), Run(folder / baseline(case.scope).name))
            print(row, " | ".join(f"{value:.0e}" if value else "0" for value in found.values()), "|")
        except AssertionError as failure:
            failures.append(failure)
            print(row, "failed | | | | |")
    for failure in failures:
        print(failure, file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.distributed", description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.scaling:
            print_scaling(Path(temporary))
        else:
            sys.exit(print_table(USUAL + FURTHER * arguments.all, Path(temporary)))
