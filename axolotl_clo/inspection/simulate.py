"""A training step on fake tensors: what it would allocate, without weights, without a GPU, without computing.

The step is the trainer's own (the model's forward, shared prompts, the output head in pieces, autograd, checkpointing)
on tensors that have shapes and dtypes but no contents (`FakeTensorMode`). So what activations cost is counted on the
model at hand, and no formula for one architecture has to be stretched over others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from axolotl_clo import output_head, shared_prompts
from axolotl_clo.collator import CLOCollator
from axolotl_clo.inspection.ledger import Ledger, Peak
from axolotl_clo.logprobs import Batch, sequence_log_probs


class Way(NamedTuple):
    """How a step computes; the trainer finds most of it out by probing.

    shared: each prompt once, as the first batch's probe finds exact for most models.
    in_pieces: the output head on a piece of the positions at a time.
    autocast: dtype of mixed precision, or None.
    accumulates: gradients of an earlier micro-batch are there.
    adapter_off: the reference is scored in the same step with the adapter off.
    """

    shared: bool = True
    in_pieces: bool = True
    autocast: torch.dtype | None = None
    accumulates: bool = False
    adapter_off: bool = False


class Step(NamedTuple):
    """Bytes above model and optimizer.

    activations: what autograd keeps at the end of the forward pass.
    peak: the worst moment: gradients (`named`), activations still kept (`kept`), and everything.
    gradients: of all that trains, at the end.
    """

    activations: int
    peak: Peak
    gradients: int


@contextmanager
def fake_tensors(like_gpu: bool = False) -> Iterator[FakeTensorMode]:
    """Tensors without contents, for models and batches alike.

    Args:
        like_gpu: take pieces of the output head as large as on a GPU.
    """
    pieces = dict(output_head.PIECE)
    if like_gpu:
        output_head.PIECE["cpu"] = output_head.PIECE["other"]
    shared_prompts.forget()
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        shared_prompts.forget()
        output_head.PIECE.update(pieces)


def as_fake(model: nn.Module) -> None:
    """Give a model built on the meta device fake tensors in place; under `fake_tensors`."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:  # tied weights stay tied
            like = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if is_parameter else like
        return made[id(tensor)]

    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for held in holders:
            for name, tensor in list(held.items()):
                if isinstance(tensor, torch.Tensor):
                    held[name] = fake(tensor)


def fake_batch(mode: FakeTensorMode, rows: list[dict[str, Any]]) -> Batch:
    """The batch that tokenized rows would form."""
    with torch.utils._python_dispatch._disable_current_modes():
        batch = CLOCollator()(rows)
    return {name: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}


def training_step(model: Any, batch: Batch, way: Way) -> Step:
    """Forward and backward of one micro-batch.

    Args:
        model: on fake tensors, in training mode, with what trains requiring gradients.
        batch: of `fake_batch`.
        way: how the trainer would compute it.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    inputs = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    with Ledger([*model.parameters(), *model.buffers(), *inputs]) as ledger:
        for parameter in trained if way.accumulates else []:
            parameter.grad = torch.empty_like(parameter)
        with _mixed(way):
            scores = _score(model, batch, way)
            if way.adapter_off:
                with torch.no_grad(), model.disable_adapter():
                    _score(model, batch, way)
        ledger.mark()
        scores.sum().backward()
    gradients = [p.grad for p in trained if p.grad is not None]
    kept, peak = ledger.kept(), ledger.peak(gradients)
    size = sum(gradient.untyped_storage().nbytes() for gradient in gradients)
    model.zero_grad()
    return Step(kept - size if way.accumulates else kept, peak, size)


def scoring_pass(model: Any, batch: Batch, way: Way) -> int:
    """Bytes that scoring a batch without gradients needs above the model."""
    inputs = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    with torch.no_grad(), Ledger([*model.parameters(), *model.buffers(), *inputs]) as ledger, _mixed(way):
        _score(model, batch, way)
    return ledger.peak().total


def _score(model: Any, batch: Batch, way: Way) -> torch.Tensor:
    if way.shared:
        batch = shared_prompts.share_prompts(batch)
    return sequence_log_probs(model, batch, in_pieces=way.in_pieces)


def _mixed(way: Way) -> Any:
    return torch.autocast("cpu", dtype=way.autocast) if way.autocast else nullcontext()


STAND_IN = "clo_flash_stand_in"


class _Flash(torch.autograd.Function):
    """What FlashAttention keeps: queries, keys, values, its output, and a float32 for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _flash(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **_kwargs: Any
) -> tuple[torch.Tensor, None]:
    return _Flash.apply(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)), None  # type: ignore


def stand_in_for_flash(model: Any) -> None:
    """Give a model attention that allocates as FlashAttention does, which needs a GPU to be there at all."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(STAND_IN, shared_prompts.shared_form(_flash, "flash_attention_2"))
    AttentionMaskInterface.register(STAND_IN, lambda *_args, **_kwargs: None)
    model.config._attn_implementation = STAND_IN
