"""Rows per second and memory of everything but the engine: reading, segments, protection, scores, files, filter.

    python tests/benchmarks/overhead.py [--rows 10000 200000] [--workers 2]

The engine gives each segment back as it got it. Each size runs in a process of its own, so that its peak of memory is
its own; that of the largest worker is counted too. Rows are the English starter rows, numbered so that each is new.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from axolotl_clo.datasets import starter_folder

ENGINE = """
class Nothing:
    batch, max_chars, unit = 1000, 400, "sentence"
    def __init__(self, options): pass
    def describe(self): return {"engine": "nothing"}
    def check(self, source, target): pass
    def translate(self, segments, source, target): return list(segments)
    def close(self): pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(_measure(*given.run, workers=given.workers)))
        return
    print(
        "| rows | rows/s | seconds: parts | filter | peak MiB | largest worker MiB |\n|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        _install_engine(Path(folder) / "site")
        for rows in given.rows:
            source = _write_rows(Path(folder) / f"{rows}.jsonl", rows)
            command = [sys.executable, __file__, "--workers", str(given.workers), "--run", source, f"{folder}/{rows}"]
            path = os.pathsep.join([f"{folder}/site", os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds = found["seconds"]
            print(
                f"| {rows} | {rows / seconds:.0f} | {found['parts']:.1f} | {seconds - found['parts']:.1f} "
                f"| {found['peak']:.0f} | {found['worker']:.0f} |",
                flush=True,
            )


def _measure(source: str, out: str, workers: int) -> dict[str, float]:
    """Seconds of the run without the start of Python, up to the last part and in all, and peaks of memory in MiB."""
    from axolotl_clo.translate.pipeline import Progress, Run

    last = start = time.perf_counter()

    def mark(progress: Progress) -> None:
        nonlocal last
        last = time.perf_counter()

    Run(source, to="de", engine="nothing", workers=workers).run(Path(out), on_progress=mark)
    end = time.perf_counter()
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": end - start, "parts": last - start, "peak": peaks[0], "worker": peaks[1]}


def _install_engine(site: Path) -> None:
    info = site / "nothing_engine-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing-engine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[axolotl_clo.engines]\nnothing = nothing_engine:Nothing\n")
    (site / "nothing_engine.py").write_text(ENGINE)


def _write_rows(file: Path, rows: int) -> str:
    with (starter_folder() / "train.jsonl").open(encoding="utf-8") as stream:
        starter = [json.loads(line) for line in stream]
    with file.open("w", encoding="utf-8") as stream:
        for i, row in enumerate(islice(cycle(starter), rows)):
            said = {"prompt": row["prompt"]["en"], "response": f"{row['response']['en']} That is answer {i}."}
            stream.write(json.dumps(said) + "\n")
    return str(file)


if __name__ == "__main__":
    main()
