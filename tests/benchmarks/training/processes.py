"""Runs as processes, one after the other; their results in a file, so that what is done is not done again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .rows import write_rows
from .runs import Run

ROOT = Path(__file__).parents[3]


class Results:
    """Results by run; with a file, each is written as soon as it is there, and read when there is one already."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.done: dict[str, dict[str, Any]] = {}
        if file is not None and file.exists():
            entries = json.loads(file.read_text(encoding="utf-8"))["runs"]
            self.done = {Run(**entry["run"]).key: entry["result"] for entry in entries}

    def __getitem__(self, run: Run) -> dict[str, Any]:
        return self.done[run.key]

    def __contains__(self, run: Run) -> bool:
        """Whether there is a result; a run that failed is tried again."""
        return "error" not in self.done.get(run.key, {"error": ""})

    def add(self, run: Run, result: dict[str, Any]) -> None:
        self.done[run.key] = result
        if self.file is None:
            return
        runs = [{"run": json.loads(key), "result": value} for key, value in self.done.items()]
        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.write_text(json.dumps({"runs": runs}, indent=1), encoding="utf-8")
        partial.replace(self.file)


def run_all(runs: list[Run], results: Results) -> None:
    """Do the runs that have no result; what happens goes to standard error."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, run in enumerate(runs, 1):
            print(f"[{i}/{len(runs)}] {run}", end=" … ", file=sys.stderr, flush=True)
            if run in results:
                print("done before", file=sys.stderr, flush=True)
                continue
            result = _run(run, folder)
            results.add(run, result)
            said = result.get("error") or (f"{result['seconds']:.1f} s" if "seconds" in result else "done")
            print(said, file=sys.stderr, flush=True)


def _run(run: Run, folder: Path) -> dict[str, Any]:
    model = _model(run, folder)
    if not model.exists():
        module = "tests.benchmarks.training.models"
        written = _python(run, module, run.model, str(model), run.device)
        if written.returncode:
            return {"error": f"no model: {_reason(written)}"}
    rows = _rows(run, model, folder)
    out = Path(tempfile.mkdtemp(dir=folder))
    try:
        if run.kind == "startup":  # what is measured is the second run
            filled = _process(replace(run, kind="fill"), model, rows, out)
            if "error" in filled:
                return filled
        return _process(run, model, rows, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _model(run: Run, folder: Path) -> Path:
    """The folder that the run names, or where the model of that name is written."""
    return Path(run.model) if Path(run.model, "config.json").is_file() else folder / run.model


def _rows(run: Run, model: Path, folder: Path) -> Path:
    file = folder / f"rows-{run.rows}-{run.length}.jsonl"
    if not file.exists():
        tokenizer = None
        if run.length:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model)
        write_rows(file, run.rows, run.length, tokenizer)
    return file


def _process(run: Run, model: Path, rows: Path, folder: Path) -> dict[str, Any]:
    given, result = folder / "run.json", folder / "result.json"
    result.unlink(missing_ok=True)
    paths = {"model": model, "rows": rows, "folder": folder, "result": result}
    given.write_text(json.dumps({"run": json.loads(run.key), **{name: str(path) for name, path in paths.items()}}))
    done = _python(run, "tests.benchmarks.training.measure", str(given))
    return json.loads(result.read_text()) if result.exists() else {"error": _reason(done)}


def _python(run: Run, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, env=_environment(run), cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended before it could say so itself."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"killed by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]


def _environment(run: Run) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(run.threads),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if run.device == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **own}
