"""From a packed batch to the log-probability of each response, without the logits of other positions.

A batch is what `CLOCollator` returns. Only the positions that predict a response token reach the output head
(`logits_to_keep`), so the model's own head, with its soft-capping or scaling, is what computes the logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

Batch = dict[str, torch.Tensor]

# Largest difference in nats between a packed and a separate token that counts as equal in float32.
PACKING_TOLERANCE = 1e-3


def sequence_log_probs(model: nn.Module, batch: Batch, *, packed: bool = True) -> torch.Tensor:
    """Summed log-probability of each response, `[examples, 2, 2]`, in nats, float32."""
    tokens = token_log_probs(model, batch, packed=packed)
    sums = torch.zeros(batch["response_lengths"].numel(), dtype=tokens.dtype, device=tokens.device)
    return sums.index_add(0, batch["response_sequence"], tokens).view_as(batch["response_lengths"])


def token_log_probs(model: nn.Module, batch: Batch, *, packed: bool = True) -> torch.Tensor:
    """Log-probability of each response token, `[N]`, in nats, float32.

    Args:
        model: a causal language model, or a wrapper around one that passes keyword arguments on.
        batch: see `CLOCollator`.
        packed: run the sequences end to end in one row; False: one padded row each, for architectures that
            cannot tell packed sequences apart.
    """
    logits = _packed_logits(model, batch) if packed else _padded_logits(model, batch)
    logits = logits.float()
    chosen = logits.gather(-1, batch["response_ids"][:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def _packed_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if "attention_mask" in batch:  # prompts are shared
        inputs["attention_mask"] = batch["attention_mask"]
    if _accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = batch["logit_positions"]
        return model(**inputs, use_cache=False).logits[0]
    return model(**inputs, use_cache=False).logits[0, batch["logit_positions"]]


def _padded_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    positions = batch["position_ids"][0]
    starts = (positions == 0).nonzero().squeeze(-1).tolist()
    bounds = [*starts, positions.numel()]
    rows = [batch["input_ids"][0, a:b] for a, b in pairwise(bounds)]
    # The pad token is never attended to nor scored, so its id does not matter.
    input_ids = pad_sequence(rows, batch_first=True)
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    row = _sequence_of_logits(batch)
    column = positions[batch["logit_positions"]]
    if _accepts(model, "logits_to_keep"):
        first = int(column.min())
        inputs["logits_to_keep"] = torch.arange(first, int(column.max()) + 1, device=column.device)
        return model(**inputs, use_cache=False).logits[row, column - first]
    return model(**inputs, use_cache=False).logits[row, column]


def _sequence_of_logits(batch: Batch) -> torch.Tensor:
    """`[N]`, the place among the sequences present, which `response_sequence` counts together with the empty ones."""
    return ((batch["position_ids"][0] == 0).cumsum(0) - 1)[batch["logit_positions"]]


def _accepts(model: Any, argument: str) -> bool:
    """Whether the innermost model's forward names `argument`; wrappers take anything."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return argument in inspect.signature(model.forward).parameters
        model = inner


@torch.no_grad()
def packing_is_exact(model: nn.Module, batch: Batch, layout: Callable[[Batch], Batch] = lambda batch: batch) -> bool:
    """Whether the sequences of `batch` score the same packed as each alone.

    Packing by position ids is silently wrong for architectures that do not mask by them (ALiBi models, some
    linear attention), so it is tried on the model at hand. Below float32 the noise of padding, which is known
    to be right, is the yardstick.

    Args:
        model: to try it on.
        batch: of `CLOCollator`.
        layout: what is done to the batch before, such as `share_prompts`.
    """
    if not _accepts(model, "position_ids"):
        return False
    alone = torch.cat([token_log_probs(model, single) for single in _split(batch)])
    try:
        packed = token_log_probs(model, layout(batch))
    except (RuntimeError, ValueError, TypeError):
        return False
    noise = (token_log_probs(model, batch, packed=False) - alone).abs().max()
    return bool((packed - alone).abs().max() <= torch.clamp(3 * noise, min=PACKING_TOLERANCE))


def _split(batch: Batch) -> list[Batch]:
    """One batch for each sequence of `batch`."""
    positions = batch["position_ids"][0]
    bounds = [*(positions == 0).nonzero().squeeze(-1).tolist(), positions.numel()]
    sequence = _sequence_of_logits(batch)
    parts = []
    for i, (a, b) in enumerate(pairwise(bounds)):
        mine = sequence == i
        parts.append(
            {
                "input_ids": batch["input_ids"][:, a:b],
                "position_ids": batch["position_ids"][:, a:b],
                "logit_positions": batch["logit_positions"][mine] - a,
                "response_ids": batch["response_ids"][mine],
            }
        )
    return parts
