"""Gradient checkpointing only through what needs gradients.

Checkpointing and adapters let the output of the embeddings require a gradient, whatever trains, because reentrant
checkpointing gives none to a layer whose input needs none. So the layers below the lowest trained one are kept,
recomputed and passed back through for nothing. Here that is asked of the input of each trained layer instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# What transformers and PEFT hang on the embeddings; each call hangs up another, and forgets the one before.
_INPUT_HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")


def checkpoint_what_trains(model: nn.Module) -> None:
    """Keep and recompute nothing below the lowest trained layer, in place; gradients do not change.

    Args:
        model: before an engine wraps it, after its gradient checkpointing was switched on.
    """
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") in _INPUT_HOOKS:
                del module._forward_hooks[key]
        checkpoint: Any = getattr(module, "_gradient_checkpointing_func", None)
        if checkpoint is not None and not isinstance(checkpoint, _WhereNeeded):
            trains = any(weight.requires_grad for weight in module.parameters())
            module._gradient_checkpointing_func = _WhereNeeded(checkpoint, trains)  # type: ignore[assignment]


class _WhereNeeded:
    """A layer's checkpointing function, or the plain call where there is no gradient."""

    def __init__(self, checkpoint: Callable[..., Any], trains: bool) -> None:
        self.checkpoint, self.trains = checkpoint, trains

    def __call__(self, run: Callable[..., Any], *inputs: Any) -> Any:
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        if not tensors or any(x.requires_grad for x in tensors):
            return self.checkpoint(run, *inputs)
        if not self.trains:
            return run(*inputs)
        first = next(i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor))
        needing = inputs[first].detach().requires_grad_()
        return self.checkpoint(run, *inputs[:first], needing, *inputs[first + 1 :])
