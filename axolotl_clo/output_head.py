"""Log-probabilities of chosen tokens from a model's own output head, a piece at a time.

Logits are vocabulary × positions, by far the largest tensor of a step, and only one number of each position is wanted.
Here the decoder runs once, and the rest of the model's own forward, with its soft-capping or scaling, on pieces of
the hidden states, so that what it needs does not grow with the positions. Each log-probability depends on one hidden
state alone: with a frozen head its gradient is taken in the forward pass, while the logits are there, which costs
what a backward pass through them would; a head that trains is recomputed in the backward pass.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Logits of a piece: few enough to stay small beside activations, enough for a matrix product to be efficient.
PIECE = {"cpu": 2**22, "other": 2**25}

Logits = Callable[[torch.Tensor], torch.Tensor]


def let_score(model: Any) -> bool:
    """Let ``model(..., score_positions=, score_ids=)`` return log-probabilities, also through wrappers around it.

    The call then returns `[N]`, in nats, float32: of the tokens ``score_ids`` (`[N]`) after the positions
    ``score_positions`` (`[N]`, in `input_ids` flattened). Without these arguments nothing changes. It must be done
    before an engine wraps the model, as some wrap `forward` itself.

    Args:
        model: a `PreTrainedModel` for causal language modelling.

    Returns:
        Whether the model has a decoder of its own to run apart; if not, it is left as it was.
    """
    if getattr(model, "forward_scores", False):
        return True
    decoder = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    if not isinstance(decoder, nn.Module) or decoder is model:
        return False

    def forward(
        self: Any,
        *args: Any,
        score_positions: torch.Tensor | None = None,
        score_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if score_positions is None or score_ids is None:
            return type(self).forward(self, *args, **kwargs)
        return _scores(self, score_positions, score_ids, *args, **kwargs)

    # Those who ask find the arguments of the model's own; `functools.wraps` would let accelerate unwrap it.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    model.forward_scores = True
    return True


def _scores(model: Any, positions: torch.Tensor, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    name = model.base_model_prefix
    output = getattr(model, name)(*args, **{key: value for key, value in kwargs.items() if value is not None})
    return _scores_of_pieces(model, name, output, positions, ids)


@torch.compiler.disable  # a piece of any length would be compiled anew
def _scores_of_pieces(model: Any, name: str, output: Any, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    hidden = output.last_hidden_state.flatten(0, 1)[positions]

    def logits(piece: torch.Tensor) -> torch.Tensor:
        with _replaced(model, name, output, piece):
            found: torch.Tensor = type(model).forward(model).logits[0]
        return found

    size = max(1, PIECE.get(hidden.device.type, PIECE["other"]) // model.config.get_text_config().vocab_size)
    if torch.is_grad_enabled() and _trains(model, name):
        pieces = zip(hidden.split(size), ids.split(size), strict=True)
        return torch.cat([checkpoint(_log_probs, logits, *piece, use_reentrant=False) for piece in pieces])
    with _cast_once(model, hidden.device.type):
        return _FrozenHead.apply(hidden, ids, logits, size)  # type: ignore[no-any-return]


def _trains(model: nn.Module, body: str) -> bool:
    """Whether anything outside the decoder trains; tied weights count as the head's."""
    parameters = model.named_parameters(remove_duplicate=False)
    return any(p.requires_grad for name, p in parameters if not name.startswith(f"{body}."))


class _Given(nn.Module):
    """Stands for a decoder that has run."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output


@contextmanager
def _replaced(model: nn.Module, name: str, output: Any, piece: torch.Tensor) -> Iterator[None]:
    decoder = model._modules[name]
    given = copy.copy(output)
    given.last_hidden_state = piece[None]
    model._modules[name] = _Given(given)
    try:
        yield
    finally:
        model._modules[name] = decoder


@contextmanager
def _cast_once(model: Any, device: str) -> Iterator[None]:
    """Cast a frozen head's weights once; autocast, which keeps only casts of what trains, would for every piece."""
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if type(weight) is not nn.Parameter or weight.requires_grad or not torch.is_autocast_enabled(device):
        yield
        return
    head._parameters["weight"] = weight.to(torch.get_autocast_dtype(device))
    try:
        yield
    finally:
        head._parameters["weight"] = weight


def _log_probs(logits: Logits, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return -nn.functional.cross_entropy(logits(hidden).float(), ids, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """`[N]` log-probabilities of `ids`, `[N]`, from hidden states, `[N, size]`."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, ids: torch.Tensor, logits: Logits, size: int) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        found, gradients = [], []
        for states, tokens in zip(hidden.split(size), ids.split(size), strict=True):
            if not wanted:
                found.append(_log_probs(logits, states, tokens))
                continue
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                scores = logits(states)
            log_probs, towards_logits = _with_gradient(scores.detach(), tokens)
            found.append(log_probs)
            gradients.append(torch.autograd.grad(scores, states, towards_logits.to(scores.dtype))[0])
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (grads[0][:, None] * gradient).to(gradient.dtype), None, None, None


def _with_gradient(scores: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log softmax of logits `[N, V]` at `ids`, and its gradient towards the logits: one-hot − softmax."""
    scores = scores.float()
    total = scores.logsumexp(-1, keepdim=True)
    chosen = scores.gather(-1, ids[:, None])
    gradient = (scores - total).exp_().neg_()
    gradient[torch.arange(len(ids), device=ids.device), ids] += 1
    return (chosen - total).squeeze(-1), gradient
