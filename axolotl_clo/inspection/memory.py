"""Bytes of a run by part and device; pure functions of what the model and a simulated step say.

With a weight of w bytes, P weights of which A train, and N devices (ZeRO, arXiv 1910.02054, section 3):

    part            one device        ZeRO-1         ZeRO-2         ZeRO-3, FSDP
    weights         w P               w P            w P            w P / N, and what is gathered of the others
    gradients       w A               w A            w A / N        w A / N
    optimizer       s A               s A / N        s A / N        s A / N

where s is what the optimizer keeps a trained weight: 2 w for AdamW's two moments; under DeepSpeed these are float32 and
there is a float32 copy of the weight, 12. Activations and what operators need while they run are the same on every
device; they come from `simulate`. There is no second model: the reference is scored before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

from axolotl_clo.inspection.config import Engine
from axolotl_clo.inspection.simulate import Step

FLOAT32 = 4
# State of 8-bit optimizers: a byte, and a float32 for each block of 256 (arXiv 2110.02861, section 2).
BYTE_STATE = 1 + 4 / 256

# By the start of an optimizer's name: numbers it keeps a trained weight in the weight's dtype, and in 8 bits.
_STATES: list[tuple[tuple[str, ...], float, float]] = [
    (("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "ademamix_8bit", "adamw_torch_8bit"), 0, 2),
    (("lion_8bit", "paged_lion_8bit"), 0, 1),
    (("lion", "paged_lion", "muon", "rmsprop"), 1, 0),
    (("sgd",), 0, 0),
    (("adafactor",), 0, 0),  # a row and a column of each matrix, which is nothing beside it
    (("adamw", "paged_adamw", "ao_adamw", "optimi_adamw", "ademamix"), 2, 0),
]


@dataclass(frozen=True)
class Model:
    """Sizes of a model in bytes, on one device and not sharded.

    weights: of all, quantized ones as they are kept.
    trained: weights that train, in their own dtype.
    trained_count: how many these are.
    block: the largest part that is gathered at once where weights are sharded.
    dequantized: the largest matrix that is dequantized for a product.
    """

    weights: int
    trained: int
    trained_count: int
    block: int
    dequantized: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes on each device at the worst moment of training, by part, and what is worth knowing beside it.

    weights, gradients, optimizer: what the model and its training keep.
    activations: what autograd still keeps then.
    working: what operators need while they run, with a piece of the logits.
    buffers: of communication.
    total: their sum.
    moments: bytes of each moment that could be the worst.
    host: bytes of what is offloaded, on the host, for each device.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    buffers: int
    total: int
    moments: dict[str, int]
    host: int


def optimizer_bytes(optimizer: str, model: Model) -> tuple[int, bool]:
    """What an optimizer keeps, and whether its name is known; as AdamW where it is not."""
    for names, own, eight_bit in _STATES:
        if optimizer.startswith(names):
            return round(own * model.trained + eight_bit * BYTE_STATE * model.trained_count), True
    return 2 * model.trained, False


def estimate(
    model: Model,
    engine: Engine,
    optimizer: str,
    step: Step,
    reference: int = 0,
    bucket: int = 0,
    foreach: bool = False,
) -> Memory:
    """Bytes by part.

    Args:
        model: its sizes.
        engine: what it is spread over.
        optimizer: name, as Axolotl has it.
        step: of one micro-batch.
        reference: bytes that scoring the reference needs above the model.
        bucket: bytes of an engine's communication buffers.
        foreach: whether the optimizer computes on all weights at once, as on a GPU without `fused`.
    """
    n, zero = engine.gpus, engine.zero
    sharded = zero in ("3", "fsdp")
    deepspeed = zero is not None and zero != "fsdp"
    weights = model.weights
    if sharded:
        # One block is computed with while the next arrives.
        weights = round(model.weights / n) + (2 * model.block if n > 1 or engine.offload_weights else 0)
    state, _ = optimizer_bytes(optimizer, model)
    if deepspeed:
        state = 3 * FLOAT32 * model.trained_count
    state = round(state / n) if zero in ("1", "2", "3", "fsdp") else state
    share = 1 / n if zero in ("2", "3", "fsdp") else 1.0
    host = 0
    if engine.offload_optimizer:
        host, state = host + state, 0
    if engine.offload_weights and sharded:
        host, weights = host + round(model.weights / n), 2 * model.block
    buffers = bucket if zero is not None else model.trained if n > 1 else 0  # DDP copies gradients to its buckets
    gradients = round(step.peak.named * share)
    activations = step.peak.kept
    working = step.peak.total - step.peak.named - step.peak.kept + model.dequantized
    in_step = round(model.trained * share) + (model.trained if foreach and not deepspeed else 0)
    if deepspeed and not engine.offload_optimizer:
        in_step += round(FLOAT32 * model.trained_count / n)  # gradients in the dtype of the optimizer
    fixed = weights + state
    moments = {
        "reference": weights + reference + model.dequantized,
        "forward and backward": fixed + gradients + activations + working + buffers,
        "optimizer step": fixed + in_step + buffers,
    }
    worst = max(moments, key=lambda name: moments[name])
    if worst == "reference":
        state = gradients = activations = buffers = 0
        working = reference + model.dequantized
    elif worst == "optimizer step":
        gradients, activations = round(model.trained * share), 0
        working = in_step - gradients
    return Memory(weights, gradients, state, activations, working, buffers, moments[worst], moments, host)


def piece_of_logits(vocabulary: int, numbers: int, scored: int, in_pieces: bool) -> int:
    """Bytes in float32 of the logits that are there at once.

    Args:
        vocabulary: of the model.
        numbers: in a piece, as `output_head.PIECE` has it.
        scored: tokens that a batch scores.
        in_pieces: whether the head runs on a piece of them at a time.
    """
    rows = min(max(1, numbers // vocabulary), scored) if in_pieces else scored
    return rows * vocabulary * FLOAT32
