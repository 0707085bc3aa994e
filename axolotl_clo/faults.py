"""What goes wrong in the steps of a long run, told so that the user knows what to change."""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from axolotl.utils.logging import get_logger
from transformers import TrainerCallback

from axolotl_clo.logprobs import Batch
from axolotl_clo.loss import CLOTerms

LOG = get_logger(__name__)

# What PyTorch says when the CPU's memory ends; a GPU has an exception of its own.
_NO_MEMORY = "can't allocate memory"
# Of the limit of collectives, so that the rank that waits for its data is heard before those that wait for it.
_PATIENCE = 0.9
_SHOWN = 20  # rows that a message names


@contextmanager
def memory_explained(batch: Batch, rank: int, step: int) -> Iterator[None]:
    """Say in an out-of-memory error on which batch it came and what helps.

    Raises:
        RuntimeError: memory ended; the original message stands at the end.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _NO_MEMORY not in str(error):
            raise
        raise RuntimeError(
            f"rank {rank} ran out of memory in step {step + 1}, in a micro-batch of "
            f"{len(batch['response_lengths'])} rows and {batch['input_ids'].numel()} tokens{_rows(batch)}; lower "
            "`micro_batch_size` (and raise `gradient_accumulation_steps`), set `clo.tokens_per_batch`, turn on "
            f"`gradient_checkpointing`, or lower `sequence_len`. {error}"
        ) from error


def nonfinite_rows(terms: CLOTerms, batch: Batch) -> str:
    """Which examples of a batch have a loss that is no number, in words."""
    bad = ~(terms.nll.isfinite() & terms.preference.isfinite().all(-1))
    if bad.all():
        return f"every example of the micro-batch{_rows(batch)}"
    return f"{int(bad.sum())} of {len(bad)} examples{_rows(batch, bad)}"


def _rows(batch: Batch, chosen: torch.Tensor | None = None) -> str:
    rows = batch.get("row")
    if rows is None:
        return ""
    kept = [True] * len(rows) if chosen is None else chosen.tolist()
    ids = batch.get("id") or [""] * len(rows)
    return f" ({named_rows(list(compress(rows.tolist(), kept)), list(compress(ids, kept)))})"


def named_rows(numbers: Sequence[int], ids: Sequence[str] = ()) -> str:
    """Rows for a message, by number and, where they have any, by `id`: `rows 5 (id q-17), 8 of the dataset`."""
    shown = [
        f"{number} (id {' '.join(name.split())[:80]})" if name else str(number)
        for number, name in zip_longest(numbers[:_SHOWN], ids[:_SHOWN], fillvalue="")
    ]
    return f"rows {', '.join(shown)}{', …' if len(numbers) > _SHOWN else ''} of the dataset"


class StepSkipper(TrainerCallback):
    """Leaves out an optimizer step after a loss that is no number on any rank, once it is `enabled` on all of them."""

    def __init__(self) -> None:
        self.enabled = self.asked = False
        self.skipped = 0

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any = None, **_kwargs: Any
    ) -> None:
        if not self.enabled or not on_any_rank(self.asked, args.device):
            return
        self.asked = False
        self.skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # an optimizer passes over what has none; a gradient of 0 would still move it
        LOG.warning("clo: step %d is left out; %d so far", state.global_step + 1, self.skipped)


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether a flag is up on any rank; every rank must ask."""
    if not dist.is_initialized():
        return flag
    up = torch.tensor(float(flag), device=device)
    dist.all_reduce(up, op=dist.ReduceOp.MAX)
    return bool(up.item())


class OnAnyRankBefore:
    """Whether a flag was up on any rank when they asked last, so that no host waits for its device now.

    Every rank must ask as often. A process that is alone is answered at once.
    """

    def __init__(self) -> None:
        self._asked: tuple[torch.Tensor, Callable[[], Any]] | None = None

    def ask(self, flag: bool, device: torch.device) -> bool:
        """Ask with this rank's flag; returns the answer to the question before, False the first time."""
        if not dist.is_initialized():
            return flag
        before = self.answer()
        up = torch.full((), float(flag), device=device)  # a copied number would be waited for
        work = dist.all_reduce(up, op=dist.ReduceOp.MAX, async_op=True)
        if device.type == "cuda":
            work.wait()  # of the stream; the host goes on
            self._asked = up.to("cpu", non_blocking=True), torch.cuda.current_stream(device).record_event().synchronize
        else:
            self._asked = up, work.wait
        return before

    def answer(self) -> bool:
        """The answer to the last question, False where none is open."""
        if self._asked is None:
            return False
        (up, arrived), self._asked = self._asked, None
        arrived()
        return bool(up.item())


@contextmanager
def data_expected(rank: int, timeout: float) -> Iterator[None]:
    """End the process, with its name and where it stands, if its batches do not come; the others wait for it.

    Args:
        rank: to name.
        timeout: of collectives, in seconds.
    """
    patience = _PATIENCE * timeout

    def give_up() -> None:
        LOG.error(
            "clo: rank %d has waited %.0f s for a batch of data (ddp_timeout: %d); it ends",
            rank,
            patience,
            timeout,
            main_process_only=False,
        )
        faulthandler.dump_traceback(file=2)
        os._exit(1)

    timer = threading.Timer(patience, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
