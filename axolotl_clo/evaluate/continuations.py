"""What a causal language model writes after prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def continuations(model: Any, prompts: Sequence[Sequence[int]], pad: int, **options: Any) -> torch.Tensor:
    """Generate after all prompts in one batch, which is padded on the left.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompts: token ids, at least one of each.
        pad: token that stands, masked, before shorter prompts and after shorter continuations.
        options: those of `generate`; what is not given is as the model's generation config has it.

    Returns:
        Token ids `[prompts, new tokens]`.
    """
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    tokens = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        pad_token_id=pad,
        **options,
    )
    return tokens[:, width:]
