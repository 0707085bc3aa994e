"""Everything `axolotl-clo inspect CONFIG` tells, as one dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axolotl_clo import output_head
from axolotl_clo.batches import REFERENCE_BATCHES, TokenBatchSampler
from axolotl_clo.inspection import duration
from axolotl_clo.inspection.config import Engine, engine_of, loaded
from axolotl_clo.inspection.memory import FLOAT32, Memory, Model, estimate, optimizer_bytes, piece_of_logits
from axolotl_clo.inspection.model import (
    Matrices,
    Structure,
    build,
    largest_block,
    matrices,
    quantized_bytes,
    real_model,
    set_checkpointing,
    weight_bytes,
)
from axolotl_clo.inspection.rows import Lengths, sequences, token_counts
from axolotl_clo.inspection.simulate import Way, as_fake, fake_batch, fake_tensors, scoring_pass, training_step
from axolotl_clo.precision import computes_in_half
from axolotl_clo.schema import CLOConfig

# What a model's forward may raise on tensors without contents.
UNABLE = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, KeyError, IndexError)

Say = Callable[[str], None]


def inspect_run(
    file: str | Path,
    *,
    samples: int = 1,
    gpus: int | None = None,
    zero: str | None = None,
    calibrate: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """What a run will do and cost.

    Args:
        file: config with `rl: clo`.
        samples: rows to show as token sequences.
        gpus: how many the run is planned for; default: one process.
        zero: `0` to `3` or `fsdp`, instead of what the config says.
        calibrate: load the model and time a few real steps on this machine.
        say: is told what takes long.

    Returns:
        `config`, `model`, `rows`, `samples`, `tokens`, `steps`, `memory`, `time` and `notes`; all plain values.

    Raises:
        ValueError: the config, the model or the rows cannot be used.
    """
    path = Path(file)
    with loaded(path, gpus) as (cfg, notes):
        engine = engine_of(cfg, gpus, zero)
        run = _Run(cfg, engine, notes, say, like_gpu=bool(gpus) or torch.cuda.is_available())
        found: dict[str, Any] = {"config": run.config(path)}
        structure = build(cfg, run.scope(), keeps_float32=engine.zero is None and computes_in_half(cfg))
        found["model"] = run.model(structure)
        found |= {"rows": run.rows(), "samples": run.samples(samples), "tokens": run.tokens(), "steps": run.steps()}
        with fake_tensors(run.like_gpu) as mode:
            as_fake(structure.model)
            found["memory"] = run.memory(mode, structure)
        found["time"] = run.time(matrices(structure.model), structure, calibrate)
        return found | {"notes": notes}


@dataclass
class _Run:
    cfg: Any
    engine: Engine
    notes: list[str]
    say: Say
    like_gpu: bool

    def __post_init__(self) -> None:
        clo = CLOConfig.from_cfg(self.cfg)
        assert clo is not None  # nosec B101 # tells the type checker
        self.clo = clo

    def config(self, file: Path) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "file": str(file),
            "base_model": cfg.base_model,
            "languages": [self.clo.source_lang, *self.clo.target_langs],
            "adapter": cfg.adapter or None,
            "dtype": str(cfg.torch_dtype).removeprefix("torch."),
            "engine": self.engine.name,
            "gpus": self.engine.gpus,
        }

    def scope(self) -> str:
        """`clo.train_modules`; only to find out what `auto` stands for are weights loaded."""
        if self.clo.train_modules != "auto":
            return self.clo.train_modules
        from axolotl_clo.scope import resolve_scope

        self.say(f"Loading the weights of {self.cfg.base_model}: clo.train_modules: auto measures them")
        with real_model(self.cfg) as model:
            found = resolve_scope(self.cfg, model)
        self.cfg.clo.train_modules = found
        self.notes.append(f"clo.train_modules: auto was measured on the weights, and trains {found}")
        return found

    # ---- rows ----

    def rows(self) -> dict[str, Any]:
        from axolotl.common.datasets import load_datasets
        from axolotl.loaders import load_tokenizer

        from axolotl_clo.cross_lingual import row_reports

        self.tokenizer = load_tokenizer(self.cfg)
        with row_reports() as reports, _unsaved():
            meta = load_datasets(cfg=self.cfg)
        self.dataset = meta.train_dataset
        self.lengths = Lengths.of(self.dataset)
        self.batches = self._batches()
        return {
            "datasets": [
                {**asdict(one), "path": path} for one, path in zip(reports, self._paths(reports), strict=False)
            ],
            "train": len(self.dataset),
            "held_out": len(meta.eval_dataset) if meta.eval_dataset is not None else 0,
        }

    def _paths(self, reports: list[Any]) -> list[str]:
        entries = {held: [entry["path"] for entry in self.cfg[name] or []] for held, name in _OPTIONS}
        return [entries[one.held_out].pop(0) if entries[one.held_out] else "" for one in reports]

    def _batches(self) -> list[list[int]]:
        """Micro-batches of an epoch; by examples, in one of the orders that shuffling may give."""
        size, budget = self.cfg.micro_batch_size, self.clo.tokens_per_batch
        if not budget:
            return [list(range(i, min(i + size, len(self.dataset)))) for i in range(0, len(self.dataset), size)]
        lengths = self.lengths.packed
        if lengths.max() > budget:
            raise ValueError(
                f"clo.tokens_per_batch: {budget} is less than {lengths.max()}, the tokens of row "
                f"{self.dataset[int(lengths.argmax())]['row']}, which stay together; set it to {lengths.max()} or more"
            )
        return list(TokenBatchSampler(lengths.tolist(), budget, ranks=self.engine.gpus))

    def samples(self, count: int) -> list[dict[str, Any]]:
        places = sorted({len(self.dataset) * i // count for i in range(count)}) if count else []
        shown = []
        for place in places:
            row = self.dataset[place]
            found = sequences(self.tokenizer, row, self.clo)
            shown.append({"row": row["row"], "sequences": [_plain(sequence) for sequence in found]})
        return shown

    def tokens(self) -> dict[str, Any]:
        return token_counts(self.lengths, self.batches)

    def steps(self) -> dict[str, Any]:
        cfg, devices = self.cfg, self.engine.gpus
        accumulated, epochs = cfg.gradient_accumulation_steps, cfg.num_epochs
        if self.clo.tokens_per_batch:
            found = duration.steps_by_batches(len(self.batches), accumulated, devices, epochs, cfg.max_steps)
        else:
            per_step = cfg.micro_batch_size * accumulated * devices
            found = duration.steps_by_examples(len(self.dataset), per_step, epochs, cfg.max_steps)
        self.found_steps = found
        return {
            **asdict(found),
            "micro_batches": len(self.batches),
            "rows_per_step": len(self.dataset) / found.per_epoch,
        }

    # ---- model and memory ----

    def model(self, structure: Structure) -> dict[str, Any]:
        counts = structure.parameters()
        if structure.cannot_share:
            self.notes.append(f"prompts are not shared between responses: {structure.cannot_share}")
        return {
            "class": type(structure.model.get_base_model() if self.cfg.adapter else structure.model).__name__,
            "train_modules": structure.train_modules,
            "layers": self.clo.layers,
            "parameters": {kind: {"trained": trained, "all": total} for kind, (trained, total) in counts.items()},
            "targets": structure.targets,
            "prompts_shared": structure.cannot_share is None,
            "why_not_shared": structure.cannot_share,
        }

    def memory(self, mode: Any, structure: Structure) -> dict[str, Any]:
        cfg = self.cfg
        sizes, way = self._sizes(structure), self._way(structure)
        rows = self._largest(structure)
        batch = fake_batch(mode, [self.dataset[i] for i in rows])
        chosen = bool(cfg.gradient_checkpointing)
        steps, failed = {}, None
        for on in (chosen, not chosen):
            try:
                set_checkpointing(cfg, structure.model, on)
                steps[on] = training_step(structure.model, batch, way)
            except UNABLE as error:
                failed = f"{type(error).__name__}: {error}".split("\n")[0]
        if chosen not in steps:
            self.notes.append(f"activations cannot be counted for this model ({failed}); memory is not estimated")
            return {"parts": None}
        set_checkpointing(cfg, structure.model, False)
        estimates = {
            on: self._estimate(sizes, step, self._reference(mode, structure, way)) for on, step in steps.items()
        }
        optimizer = str(getattr(cfg.optimizer, "value", cfg.optimizer))
        if not optimizer_bytes(optimizer, sizes)[1]:
            self.notes.append(f"optimizer: {optimizer} is taken to keep what AdamW keeps")
        vocabulary = structure.model.config.get_text_config().vocab_size
        piece = output_head.PIECE["other" if self.like_gpu else "cpu"]
        scored = int(self.lengths.scored[rows].sum())
        return {
            "parts": asdict(estimates[chosen]),
            "checkpointing": chosen,
            "activations": {("with" if on else "without"): step.activations for on, step in steps.items()},
            "total": {("with" if on else "without"): one.total for on, one in estimates.items()},
            "logits": piece_of_logits(vocabulary, piece, scored, way.in_pieces),
            "batch": {"rows": len(rows), "tokens": int(self._laid_out(structure)[rows].sum())},
            "optimizer": optimizer,
        }

    def _sizes(self, structure: Structure) -> Model:
        model, quantized = structure.model, quantized_bytes(self.cfg)
        trained = [p for p in model.parameters() if p.requires_grad]
        count, own = sum(p.numel() for p in trained), sum(p.nbytes for p in trained)
        block, matrix = largest_block(model), max(p.nbytes for p in model.parameters())
        found = Model(weight_bytes(model, quantized), own, count, block, matrix if quantized else 0)
        if self.engine.zero == "fsdp" and (self.cfg.bf16 or self.cfg.fp16):
            # Accelerate keeps what trains in float32 there.
            more = FLOAT32 * count - own
            found = replace(found, weights=found.weights + more, trained=own + more)
        return found

    def _way(self, structure: Structure) -> Way:
        cfg = self.cfg
        mixed = torch.bfloat16 if cfg.bf16 else torch.float16 if cfg.fp16 else None
        return Way(
            shared=structure.cannot_share is None,
            in_pieces=self.engine.zero != "3",
            autocast=mixed,
            accumulates=cfg.gradient_accumulation_steps > 1,
            adapter_off=self.clo.needs_reference and self.clo.reference == "adapter",
        )

    def _laid_out(self, structure: Structure) -> np.ndarray:
        return self.lengths.shared if structure.cannot_share is None else self.lengths.packed

    def _largest(self, structure: Structure) -> list[int]:
        """The rows of the largest micro-batch that there can be."""
        laid_out = self._laid_out(structure)
        if self.clo.tokens_per_batch:
            return max(self.batches, key=lambda rows: int(laid_out[rows].sum()))
        return [int(i) for i in np.argsort(-laid_out, kind="stable")[: self.cfg.micro_batch_size]]

    def _reference(self, mode: Any, structure: Structure, way: Way) -> int:
        """Bytes of scoring the reference in its largest batch."""
        if not self.clo.needs_reference or self.clo.reference == "adapter":
            return 0
        longest = [int(i) for i in np.argsort(-self.lengths.packed, kind="stable")]
        times = REFERENCE_BATCHES if self.like_gpu else 1
        rows = longest[: self.cfg.eval_batch_size * times]
        if self.clo.tokens_per_batch:
            rows = max(self.batches, key=len) * times
        return scoring_pass(structure.model, fake_batch(mode, [self.dataset[i] for i in rows]), way)

    def _estimate(self, sizes: Model, step: Any, reference: int) -> Memory:
        name = str(getattr(self.cfg.optimizer, "value", self.cfg.optimizer))
        foreach = self.like_gpu and "fused" not in name and "8bit" not in name
        return estimate(sizes, self.engine, name, step, reference, self._bucket(sizes), foreach)

    def _bucket(self, sizes: Model) -> int:
        """DeepSpeed's buffer of gradients on their way, at its default of 5e8 numbers, no more than there are."""
        zero = self.engine.zero
        return min(sizes.trained, round(5e8 * sizes.trained / sizes.trained_count)) if zero in ("1", "2", "3") else 0

    # ---- time ----

    def time(self, products: Matrices, structure: Structure, calibrate: bool) -> dict[str, Any]:
        laid_out, scored = int(self._laid_out(structure).sum()), int(self.lengths.scored.sum())
        epochs = self.found_steps.epochs
        reference = self.clo.needs_reference
        found: dict[str, Any] = {
            "operations": duration.operations(products, laid_out, scored, epochs, reference),
            "seconds": None,
            "calibration": None,
        }
        if calibrate:
            from axolotl_clo.inspection.calibrate import calibrate as measure

            self.say(f"Loading {self.cfg.base_model} and training it for a few steps")
            measured = measure(self.cfg, self.dataset)
            tokens = self.tokens()["layouts"][measured.layout]
            found["seconds"] = measured.seconds(tokens, epochs, self.found_steps.total, self.engine.gpus)
            found["calibration"] = asdict(measured)
        return found


@contextmanager
def _unsaved() -> Iterator[None]:
    """Prepared rows are only looked at; Axolotl would start processes to save them."""
    from axolotl.utils.data import sft

    save = sft.save_preprocessed_dataset
    sft.save_preprocessed_dataset = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        sft.save_preprocessed_dataset = save


_OPTIONS = ((False, "datasets"), (True, "test_datasets"))


def _plain(sequence: Any) -> dict[str, Any]:
    found = asdict(sequence)
    for part in ("prompt", "response"):
        found[part] = [piece._asdict() for piece in getattr(sequence, part)]
    return found
