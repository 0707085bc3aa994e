"""A few real steps through Axolotl's own train path, timed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axolotl_clo.inspection.duration import Calibration

STEPS = 4
"""Optimizer steps; the first, which warms up, is not timed."""

# More would be the same again; gradients of one micro-batch while the next is computed change the memory.
MOST_ACCUMULATED = 2

_TRACKERS = ("use_wandb", "use_mlflow", "use_comet", "use_trackio", "use_tensorboard")
_ENGINES = ("deepspeed", "fsdp", "fsdp_config", "fsdp_version")


def calibrate(cfg: Any, dataset: Any) -> Calibration:
    """Load the model and train it for `STEPS` steps in this process, on rows of all lengths.

    Args:
        cfg: of Axolotl, validated; changed on the way. DeepSpeed and FSDP are left out.
        dataset: tokenized rows.
    """
    from axolotl.common.datasets import TrainDatasetMeta
    from axolotl.train import setup_model_and_trainer

    _prepare(cfg)
    rows = _spread(dataset, cfg)
    trainer, model, *_ = setup_model_and_trainer(cfg, TrainDatasetMeta(rows, None, STEPS))
    watch = _Watch(trainer)
    before = _start_peak(model)
    trainer.train()
    return watch.result(model, before)


def _prepare(cfg: Any) -> None:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        if name != "ACCELERATE_USE_CPU":
            del os.environ[name]
    for name in (*_TRACKERS, *_ENGINES):
        cfg[name] = None
    cfg.gradient_accumulation_steps = min(cfg.gradient_accumulation_steps, MOST_ACCUMULATED)
    cfg.batch_size = cfg.micro_batch_size * cfg.gradient_accumulation_steps
    cfg.max_steps, cfg.num_epochs = STEPS, STEPS
    cfg.save_strategy, cfg.eval_strategy = "no", "no"
    cfg.save_steps = cfg.eval_steps = cfg.saves_per_epoch = cfg.evals_per_epoch = None
    cfg.val_set_size, cfg.test_datasets = 0, None
    cfg.resume_from_checkpoint = cfg.auto_resume_from_checkpoints = None
    cfg.load_best_model_at_end = cfg.early_stopping_patience = cfg.hub_model_id = None
    cfg.logging_steps = STEPS + 1


def _spread(dataset: Any, cfg: Any) -> Any:
    """Rows of all lengths, as many as the steps take."""
    lengths = np.asarray(dataset["length"])
    per_batch = cfg.micro_batch_size
    if cfg.clo.tokens_per_batch:
        per_batch = max(1, int(cfg.clo.tokens_per_batch // lengths.mean()))
    wanted = min(len(lengths), STEPS * per_batch * cfg.gradient_accumulation_steps)
    ordered = np.argsort(lengths, kind="stable")
    return dataset.select(sorted(ordered[np.linspace(0, len(lengths) - 1, wanted).round().astype(int)]))


class _Watch:
    """Times micro-batches, optimizer steps and scoring of a trainer."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.trainer = trainer
        self.micro: list[tuple[int, float, int]] = []
        self.optimizer: list[float] = []
        self.reference: list[tuple[float, int]] = []
        training_step, score_batch = trainer.training_step, trainer._score_batch

        def timed_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            start = _now()
            loss = training_step(model, inputs, *args, **kwargs)
            self.micro.append((trainer.state.global_step, _now() - start, self._tokens(model, inputs)))
            return loss

        def timed_score(model: Any, batch: Any) -> Any:
            if torch.is_grad_enabled():
                return score_batch(model, batch)
            start = _now()
            found = score_batch(model, batch)
            self.reference.append((_now() - start, self._tokens(model, batch)))
            return found

        class Optimizer(TrainerCallback):
            def on_pre_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
                self.start = _now()

            def on_optimizer_step(callback, *_args: Any, **_kwargs: Any) -> None:
                self.optimizer.append(_now() - callback.start)

        trainer.training_step, trainer._score_batch = timed_step, timed_score
        trainer.add_callback(Optimizer())

    def _tokens(self, model: Any, batch: Any) -> int:
        layout = self.trainer._layouts[self.trainer.accelerator.unwrap_model(model)]
        return int((batch["first_copies"] if layout.shared else batch["input_ids"]).numel())

    def result(self, model: Any, before: int | None) -> Calibration:
        layout = self.trainer._layouts[self.trainer.accelerator.unwrap_model(self.trainer.model)]
        micro = [one for one in self.micro if one[0]] or self.micro
        reference = self.reference[1:] or self.reference  # the first batch is probed for its layout too
        if self.trainer.clo.reference == "adapter":
            reference = []  # part of every step
        optimizer = self.optimizer[1:] or self.optimizer
        return Calibration(
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            micro_seconds=sum(seconds for _, seconds, _ in micro),
            micro_tokens=sum(tokens for _, _, tokens in micro),
            optimizer_seconds=sum(optimizer) / max(len(optimizer), 1),
            reference_seconds=sum(seconds for seconds, _ in reference),
            reference_tokens=sum(tokens for _, tokens in reference),
            layout="shared" if layout.shared else "packed" if layout.packed else "padded",
            peak=_peak_above(before),
        )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- memory ----

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _start_peak(model: Any) -> int | None:
    """Let the peak count from here; returns the bytes that are there."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    for parameter in model.parameters():
        parameter.detach().sum()  # weights mapped from a file are only resident once read
    try:
        _CLEAR.write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def _peak_above(before: int | None) -> int | None:
    if before is None:
        return None
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() - before
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
