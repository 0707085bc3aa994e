"""Checkpoints that survive bad days: only whole ones are resumed from, and one is written when the scheduler calls."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl.utils.logging import get_logger
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from axolotl_clo.faults import on_any_rank

LOG = get_logger(__name__)

TERMINATED = 128 + signal.SIGTERM  # the exit status of a process that SIGTERM ends, as shells have it


def problem_of(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint's folder, or None.

    Every file is looked at that has an end to look for, whether the Trainer, DeepSpeed or PyTorch's distributed
    checkpoints wrote it: one that was cut short lacks it.
    """
    if not checkpoint.is_dir():
        return "it is not there"
    if (checkpoint / "checkpoint-is-incomplete.txt").exists():
        return "it was not finished"
    for file in sorted(checkpoint.rglob("*")):
        if problem := _problem_of_file(file):
            return f"{file.relative_to(checkpoint)} {problem}"
    if not (checkpoint / "trainer_state.json").exists():  # written last
        return "trainer_state.json is missing"
    index = checkpoint / "model.safetensors.index.json"
    if index.exists():
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (checkpoint / name).exists():
                return f"{name} is missing"
    latest = checkpoint / "latest"  # DeepSpeed's
    if latest.exists() and not (checkpoint / latest.read_text().strip()).is_dir():
        return f"{latest.read_text().strip()} is missing"
    return None


def _problem_of_file(file: Path) -> str | None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                pass
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
            return "is cut short"
    except (SafetensorError, ValueError):
        return "is cut short"
    except OSError as error:
        return f"cannot be read ({error})"
    return None


def last_whole(checkpoints: Path, before: Path | None = None) -> Path | None:
    """The last checkpoint below a folder that training can go on from, if given one that comes before another."""
    found = {int(n): p for p in checkpoints.glob("checkpoint-*") if (n := p.name.rpartition("-")[2]).isdigit()}
    limit = int(before.name.rpartition("-")[2]) if before is not None else float("inf")
    return next((found[n] for n in sorted(found, reverse=True) if n < limit and problem_of(found[n]) is None), None)


def whole_checkpoint(checkpoint: str | Path, found_by_itself: bool) -> str | None:
    """The checkpoint to resume from: the one given, or the last whole one before it.

    Args:
        checkpoint: folder `checkpoint-N`.
        found_by_itself: nobody named it; it is the last one in the output folder.

    Raises:
        ValueError: the user named it, and it is not whole.
    """
    folder = Path(checkpoint)
    problem = problem_of(folder)
    if problem is None:
        return str(folder)
    numbered = folder.name.startswith("checkpoint-") and folder.name.rpartition("-")[2].isdigit()
    earlier = last_whole(folder.parent, before=folder if numbered else None)
    if not found_by_itself:
        raise ValueError(
            f"resume_from_checkpoint: {folder} cannot be resumed from, as {problem}; "
            + (f"{earlier} can" if earlier else "no checkpoint beside it can")
        )
    goes_on = f"training goes on from {earlier}" if earlier else "no earlier one is whole: training begins anew"
    LOG.warning("clo: %s is passed over, as %s; %s", folder, problem, goes_on)
    return str(earlier) if earlier else None


@contextmanager
def written_whole(checkpoint: Path, tidy: bool) -> Iterator[None]:
    """Leave no half of a checkpoint behind when writing it fails.

    Args:
        checkpoint: its folder.
        tidy: this rank is the one that removes it.

    Raises:
        ValueError: it could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save
            raise
        if tidy:
            shutil.rmtree(checkpoint, ignore_errors=True)
        earlier = last_whole(checkpoint.parent)
        raise ValueError(
            f"{checkpoint} could not be written ({error}); make room there or set another `output_dir`. "
            + (f"{earlier} is whole: resume from it" if earlier else "No checkpoint before it is there")
        ) from error


class CheckpointOnSigterm(TrainerCallback):
    """Writes a checkpoint and ends training at the end of the step in which a scheduler sends SIGTERM to any rank."""

    def __init__(self) -> None:
        self.called = self.stopped = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            # A scheduler and a launcher may both send it; the second must not interrupt the checkpoint.
            self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "called", True))

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if on_any_rank(self.called, args.device) and not self.stopped and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
