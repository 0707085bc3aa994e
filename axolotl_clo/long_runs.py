"""Training for many hours on machines with bad days: resume, SIGTERM, memory, full disks, losses without a value."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from axolotl.utils.logging import get_logger
from transformers.trainer_utils import get_last_checkpoint

from axolotl_clo.checkpoints import TERMINATED, CheckpointOnSigterm, problem_of, whole_checkpoint, written_whole
from axolotl_clo.faults import StepSkipper, data_expected, memory_explained, nonfinite_rows
from axolotl_clo.logprobs import Batch
from axolotl_clo.loss import CLOTerms
from axolotl_clo.scoring import ScoringTrainer

LOG = get_logger(__name__)


class LongRunTrainer(ScoringTrainer):
    """A trainer whose runs end with a message and go on from where they were."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Kept by `compute_loss`: what the loss of a micro-batch is made of, metrics with it and before it.
        self._terms_of_step: CLOTerms | None = None
        self._sums: torch.Tensor | None = None
        self._sums_before: torch.Tensor | None = None
        self._on_sigterm, self._skipper = CheckpointOnSigterm(), StepSkipper()
        self.add_callback(self._on_sigterm)
        self.add_callback(self._skipper)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, from the last whole checkpoint where one is to be resumed from.

        Raises:
            SystemExit: SIGTERM came; a checkpoint is written, and the status is 143.
        """
        by_itself = resume_from_checkpoint is True or bool(self.axolotl_cfg.auto_resume_from_checkpoints)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            resume_from_checkpoint = whole_checkpoint(resume_from_checkpoint, by_itself)
        self._skipper.enabled = self.clo.nonfinite_loss == "skip"
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self._on_sigterm.stopped:
            LOG.warning(
                "clo: SIGTERM came; checkpoint-%d is written. The same command goes on from it with "
                "`auto_resume_from_checkpoints: true`",
                self.state.global_step,
            )
            sys.exit(TERMINATED)
        return result

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device) -> Any:
        if self.accelerator.num_processes == 1:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        with data_expected(self.accelerator.process_index, self.args.ddp_timeout):
            batches = list(islice(epoch_iterator, num_batches))
        # Counting what they hold waits for the other ranks, one of which may be the one without data.
        return super().get_batch_samples(iter(batches), num_batches, device)

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        with memory_explained(inputs, self.accelerator.process_index, self.state.global_step):
            loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        # The Trainer looks at this value next, so looking here makes nobody wait.
        if not torch.isfinite(loss):
            self._report_nonfinite(loss, inputs)
        return loss

    def _report_nonfinite(self, loss: torch.Tensor, inputs: Batch) -> None:
        assert self._terms_of_step is not None  # nosec B101 # tells the type checker
        assert self._sums is not None  # nosec B101 # tells the type checker
        found = (
            f"the loss of step {self.state.global_step + 1} is {loss.item()} on rank {self.accelerator.process_index}: "
            f"{nonfinite_rows(self._terms_of_step, inputs)}"
        )
        if self.clo.nonfinite_loss == "stop":
            raise ValueError(
                f"{found}. A lower `learning_rate` or float32 may help, or the rows are at fault; "
                "`clo.nonfinite_loss: skip` leaves such steps out"
            )
        LOG.warning("clo: %s", found, main_process_only=False)
        # Or no metric until the next log would be a number; zeros, as this rank must add to the others' all the same.
        self._sums = torch.zeros_like(self._sums) if self._sums_before is None else self._sums_before
        self._skipper.asked = True

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last that each rank writes: trainer_state.json, which the first one writes next, says that all are done.
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: Any, trial: Any, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists() and problem_of(folder) is not None:
            shutil.rmtree(folder)  # left by a run that was killed, maybe with parts of more ranks than there are now
        self.accelerator.wait_for_everyone()
        with written_whole(folder, tidy=self.args.should_save):
            super()._save_checkpoint(model, trial, **kwargs)
