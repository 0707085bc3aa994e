"""Checkpoints that survive bad days: only whole ones are resumed from, and one is written when the scheduler calls."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl.utils.logging import get_logger
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback

from axolotl_clo.faults import OnAnyRankBefore

LOG = get_logger(__name__)

# What each rank writes: its random state; DeepSpeed's parts of the optimizer and, under ZeRO-3, of the weights.
_RANDOM_STATE = re.compile(r"rng_state_(\d+)\.pth")
_SHARD = re.compile(r"((?:\w+_)?zero_pp_rank_)(\d+)(_mp_rank_\d+_(?:model|optim)_states\.pt)")

TERMINATED = 128 + signal.SIGTERM  # the exit status of a process that SIGTERM ends, as shells have it


def problem_of(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint's folder, or None.

    Seen are: files cut short that have an end to look for (`.safetensors`, `.json`, what `torch.save` writes) or whose
    length the index of PyTorch's distributed checkpoints tells; shards that an index names and that are not there; and
    parts of ranks: a gap in their numbers, and with DeepSpeed another number of parts of the optimizer than of the
    weights or of random states. That every rank wrote its part is what trainer_state.json says, see
    `LongRunTrainer._save_rng_state`.

    Not seen are: bytes that changed, the random states of the last ranks where nothing else counts ranks, and
    DeepSpeed's parts of the optimizer where all are gone and its stage keeps the weights whole. How many processes
    there are now plays no part, as training may go on with another number of them.
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
    return _missing_of_ranks(checkpoint) or _problem_of_distributed(checkpoint)


def _missing_of_ranks(checkpoint: Path) -> str | None:
    """What is missing of the files that each rank writes, or None."""
    ranks = {int(found[1]) for file in checkpoint.iterdir() if (found := _RANDOM_STATE.fullmatch(file.name))}
    if missing := _gap(ranks):
        return f"rng_state_{missing[0]}.pth is missing"
    for folder in {file.parent for file in checkpoint.rglob("*_states.pt")}:
        parts: dict[str, set[int]] = defaultdict(set)  # by all of a file's name but the rank
        for file in folder.iterdir():
            if found := _SHARD.fullmatch(file.name):
                parts[f"{found[1]}{{}}{found[3]}"].add(int(found[2]))
        optimizer = [name for name in parts if name.endswith("_optim_states.pt")]
        if not optimizer and parts:
            return f"all of {folder.name}/*_optim_states.pt are missing"
        # Each rank of a model-parallel group has weights of its own, and its part of the optimizer is shared by others.
        groups = len(optimizer)
        shards = max([len(ranks) // groups if groups else 0, *(max(numbers) + 1 for numbers in parts.values())])
        for name, numbers in sorted(parts.items()):
            if missing := _gap(numbers, shards):
                return f"{folder.name}/{name.format(missing[0])} is missing"
        if ranks and groups and len(ranks) < shards * groups:
            return f"rng_state_{len(ranks)}.pth is missing"
    return None


def _gap(numbers: set[int], count: int = 0) -> list[int]:
    """Which numbers from 0 are missing, up to the largest or to a count."""
    return sorted(set(range(max([count - 1, *numbers]) + 1)) - numbers)


def _problem_of_distributed(checkpoint: Path) -> str | None:
    """What is missing of PyTorch's distributed checkpoints in a folder, as their index has it, or None."""
    for folder in sorted({file.parent for file in checkpoint.rglob("*.distcp")}):
        index = folder / ".metadata"  # written last, and under another name until then
        if not index.exists():
            return f"{index.relative_to(checkpoint)} is missing"
        from torch.distributed.checkpoint import FileSystemReader

        try:
            places = (FileSystemReader(folder).read_metadata().storage_data or {}).values()
        except Exception:  # whatever PyTorch says of half an index
            return f"{index.relative_to(checkpoint)} is cut short"
        ends: dict[str, int] = defaultdict(int)
        for place in places:
            ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
        for name, end in sorted(ends.items()):
            file = folder / name
            if not file.exists():
                return f"{file.relative_to(checkpoint)} is missing"
            if file.stat().st_size < end:
                return f"{file.relative_to(checkpoint)} is cut short"
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
        ValueError: it could not be written, or something that comes after it failed; then it stays.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save
            raise
        if problem_of(checkpoint) is None:  # then it was a copy, an upload or the removal of an older one
            raise ValueError(
                f"{checkpoint} is written and whole, but what comes after that failed ({error}); resume from it once "
                "the cause is gone"
            ) from error
        if tidy:
            shutil.rmtree(checkpoint, ignore_errors=True)
        earlier = last_whole(checkpoint.parent)
        raise ValueError(
            f"{checkpoint} could not be written ({error}); make room there or set another `output_dir`. "
            + (f"{earlier} is whole: resume from it" if earlier else "No checkpoint before it is there")
        ) from error


class CheckpointOnSigterm(TrainerCallback):
    """Writes a checkpoint and ends training once a scheduler has sent SIGTERM to any rank.

    One process does so at the end of the step in which it comes, several ranks at the end of the next.
    """

    def __init__(self) -> None:
        self.called = self.stopped = False
        self._anywhere = OnAnyRankBefore()
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            # A scheduler and a launcher may both send it; the second must not interrupt the checkpoint.
            self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "called", True))

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        # What is asked at the end of one step is answered at the end of the next, alike on all ranks.
        if self.stopped or state.global_step >= state.max_steps:
            return
        if self._anywhere.ask(self.called, args.device):
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        self._anywhere.answer()  # or the last question would outlive the processes it went to
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
