"""What trains is kept in float32 where the model was read in half precision, as DeepSpeed and FSDP keep it.

bfloat16 has 8 bits: a step of less than 1/512 of a weight leaves it as it was, and at the learning rates of
fine-tuning most steps are smaller. The forward pass stays what it was, as it runs under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from axolotl.utils.logging import get_logger
from torch import nn

LOG = get_logger(__name__)

_READ_IN = "clo_read_in"  # on a parameter that was cast


def keeps_no_copy(cfg: Any) -> bool:
    """Whether a run computes in half precision and nothing else keeps what trains in float32.

    DeepSpeed and FSDP do, and so does peft with an adapter; `bf16: full` asks for half precision throughout.
    """
    return computes_in_half(cfg) and not (cfg.deepspeed or cfg.fsdp_config or cfg.fsdp)


def computes_in_half(cfg: Any) -> bool:
    """Whether what trains is read in half precision, and is used under autocast."""
    return bool(cfg.bf16 or cfg.fp16) and cfg.bf16 != "full" and not cfg.adapter


def keep_in_float32(model: nn.Module) -> None:
    """Cast what trains in half precision to float32, before an optimizer is made.

    Args:
        model: with what trains requiring gradients; its forward passes run under autocast from here on.
    """
    cast = [p for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)]
    if any(p.dim() > 2 for p in cast):
        LOG.warning(
            "clo: experts or convolutions train too, whose kernels autocast does not reach, so all weights stay in %s, "
            "where small steps are lost; DeepSpeed keeps a float32 copy",
            cast[0].dtype,
        )
        return
    for parameter in cast:
        setattr(parameter, _READ_IN, parameter.dtype)
        parameter.data = parameter.data.float()
    if cast:
        LOG.info("clo: the %d tensors that train are kept in float32, and saved as they were read", len(cast))


def give_back(model: nn.Module) -> None:
    """Cast what `keep_in_float32` cast to the dtype it was read in, before the trained model is saved."""
    for parameter in model.parameters():
        if hasattr(parameter, _READ_IN):
            parameter.grad = None
            parameter.data = parameter.data.to(getattr(parameter, _READ_IN))
            delattr(parameter, _READ_IN)


def as_read(tensor: torch.Tensor) -> torch.Tensor:
    """A weight before training in the dtype it was read in."""
    return tensor.to(getattr(tensor, _READ_IN, tensor.dtype))
