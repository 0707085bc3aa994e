"""One CLO step: batch → log-probabilities → loss → metrics, on Axolotl's causal trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from axolotl.utils.logging import get_logger

from axolotl_clo.logprobs import Batch
from axolotl_clo.loss import SOURCE, TARGET, CLOTerms, clo_loss, clo_terms
from axolotl_clo.model_card import add_clo_section
from axolotl_clo.scoring import ScoringTrainer

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

# An L_CL that stays this close to ln 2 a pair, over this many logs after this many steps, has not moved.
STUCK_DISTANCE, STUCK_LOGS, STUCK_STEPS = 1e-3, 3, 20


class CLOTrainer(ScoringTrainer):
    """Trains with the CLO loss.

    Logs, for training and with `eval_` for evaluation: `loss`, and the entries of `METRICS` (nll in nats per
    token, preference in nats per pair, accuracy as a share of pairs, margin as β times the difference of
    log-ratios), each as a sum over a count, over accumulation steps and ranks.
    """

    tag_names = ["axolotl", "clo"]  # noqa: RUF012 (as in the base class)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # We count tokens and pairs of the global batch ourselves, so the loss must not be divided once more.
        self.model_accepts_loss_kwargs = True
        self._sums = torch.zeros(len(METRICS), 2, dtype=torch.float64)
        self._evaluated: list[torch.Tensor] = []
        self._stuck_logs = 0

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
        self._sums += _metric_sums(terms)
        self._count_tokens(inputs)
        # Data-parallel engines average gradients over ranks; the shares of the ranks add up.
        loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _terms(self, model: Any, inputs: Batch) -> CLOTerms:
        log_probs = self.log_probs(model, inputs)
        return clo_terms(log_probs, beta=self.clo.beta, nll_both=self.clo.nll_languages == "both")

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | None:
        """`[2]`: tokens under the NLL and preference pairs, over accumulation steps and ranks."""
        if not batch_samples:
            return None
        first = SOURCE if self.clo.nll_languages == "both" else TARGET
        lengths = [batch["response_lengths"] for batch in batch_samples]
        tokens = sum(int(x[:, first:, 0].sum()) for x in lengths)
        pairs = sum(2 * len(x) for x in lengths)
        counts = torch.tensor([[tokens, pairs]], dtype=torch.float32, device=device)
        return self.accelerator.gather(counts).sum(0)

    def _count_tokens(self, inputs: Batch) -> None:
        # What Axolotl's own compute_loss keeps for its tokens-per-second log.
        if self.args.include_tkps and self.model.training:
            device = inputs["input_ids"].device
            counts = [inputs["response_lengths"].sum().item(), inputs["input_ids"].numel()]
            total = self.accelerator.reduce(torch.tensor(counts, device=device), "sum").cpu()
            if not hasattr(self.state, "tokens"):
                self.state.tokens = {"trainable": torch.zeros(1), "total": torch.zeros(1)}
            self.state.tokens["trainable"] = self.state.tokens["trainable"] + total[0]
            self.state.tokens["total"] = self.state.tokens["total"] + total[1]

    # ---- evaluation ----

    def prediction_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        """Score one batch; its examples are kept apart, because a mean of batches would depend on their size."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            terms = self._terms(model, inputs)
        columns = [inputs["example_index"], terms.nll, terms.nll_tokens, *terms.preference.T, *terms.margin.T]
        self._evaluated.append(torch.stack([c.double().cpu() for c in columns], dim=1))
        return clo_loss(terms, nll_weight=self.clo.nll_weight), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._evaluated = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        # Ranks pad their last batch with examples seen before: one entry for each example counts.
        parts = gather_object([row for batch in self._evaluated for row in batch])
        rows = torch.stack(list({int(row[0]): row for row in parts}.values()))
        terms = CLOTerms(nll=rows[:, 1], nll_tokens=rows[:, 2], preference=rows[:, 3:5], margin=rows[:, 5:7])
        loss = clo_loss(terms, nll_weight=self.clo.nll_weight)
        output.metrics[f"{metric_key_prefix}_loss"] = loss.item()
        for name, value in _means(_metric_sums(terms)).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    # ---- logging and the model card ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            sums = self._sums
            if dist.is_initialized():
                sums = sums.to(self.args.device)
                dist.all_reduce(sums)
            means = _means(sums.cpu())
            self._sums = torch.zeros_like(self._sums)
            logs.update({name: round(value, 5) for name, value in means.items()})
            self._warn_if_stuck(means)
        super().log(logs, start_time)

    def _warn_if_stuck(self, means: dict[str, float]) -> None:
        preference = (means["clo/preference_source"] + means["clo/preference_target"]) / 2
        stuck = self.state.global_step >= STUCK_STEPS and abs(preference - math.log(2)) < STUCK_DISTANCE
        self._stuck_logs = self._stuck_logs + 1 if stuck else 0
        if self._stuck_logs == STUCK_LOGS:
            LOG.warning(
                "clo: the preference loss has stayed at ln 2 = 0.693 a pair, so policy and reference score alike: the "
                "learning rate may be too low, or nothing that matters trains (see the table of trainable parameters)"
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        languages = [self.clo.source_lang, self.clo.target_lang]
        super().create_model_card(*args, **{"language": languages, "tags": self.tag_names, **kwargs})
        if self.is_world_process_zero():
            add_clo_section(Path(self.args.output_dir) / "README.md", self.clo, self.axolotl_cfg)


def _counts(terms: CLOTerms) -> tuple[torch.Tensor, int]:
    return terms.nll_tokens.sum(), terms.preference.numel()


def _metric_sums(terms: CLOTerms) -> torch.Tensor:
    """`[len(METRICS), 2]`: sum and count of each metric."""
    examples = len(terms.preference)
    accuracy = (terms.margin > 0).double()
    sums = [terms.nll.sum(), *terms.preference.sum(0), *accuracy.sum(0), *terms.margin.sum(0)]
    counts = [terms.nll_tokens.sum(), *[torch.tensor(examples)] * 6]
    return torch.stack([torch.stack([x.detach().double().cpu() for x in column]) for column in (sums, counts)], dim=1)


def _means(sums: torch.Tensor) -> dict[str, float]:
    return dict(zip(METRICS, (sums[:, 0] / sums[:, 1].clamp_min(1)).tolist(), strict=True))
