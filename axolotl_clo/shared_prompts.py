"""Both responses to a prompt attend to one copy of it (arXiv 2410.20305, "prefix sharing").

The two sequences of a pair begin with the same prompt. Laid out as prompt, chosen response, rejected response, with
positions that go on from the prompt in both, a pair costs one prompt less, if no token of the rejected response attends
to the chosen one. That is two calls of the model's own attention kernel: prompt and chosen response attend as any
sequence does, and the rejected response attends to the prompt and itself. Nothing is masked that is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from axolotl_clo.logprobs import Batch

_IMPLEMENTATIONS = {"sdpa": "clo_shared_sdpa"}


def share_prompts(batch: Batch) -> Batch:
    """The batch with each prompt once.

    Args:
        batch: of `CLOCollator`.

    Returns:
        The same, without the second copy of each prompt in `input_ids` and `position_ids` (`[1, T']`), with
        `logit_positions` in those, and with `attention_mask`, `[1, 1, directions present, 3]`, of integers: `pairs` in
        the form in which models hand a mask to their attention untouched.
    """
    device = batch["input_ids"].device
    keep = torch.ones(batch["input_ids"].shape[1], dtype=torch.bool, device=device)
    first_copy = torch.arange(len(keep), device=device)  # where each token is found when the second copies are gone
    start = 0
    for prompt, chosen, rejected in batch["pairs"].tolist():
        again = start + prompt + chosen
        keep[again : again + prompt] = False
        first_copy[again : again + prompt] = torch.arange(start, start + prompt, device=device)
        start = again + prompt + rejected
    places = keep.cumsum(0) - 1
    return {
        **batch,
        "input_ids": batch["input_ids"][:, keep],
        "position_ids": batch["position_ids"][:, keep],
        "logit_positions": places[first_copy[batch["logit_positions"]]],
        "attention_mask": batch["pairs"][None, None],
    }


def set_attention(model: Any, longest: int) -> str | None:
    """Let a model's attention take the masks of `share_prompts`; other masks mean what they did.

    Args:
        model: a `PreTrainedModel`.
        longest: tokens of the longest sequence there will be.

    Returns:
        Why it cannot be done, else None.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config()
    now, window = config._attn_implementation, getattr(config, "sliding_window", None)
    if now in _IMPLEMENTATIONS.values():
        return None
    if now not in _IMPLEMENTATIONS:
        return f"attn_implementation is {now}, and {', '.join(_IMPLEMENTATIONS)} is needed"
    if model.device.type != "cpu":
        return "it is done on the CPU only"
    if window is not None and window < longest:
        return f"the model attends to the last {window} tokens only, and sequences may have {longest}"
    name = _IMPLEMENTATIONS[now]
    AttentionInterface.register(name, _shared(ALL_ATTENTION_FUNCTIONS[now]))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[now])
    model.set_attn_implementation(name)
    return None if config._attn_implementation == name else "the model's attention cannot be exchanged"


def restore_attention(model: Any) -> None:
    """Undo `set_attention`."""
    for plain, shared in _IMPLEMENTATIONS.items():
        if model.config.get_text_config()._attn_implementation == shared:
            model.set_attn_implementation(plain)


def _shared(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function ``plain``, or that of pairs where the mask says so."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is None or attention_mask.dtype != torch.long:
            return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        if kwargs.get("position_bias") is not None:
            raise ValueError("prompts are not shared under a position bias")
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        parts, start = [], 0
        for prompt, chosen, rejected in attention_mask.view(-1, 3).tolist():
            one, two = start + prompt + chosen, start + prompt + chosen + rejected
            first, behind, both = slice(start, one), slice(one, two), slice(start, start + prompt)
            parts.append(_causal(query[:, :, first], key[:, :, first], value[:, :, first], dropout, scaling))
            keys, values = (torch.cat([x[:, :, both], x[:, :, behind]], dim=2) for x in (key, value))
            parts.append(_causal(query[:, :, behind], keys, values, dropout, scaling))
            start = two
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    return attention


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Attention of the last queries of a sequence: `[1, heads, queries, size]`."""
    queries, keys = query.shape[2], key.shape[2]
    mask = None if queries == keys else _mask(queries, keys, query.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )


@lru_cache(maxsize=256)
def _mask(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
