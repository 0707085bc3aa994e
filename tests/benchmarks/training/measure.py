"""One run in this process: `python -m tests.benchmarks.training.measure FILE`, as `processes` calls it.

`setup_model_and_trainer` and `Trainer.train` are Axolotl's. What is timed is `Trainer.train`: for CLO that includes
scoring the reference, which DPO does in each step.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import TrainerCallback

from . import floor
from .runs import Run, config
from .savings import Patch, switch_off

PROFILED_STEP, SHOWN_OPERATORS = 2, 15


def main() -> None:
    file = Path(sys.argv[1])
    given = json.loads(file.read_text())
    run = Run(**given["run"])
    try:
        torch.set_num_threads(run.threads)
        result = measure(run, Path(given["model"]), Path(given["rows"]), Path(given["folder"]))
    except BaseException as error:  # the parent makes it a line of the table
        text = " ".join(str(error).split())
        result = {"error": f"{type(error).__name__}: {text[:160]}"}
        Path(given["result"]).write_text(json.dumps(result))
        raise
    Path(given["result"]).write_text(json.dumps(result))


def measure(run: Run, model_folder: Path, rows: Path, folder: Path, patch: Patch = setattr) -> dict[str, Any]:
    """Do a run.

    Args:
        run: what to do.
        model_folder: of the model.
        rows: JSON lines of parallel rows.
        folder: for prepared rows and output; a run after a `fill` finds its caches in it.
        patch: sets attributes to switch savings off.

    Returns:
        What the run's kind measures.
    """
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    file = folder / "config.yml"
    file.write_text(json.dumps(config(run, model_folder, rows, folder)))  # JSON is YAML
    cfg = load_cfg(str(file))
    switch_off(run.off, patch)
    meta = (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)
    trainer, model, *_ = setup_model_and_trainer(cfg, meta)
    if run.kind == "train":
        return _train(run, cfg, trainer, model, rows)
    return {"fill": _fill, "startup": _start, "curve": _losses, "profile": _profile}[run.kind](trainer, patch)


def _train(run: Run, cfg: Any, trainer: Any, model: Any, rows: Path) -> dict[str, Any]:
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    rate_before = floor.rate(model, dtype)  # and once more after, as what else the machine does changes it
    before = _start_counting_memory(run.device, model, getattr(trainer, "ref_model", None))
    start = floor.seconds(run.device)
    trainer.train()
    seconds = floor.seconds(run.device) - start
    peak = _peak(run.device) - before
    tokens = floor.count_tokens(cfg, rows, sft=run.name == "sft")
    operations = floor.operations(run, model, tokens)
    return {
        "seconds": seconds,
        "seconds_floor": operations / mean([rate_before, floor.rate(model, dtype)]),
        "operations": operations,
        "peak": peak,
        "peak_floor": floor.memory(run, model, tokens),
        "model": _size(model),
        "tokens": tokens.all,
    }


def _start_counting_memory(device: str, model: Any, second_model: Any) -> float:
    """MiB of the process with the model alone; from here the peak counts, and a second model counts with it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return _size(model)
    with suppress(OSError, AttributeError):  # what is free but not given back would hide the first part of the peak
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS") - (_size(second_model) if second_model is not None else 0)


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _resident("VmHWM")


def _size(model: Any) -> float:
    """MiB."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def _resident(name: str) -> float:
    """MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


class _AtFirstStep(TrainerCallback):
    class Reached(Exception):
        pass

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        raise self.Reached


def _fill(trainer: Any, patch: Patch) -> dict[str, Any]:
    """Leave caches behind as a run of CLO would; what is in the reference's does not matter to who reads it."""
    from axolotl_clo.scoring import ScoringTrainer

    patch(ScoringTrainer, "_score", lambda _s, _m, _d, indices, *_: [(i, torch.zeros(2, 2)) for i in indices])
    return _start(trainer, patch)


def _start(trainer: Any, _patch: Patch) -> dict[str, Any]:
    """Seconds of the processor from the start of this process to the first step."""
    trainer.add_callback(_AtFirstStep())
    with suppress(_AtFirstStep.Reached):
        trainer.train()
    return {"seconds": time.process_time()}


def _losses(trainer: Any, _patch: Patch) -> dict[str, Any]:
    found: list[float] = []
    compute = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        found.append(float(loss))
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    return {"losses": found}


class _Profiled(TrainerCallback):
    def __init__(self, profiler: Any) -> None:
        self.profiler = profiler

    def on_step_begin(self, _args: Any, state: Any, *_more: Any, **_kwargs: Any) -> None:
        if state.global_step == PROFILED_STEP - 1:
            self.profiler.start()

    def on_step_end(self, _args: Any, state: Any, *_more: Any, **_kwargs: Any) -> None:
        if state.global_step == PROFILED_STEP:
            self.profiler.stop()


def _profile(trainer: Any, _patch: Patch) -> dict[str, Any]:
    """Operators of the second step, the first that has nothing to set up, by their own time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities)
    trainer.add_callback(_Profiled(profiler))
    trainer.train()
    clock = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    operators = sorted(profiler.key_averages(), key=lambda one: -getattr(one, clock))
    total = sum(getattr(one, clock) for one in operators)
    rows = [[one.key, one.count, getattr(one, clock) / 1e3, getattr(one, clock) / total] for one in operators]
    return {"operators": rows[:SHOWN_OPERATORS], "milliseconds": total / 1e3}


if __name__ == "__main__":
    main()
