"""Scores of sequences under the policy and under the model before training, for the trainer.

The reference is taken from the live model at its weights before training, so no second model is loaded, and kept in
a `ReferenceCache`. Which weights those are depends on the moment and on the engine; all of that is here.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from axolotl_clo.batches import REFERENCE_BATCHES, pack
from axolotl_clo.checkpointing import checkpoint_what_trains
from axolotl_clo.collator import CLOCollator
from axolotl_clo.faults import named_rows
from axolotl_clo.logprobs import (
    Batch,
    Yardstick,
    first_example,
    packing_is_exact,
    pieces_are_exact,
    sequence_log_probs,
    yardstick,
)
from axolotl_clo.loss import LogProbs
from axolotl_clo.output_head import let_score
from axolotl_clo.reference import ReferenceCache, ReferenceRecord, model_key, row_digests
from axolotl_clo.schema import CLOConfig
from axolotl_clo.shared_prompts import set_attention, share_prompts

LOG = get_logger(__name__)


class Layout(NamedTuple):
    """How a model scores a batch: the leanest way that a probe found exact."""

    packed: bool
    shared: bool
    in_pieces: bool


class ScoringTrainer(AxolotlTrainer):
    """Axolotl's causal trainer, with log-probabilities of the four sequences of a row."""

    train_dataset: Any
    eval_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._layouts: WeakKeyDictionary[Any, Layout] = WeakKeyDictionary()
        self._reference_cache: ReferenceCache | None = None
        self._record: ReferenceRecord | None = None
        let_score(_innermost(self.model))

    @property
    def clo(self) -> CLOConfig:
        clo = CLOConfig.from_cfg(self.axolotl_cfg)
        assert clo is not None  # nosec B101 # tells the type checker
        return clo

    # ---- a batch ----

    def log_probs(self, model: Any, inputs: Batch) -> LogProbs:
        """Log-probabilities of a batch under policy and reference; gradients reach the policy's alone."""
        policy = self._score_batch(model, inputs)
        reference = inputs.get("reference_log_probs")
        if reference is None and self.clo.needs_reference:
            reference = self._without_adapter(model, inputs)
        return LogProbs(policy=policy, reference=reference, lengths=inputs["response_lengths"])

    def _without_adapter(self, model: Any, inputs: Batch) -> torch.Tensor:
        with torch.no_grad(), self._plain(model).disable_adapter():
            return self._score_batch(model, inputs)

    def _score_batch(self, model: Any, batch: Batch) -> torch.Tensor:
        """Log-probabilities of the responses of a batch, `[examples, 2, 2]`, by the leanest layout that is exact."""
        inner = self._plain(model)  # the reference may be a model of its own
        if inner not in self._layouts:
            self._layouts[inner] = self._find_layout(getattr(model, "_orig_mod", model), self._example_to_try(batch))
        layout = self._layouts[inner]
        if layout.shared:
            batch = share_prompts(batch)
        return sequence_log_probs(model, batch, packed=layout.packed, in_pieces=layout.in_pieces)

    def _example_to_try(self, batch: Batch) -> Batch:
        """The first example of a batch; where ranks share the weights the same one on all, as they must keep step."""
        example = first_example(batch)
        if not self._is_sharded:
            return example
        examples = broadcast_object_list([send_to_device(example, "cpu")])
        shared: Batch = send_to_device(examples[0], self.args.device)
        return shared

    def _plain(self, model: Any) -> Any:
        """The model without what engines and `torch_compile` wrap around it."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def _find_layout(self, model: Any, example: Batch) -> Layout:
        """Try layouts on one example."""
        training = model.training
        model.eval()
        try:
            kind = type(self._plain(model)).__name__
            known = yardstick(model, example)
            in_pieces = self._scores_in_pieces(model, example, known)
            why_not = self._cannot_share(model, example, known)
            if why_not is None:
                LOG.info("clo: batches of %s hold each prompt once, without padding; the probe found it exact", kind)
                return Layout(packed=True, shared=True, in_pieces=in_pieces)
            LOG.info("clo: prompts are not shared between responses: %s", why_not)
            packed = packing_is_exact(model, example, known=known)
            if packed:
                LOG.info("clo: batches of %s are packed without padding; the probe found it exact", kind)
            else:
                LOG.warning("clo: packing is not exact for %s; batches are padded instead", kind)
            return Layout(packed=packed, shared=False, in_pieces=in_pieces)
        finally:
            model.train(training)

    def _scores_in_pieces(self, model: Any, example: Batch, known: Yardstick) -> bool:
        """Whether the output head is run on a part of the positions at a time."""
        if self._zero_stage == 3:
            # It gathers weights by hooks on modules and their gradients, which a gradient taken on the way would start.
            LOG.info("clo: logits of all response tokens are held at once under ZeRO-3")
            return False
        if pieces_are_exact(model, example, known):
            return True
        kind = type(self._plain(model)).__name__
        LOG.info("clo: logits of all response tokens are held at once, as %s cannot run its output head apart", kind)
        return False

    def _cannot_share(self, model: Any, example: Batch, known: Yardstick) -> str | None:
        if not self.clo.share_prompts:
            return "clo.share_prompts is false"
        inner = _innermost(self._plain(model))
        why_not = set_attention(inner, self.axolotl_cfg.sequence_len)
        if why_not is None and not packing_is_exact(model, example, share_prompts, known):
            why_not = "the probe found it inexact for this model"
        return why_not

    # ---- the reference ----

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; the reference is taken from the weights as they are before a checkpoint is loaded."""
        if not self._is_sharded:
            self._prepare_training_reference(self.model)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        checkpoint_what_trains(self.model)
        late = self._is_sharded and self._precomputes
        # Only a prepared engine can score, and preparing would load the checkpoint too: that comes after the reference.
        checkpoint = None if late else resume_from_checkpoint
        model, dataloader = super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        engine = type(model).__name__ + (f", ZeRO-{self._zero_stage}" if self._zero_stage else "")
        LOG.info("clo: %d processes train %s", self.accelerator.num_processes, engine)
        if late:
            self._prepare_training_reference(model)
            if resume_from_checkpoint is not None:
                self._load_into_engine(resume_from_checkpoint)
            dataloader = self.callback_handler.train_dataloader = self.get_train_dataloader()
        return model, dataloader

    def _load_into_engine(self, checkpoint: Any) -> None:
        """What `Trainer._prepare_for_training` does to resume under DeepSpeed and FSDP."""
        if self.is_deepspeed_enabled:
            strict = not hasattr(self.model, "peft_config")  # a checkpoint of an adapter lacks the rest
            deepspeed_load_checkpoint(self.model_wrapped, checkpoint, load_module_strict=strict)
        else:
            self._load_from_checkpoint(checkpoint, self.model_wrapped)
        self._load_optimizer_and_scheduler(checkpoint)
        self._load_scaler(checkpoint)

    @property
    def _precomputes(self) -> bool:
        return self.clo.needs_reference and self.clo.reference == "precompute"

    @property
    def _zero_stage(self) -> int:
        return int(getattr(self.accelerator.state.deepspeed_plugin, "zero_stage", 0))

    @property
    def _is_sharded(self) -> bool:
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _prepare_training_reference(self, model: Any) -> None:
        if not self._precomputes:
            return
        cfg = self.axolotl_cfg
        key = self._model_key(self.model, keep_adapter=bool(cfg.lora_model_dir))
        self._record = ReferenceRecord(key, base_model=cfg.base_model, lora_model_dir=cfg.lora_model_dir or None)
        if self.is_world_process_zero():
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            self._record.write(self.args.output_dir)
        self._reference_cache = self._open_cache(key)
        keep_adapter = bool(cfg.lora_model_dir)
        self.train_dataset = self._with_reference(self.train_dataset, model, keep_adapter)
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_reference(self.eval_dataset, model, keep_adapter)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; outside training the reference of a trained model is the model it was trained from."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if self._precomputes and "reference_log_probs" not in dataset.column_names:
            dataset = self._with_evaluation_reference(dataset)
        elif "example_index" not in dataset.column_names:
            dataset = dataset.add_column("example_index", list(range(len(dataset))))
        return super().evaluate(dataset, *args, **kwargs)

    def _with_evaluation_reference(self, dataset: Any) -> Any:
        cfg = self.axolotl_cfg
        record = ReferenceRecord.read(cfg.lora_model_dir if cfg.adapter else cfg.base_model)
        if record is not None and cfg.adapter and record.lora_model_dir is None:
            record = None  # trained as an adapter on weights that are still there under it
        cache = self._reference_cache = self._open_cache(record.key if record else self._model_key(self.model))
        if not _missing(cache, row_digests(dataset)):
            return self._with_reference(dataset, None)
        if self._is_sharded:
            raise ValueError(
                f"the reference of these rows is not in {cache.file}, and outside training it is computed with whole "
                "weights; evaluate once without `deepspeed` and `fsdp_config`, and it is kept there"
            )
        if record is None:
            return self._with_reference(dataset, self.model)
        model = self._load_reference_model(record)
        return self._with_reference(dataset, model, keep_adapter=record.lora_model_dir is not None)

    def _load_reference_model(self, record: ReferenceRecord) -> Any:
        """The model a trained model started from, for when its cached log-probabilities are gone."""
        from axolotl.loaders import ModelLoader

        LOG.info("clo: the reference cache is gone; loading %s to compute it again", record.base_model)
        cfg = self.axolotl_cfg.copy()
        cfg.base_model, cfg.base_model_config = record.base_model, record.base_model
        cfg.lora_model_dir = record.lora_model_dir
        if record.lora_model_dir is None:
            cfg.adapter = None
        try:
            model, _ = ModelLoader(cfg, self.processing_class).load()
        except OSError as error:
            raise ValueError(
                f"this model was trained from {record.base_model!r}, whose weights are needed as the reference and "
                f"cannot be loaded ({error}); put them back, or restore {self._cache_folder}"
            ) from error
        key = self._model_key(model, keep_adapter=record.lora_model_dir is not None)
        if key != record.key:
            raise ValueError(
                f"{record.base_model!r} does not hold the weights this model was trained from (they have changed, or "
                "dtype or quantization differ from the training run's); restore them or the reference cache in "
                f"{self._cache_folder}"
            )
        let_score(_innermost(model))
        return model.to(self.args.device)

    @property
    def _cache_folder(self) -> Path:
        return Path(self.axolotl_cfg.dataset_prepared_path) / "reference"

    def _open_cache(self, key: str) -> ReferenceCache:
        cache = ReferenceCache(self._cache_folder, key)
        if problem := cache.load():
            LOG.warning("clo: the reference cache %s is unreadable (%s); computing it again", cache.file, problem)
        return cache

    def _model_key(self, model: Any, keep_adapter: bool = False) -> str:
        key = model_key(model, without_adapter=not keep_adapter, compute_dtype=self.accelerator.mixed_precision)
        return str(broadcast_object_list([key])[0])  # under FSDP 1 the first rank alone may see the weights

    def _with_reference(self, dataset: Any, model: Any, keep_adapter: bool = False) -> Any:
        """`dataset` with the columns `reference_log_probs` and `example_index`.

        Args:
            dataset: tokenized rows.
            model: scores the rows that are not cached; None where all are.
            keep_adapter: score with the model's adapter on, because training started from one.
        """
        cache = self._reference_cache
        assert cache is not None  # nosec B101 # tells the type checker
        digests = row_digests(dataset)
        if missing := _missing(cache, digests):
            scored = self._score(model, dataset, missing, keep_adapter)
            if broken := sorted(i for i, log_probs in scored if not log_probs.isfinite().all()):
                rows = [dataset[i] for i in broken]
                named = named_rows([row["row"] for row in rows], [row.get("clo_id", "") for row in rows])
                raise ValueError(
                    f"the model before training gives {len(broken)} of {len(scored)} rows a log-probability that is no "
                    f"number ({named}); look at these rows, and at whether the weights are whole and suit `bf16`/`fp16`"
                )
            for i, log_probs in scored:
                cache.rows[digests[i]] = log_probs
            if self.is_world_process_zero():
                try:
                    cache.save()
                except (OSError, SafetensorError) as error:
                    raise ValueError(
                        f"the reference cache {cache.file} cannot be written ({error}); make room there or set another "
                        "`dataset_prepared_path`"
                    ) from error
        if not missing:
            LOG.info("clo: reference log-probabilities of %d rows read from %s", len(dataset), cache.file)
        columns = {
            "reference_log_probs": [cache.rows[digest].flatten().tolist() for digest in digests],
            "example_index": list(range(len(dataset))),
        }
        for name, values in columns.items():
            dataset = dataset.add_column(name, values)
        return dataset

    def _score(
        self, model: Any, dataset: Any, indices: list[int], keep_adapter: bool
    ) -> list[tuple[int, torch.Tensor]]:
        """Log-probabilities `[2, 2]` of rows, each rank taking as many batches, which sharded weights need."""
        inner = self._plain(model)
        adapter_off = inner.disable_adapter if hasattr(inner, "peft_config") and not keep_adapter else nullcontext
        lengths = dataset.select_columns("length")[indices]["length"]
        batches = pack(lengths, self._reference_budget(lengths), multiple_of=self.accelerator.num_processes)
        mine = [
            [indices[i] for i in batch]
            for batch in batches[self.accelerator.process_index :: self.accelerator.num_processes]
        ]
        loader = DataLoader(dataset, batch_sampler=mine, collate_fn=CLOCollator())
        scored: list[torch.Tensor] = []
        training = model.training
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            if adapter_off is not nullcontext and self._zero_stage == 3:
                # DeepSpeed learns which weights a module reads from its first pass; later it must not read more.
                self._score_batch(model, send_to_device(next(iter(loader)), self.args.device))
        with torch.no_grad(), adapter_off(), self.accelerator.autocast():
            for batch in tqdm(loader, desc="Reference log-probabilities", disable=not self.is_local_process_zero()):
                scored.append(self._score_batch(model, send_to_device(batch, self.args.device)))
        model.train(training)
        return gather_object(list(zip(chain.from_iterable(mine), torch.cat(scored).cpu(), strict=True)))

    def _reference_budget(self, lengths: list[int]) -> int:
        """Tokens of a batch without gradients: what the largest batch by examples would have, or `tokens_per_batch`.

        A GPU gets more at a time, as nothing is kept for a backward pass.
        """
        largest = sum(sorted(lengths)[-self.args.per_device_eval_batch_size :])
        return max(largest, self.clo.tokens_per_batch or 0) * (
            1 if self.args.device.type == "cpu" else REFERENCE_BATCHES
        )

    def _save_checkpoint(self, model: Any, trial: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(model, trial, **kwargs)
        if self._record is not None and self.is_world_process_zero():
            self._record.write(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")


def _missing(cache: ReferenceCache, digests: list[str]) -> list[int]:
    """Rows that are not in the cache of any one rank; hosts may not see the same file, and all must score or none."""
    mine = [i for i, digest in enumerate(digests) if digest not in cache.rows]
    return sorted(set(chain.from_iterable(gather_object([mine]))))


def _innermost(model: Any) -> Any:
    """The transformers model under an adapter."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
