"""One CLO step: batch → log-probabilities → loss → metrics, on Axolotl's causal trainer."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from axolotl.utils.logging import get_logger
from torch.utils.data import DataLoader

from axolotl_clo.answers import HeldOutPrompts, fidelity, show, track
from axolotl_clo.batches import TokenBatchSampler
from axolotl_clo.logprobs import Batch
from axolotl_clo.long_runs import LongRunTrainer
from axolotl_clo.loss import SOURCE, TARGET, CLOTerms, clo_loss, clo_terms
from axolotl_clo.model_card import add_clo_section

LOG = get_logger(__name__)

METRICS = (
    "clo/nll",
    "clo/preference_source",
    "clo/preference_target",
    "clo/accuracy_source",
    "clo/accuracy_target",
    "clo/margin_source",
    "clo/margin_target",
)

PREFERENCES = ("clo/preference_source", "clo/preference_target")

# An L_CL that stays this close to ln 2 a pair, over this many logs after this many steps, has not moved.
STUCK_DISTANCE, STUCK_LOGS, STUCK_STEPS = 1e-3, 3, 20


class CLOTrainer(LongRunTrainer):
    """Trains with the CLO loss.

    Logs, for training and with `eval_` for evaluation: `loss`, and the entries of `METRICS` (nll in nats per
    token, preference per pair, accuracy as a share of pairs, margin as in `axolotl_clo.loss`), each as a sum over a
    count, over accumulation steps and ranks; with several target languages also each with `_LANG`, over the
    examples of that language.
    """

    tag_names = ["axolotl", "clo"]  # noqa: RUF012 (as in the base class)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # We count tokens and pairs of the global batch ourselves, so the loss must not be divided once more.
        self.model_accepts_loss_kwargs = True
        self._evaluated: list[torch.Tensor] = []
        self._stuck_logs = 0

    # ---- batches ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if budget := self.clo.tokens_per_batch:
            self._check_rows_fit(budget)
        return super().train(*args, **kwargs)

    def _check_rows_fit(self, budget: int) -> None:
        lengths = np.asarray(self.train_dataset["length"][:])
        if lengths.max() > budget:
            row = self.train_dataset[int(lengths.argmax())]["row"]
            raise ValueError(
                f"clo.tokens_per_batch: {budget} is less than {lengths.max()}, the tokens of row {row}, which stay "
                f"together; {(lengths > budget).sum()} of {len(lengths)} rows are too long. Set it to {lengths.max()} "
                "or more, or lower `sequence_len`, which drops rows by the longest of their four sequences"
            )

    def get_train_dataloader(self) -> DataLoader:
        if self.clo.tokens_per_batch is None:
            return super().get_train_dataloader()
        # Nothing is to be evened out: there are as many batches for every rank, of different numbers of examples.
        self.accelerator.even_batches, before = False, self.accelerator.even_batches
        try:
            return super().get_train_dataloader()
        finally:
            self.accelerator.even_batches = before

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        budget = self.clo.tokens_per_batch
        if budget is None:
            return super()._get_train_sampler(train_dataset)
        ranks, accumulated = self.accelerator.num_processes, self.args.gradient_accumulation_steps
        lengths = self.train_dataset["length"][:]
        sampler = TokenBatchSampler(
            lengths,
            budget,
            ranks=ranks,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: self.state.global_step // steps,
        )
        steps = math.ceil(len(sampler) // ranks / accumulated)
        LOG.info(
            "clo: %d rows in %d micro-batches of %.1f rows and %d tokens (%.0f %% of the budget), %d steps an epoch",
            len(lengths),
            len(sampler),
            len(lengths) / len(sampler),
            sum(lengths) / len(sampler),
            100 * sum(lengths) / len(sampler) / budget,
            steps,
        )
        if sampler.repeated:
            LOG.warning("clo: %d rows come twice in an epoch, to give each rank a micro-batch", sampler.repeated)
        return sampler

    # ---- the step ----

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """This micro-batch's share of the loss of the global batch."""
        terms = self._terms(model, inputs)
        tokens, pairs = num_items_in_batch if num_items_in_batch is not None else _counts(terms)
        loss = clo_loss(terms, nll_weight=self.clo.nll_weight, num_nll_tokens=tokens, num_pairs=pairs)
        self._terms_of_step = CLOTerms(*(term.detach() for term in terms))
        sums = self._metric_sums(self._terms_of_step, inputs["language"])
        self._sums_before, self._sums = self._sums, sums if self._sums is None else self._sums + sums
        self._count_tokens(inputs)
        # Data-parallel engines average gradients over ranks; the shares of the ranks add up.
        loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _terms(self, model: Any, inputs: Batch) -> CLOTerms:
        clo = self.clo
        return clo_terms(
            self.log_probs(model, inputs),
            beta=clo.beta,
            nll_both=clo.nll_languages == "both",
            preference_loss=clo.preference_loss,
            label_smoothing=clo.label_smoothing,
            simpo_gamma=clo.simpo_gamma,
        )

    def _metric_sums(self, terms: CLOTerms, languages: torch.Tensor) -> torch.Tensor:
        """`[metrics, 2]`: sum and count of each metric, over all examples and, of several languages, over each's."""
        parts = [_metric_sums(terms)]
        targets = len(self.clo.target_langs)
        for language in range(targets if targets > 1 else 0):
            mine = languages == language
            parts.append(
                _metric_sums(CLOTerms(*(term.where(mine if term.dim() == 1 else mine[:, None], 0) for term in terms)))
            )
        return torch.cat(parts)

    def _means(self, sums: torch.Tensor) -> dict[str, float]:
        """The metrics that have something to count."""
        pairs = zip(metric_names(self.clo.target_langs), sums.tolist(), strict=True)
        return {name: total / count for name, (total, count) in pairs if count}

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | None:
        """`[2]`: tokens under the NLL and preference pairs, over accumulation steps and ranks."""
        if not batch_samples:
            return None
        self._discount_repeated(batch_samples[-1])
        first = SOURCE if self.clo.nll_languages == "both" else TARGET
        lengths = torch.cat([batch["response_lengths"] for batch in batch_samples]).to(device, non_blocking=True)
        counts = torch.stack([lengths[:, first:, 0].sum(), (lengths > 0).all(-1).sum()])
        return self.accelerator.reduce(counts, "sum").float()

    def _discount_repeated(self, batch: Batch) -> None:
        """Ranks fill the last round of an epoch up with rows it had before; without a response those count nowhere.

        How many rows that round has is counted here: Accelerate does not know it in the epoch that a run resumes in.
        """
        if self.clo.tokens_per_batch is not None or self.args.dataloader_drop_last:
            return
        rows = len(self.train_dataset) % (self._train_batch_size * self.accelerator.num_processes)
        if rows and self.accelerator.gradient_state.end_of_dataloader:
            lengths = batch["response_lengths"]
            own = rows - self.accelerator.process_index * len(lengths)
            lengths[max(own, 0) :] = 0

    def _count_tokens(self, inputs: Batch) -> None:
        # What Axolotl's own compute_loss keeps for its tokens-per-second log.
        if self.args.include_tkps and self.model.training:
            trained = inputs["response_lengths"].sum()
            counts = torch.stack([trained, torch.full_like(trained, inputs["input_ids"].numel())])
            counts = self.accelerator.reduce(counts, "sum")
            if not hasattr(self.state, "tokens"):
                self.state.tokens = {"trainable": torch.zeros(1), "total": torch.zeros(1)}
            for name, count in zip(("trainable", "total"), counts, strict=True):
                self.state.tokens[name] = self.state.tokens[name].to(count.device) + count

    # ---- evaluation ----

    def prediction_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        """Score one batch; its examples are kept apart, because a mean of batches would depend on their size."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            terms = self._terms(model, inputs)
        columns = [inputs["example_index"], inputs["language"], terms.nll, terms.nll_tokens]
        columns += [*terms.preference.T, *terms.margin.T, *terms.pairs.T]
        self._evaluated.append(torch.stack([c.double().cpu() for c in columns], dim=1))
        return clo_loss(terms, nll_weight=self.clo.nll_weight), None, None

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._evaluated = []
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Ranks pad their last batch with examples seen before: one entry for each example counts.
        parts = gather_object([row for batch in self._evaluated for row in batch])
        rows = torch.stack(list({int(row[0]): row for row in parts}.values()))
        terms = CLOTerms(rows[:, 2], rows[:, 3], preference=rows[:, 4:6], margin=rows[:, 6:8], pairs=rows[:, 8:10])
        loss = clo_loss(terms, nll_weight=self.clo.nll_weight)
        output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        for name, value in self._means(self._metric_sums(terms, rows[:, 1])).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        if self.clo.eval_answers:
            for name, value in self._answer(dataloader.dataset).items():
                output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def _answer(self, rows: Any) -> dict[str, float]:
        """Let the model answer held-out prompts; returns the share in the right language."""
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            LOG.warning_once(
                "clo: FSDP 1 cannot generate from sharded weights; `clo.eval_answers` needs `fsdp_version: 2`"
            )
            return {}
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        answers = HeldOutPrompts(rows, self.clo, self.processing_class).ask(model, synced=self._is_sharded)
        if self.clo.show_answers and self.is_world_process_zero():
            show(answers, self.state.global_step)
            track(answers, self.state.global_step, self.callback_handler.callbacks)
        return fidelity(answers, self.clo)

    # ---- logging and the model card ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums is not None:
            sums = self._sums
            if dist.is_initialized():
                dist.all_reduce(sums)
            means = self._means(sums)
            self._sums = None
            logs.update(means)
            self._warn_if_stuck(means)
        super().log(logs, start_time)

    def _warn_if_stuck(self, means: dict[str, float]) -> None:
        there = [means[name] for name in PREFERENCES if name in means]
        if not there or self.clo.preference_loss not in ("sigmoid", "robust"):
            return
        preference = mean(there)
        stuck = self.state.global_step >= STUCK_STEPS and abs(preference - math.log(2)) < STUCK_DISTANCE
        self._stuck_logs = self._stuck_logs + 1 if stuck else 0
        if self._stuck_logs == STUCK_LOGS:
            LOG.warning(
                "clo: the preference loss has stayed at ln 2 = 0.693 a pair, so policy and reference score alike: the "
                "learning rate may be too low, or nothing that matters trains (see the table of trainable parameters)"
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        languages = [self.clo.source_lang, *self.clo.target_langs]
        super().create_model_card(*args, **{"language": languages, "tags": self.tag_names, **kwargs})
        if self.is_world_process_zero():
            add_clo_section(Path(self.args.output_dir) / "README.md", self.clo, self.axolotl_cfg)


def metric_names(target_langs: list[str]) -> list[str]:
    """`METRICS`, and with several target languages each of them by language too."""
    by_language = [f"{name}_{lang}" for lang in target_langs for name in METRICS] if len(target_langs) > 1 else []
    return [*METRICS, *by_language]


def _counts(terms: CLOTerms) -> tuple[torch.Tensor, torch.Tensor]:
    return terms.nll_tokens.sum(), terms.pairs.sum()


def _metric_sums(terms: CLOTerms) -> torch.Tensor:
    """`[len(METRICS), 2]`: sum and count of each metric."""
    accuracy = (terms.margin > 0) * terms.pairs
    sums = [terms.nll.sum(), *terms.preference.sum(0), *accuracy.sum(0), *terms.margin.sum(0)]
    counts = [terms.nll_tokens.sum(), *terms.pairs.sum(0).repeat(3)]
    # They stay where they are until they are logged: fetching them would make the host wait for the step.
    wide = torch.float32 if terms.nll.device.type == "mps" else torch.float64
    return torch.stack([torch.stack([x.detach().to(wide) for x in column]) for column in (sums, counts)], dim=1)
