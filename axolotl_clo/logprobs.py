"""From a packed batch to the log-probability of each response, without the logits of other positions.

A batch is what `CLOCollator` returns. Only the positions that predict a response token reach the output head, and it is
the model's own, with its soft-capping or scaling: in pieces (`output_head`), or at once (`logits_to_keep`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from axolotl_clo.collator import SEQUENCES, CLOCollator

Batch = dict[str, Any]

# Largest difference in nats between a packed and a separate token that counts as equal in float32.
PACKING_TOLERANCE = 1e-3

# Of logits that are there at once, how many positions are taken to float32 at a time.
_POSITIONS = 256

# Of a prompt's end and of a response's beginning, in the example on which layouts are tried.
TRIED_TOKENS = 32


def sequence_log_probs(model: nn.Module, batch: Batch, *, packed: bool = True, in_pieces: bool = False) -> torch.Tensor:
    """Summed log-probability of each response, `[examples, 2, 2]`, in nats, float32; see `token_log_probs`."""
    tokens = token_log_probs(model, batch, packed=packed, in_pieces=in_pieces)
    sums = torch.zeros(batch["response_lengths"].numel(), dtype=tokens.dtype, device=tokens.device)
    return sums.index_add(0, batch["response_sequence"], tokens).view_as(batch["response_lengths"])


def token_log_probs(model: nn.Module, batch: Batch, *, packed: bool = True, in_pieces: bool = False) -> torch.Tensor:
    """Log-probability of each response token, `[N]`, in nats, float32.

    Args:
        model: a causal language model, or a wrapper around one that passes keyword arguments on.
        batch: see `CLOCollator`.
        packed: run the sequences end to end in one row; False: one padded row each, for architectures that
            cannot tell packed sequences apart.
        in_pieces: never hold the logits of all positions; the model went through `output_head.let_score`.
    """
    inputs, row, column = (_packed if packed else _padded)(batch)
    if in_pieces:
        places = row * inputs["input_ids"].shape[1] + column
        scores: torch.Tensor = model(**inputs, use_cache=False, score_positions=places, score_ids=batch["response_ids"])
        return scores
    chosen: torch.Tensor = _Chosen.apply(_logits(model, inputs, row, column), batch["response_ids"])
    return chosen


class _Chosen(torch.autograd.Function):
    """`[N]` log-probabilities of `ids`, `[N]`, in float32, from logits `[N, V]` that are there at once.

    Beside the logits and their gradient, each in the dtype of the logits, no tensor is as large as they are.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        totals = torch.cat([piece.float().logsumexp(-1) for piece in logits.split(_POSITIONS)])
        ctx.save_for_backward(logits, ids, totals)
        return logits.gather(-1, ids[:, None]).squeeze(-1).float() - totals

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, ids, totals = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        parts = (x.split(_POSITIONS) for x in (logits, ids, totals, grads[0], gradient))
        for scores, tokens, total, grad, out in zip(*parts, strict=True):
            towards = (scores.float() - total[:, None]).exp_().neg_()
            towards[torch.arange(len(tokens), device=tokens.device), tokens] += 1
            out.copy_(towards.mul_(grad[:, None]))
        return gradient, None


def _logits(model: nn.Module, inputs: dict[str, Any], row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Logits at places, `[N, V]`."""
    if not _accepts(model, "logits_to_keep"):
        return model(**inputs, use_cache=False).logits[row, column]  # type: ignore[no-any-return]
    if len(inputs["input_ids"]) == 1:
        return model(**inputs, use_cache=False, logits_to_keep=column).logits[0]  # type: ignore[no-any-return]
    first = int(column.min())
    kept = torch.arange(first, int(column.max()) + 1, device=column.device)
    return model(**inputs, use_cache=False, logits_to_keep=kept).logits[row, column - first]  # type: ignore[no-any-return]


def _packed(batch: Batch) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """What the model gets, and the row and column of each logit."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    if "attention_mask" in batch:  # prompts are shared
        inputs["attention_mask"] = batch["attention_mask"]
    return inputs, torch.zeros_like(batch["logit_positions"]), batch["logit_positions"]


def _padded(batch: Batch) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """What the model gets, and the row and column of each logit."""
    positions = batch["position_ids"][0]
    starts = (positions == 0).nonzero().squeeze(-1).tolist()
    bounds = [*starts, positions.numel()]
    rows = [batch["input_ids"][0, a:b] for a, b in pairwise(bounds)]
    # The pad token is never attended to nor scored, so its id does not matter.
    input_ids = pad_sequence(rows, batch_first=True)
    attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return inputs, _sequence_of_logits(batch), positions[batch["logit_positions"]]


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


def first_example(batch: Batch) -> Batch:
    """The first example of a packed batch, of each sequence the tokens about the border of prompt and response alone.

    Whether sequences are kept apart shows there too, and long ones would cost as much as a step.
    """
    bounds = [*(batch["position_ids"][0] == 0).nonzero().squeeze(-1).tolist(), batch["input_ids"].shape[1]]
    lengths = batch["response_sequence"].bincount(minlength=len(SEQUENCES))[: len(SEQUENCES)].tolist()
    row: dict[str, Any] = {name: [] for name in SEQUENCES} | {"prompt_lengths": [0] * len(SEQUENCES), "language": 0}
    present = [i for i, length in enumerate(lengths) if length]
    for place, i in enumerate(present):
        tokens = batch["input_ids"][0, bounds[place] : bounds[place + 1]].tolist()
        prompt = len(tokens) - lengths[i]
        cut = max(0, batch["pairs"][place // 2][0] - TRIED_TOKENS)  # alike in a pair, which shares what is left
        row[SEQUENCES[i]] = tokens[cut : prompt + TRIED_TOKENS]
        row["prompt_lengths"][i] = prompt - cut
    device = batch["input_ids"].device
    return {name: x.to(device) if torch.is_tensor(x) else x for name, x in CLOCollator()([row]).items()}


class Yardstick(NamedTuple):
    """What each sequence of a batch scores alone, `[N]` in nats, and how far another layout may be from it."""

    alone: torch.Tensor
    tolerance: torch.Tensor


@torch.no_grad()
def yardstick(model: nn.Module, batch: Batch) -> Yardstick:
    """Score the sequences of a batch one by one.

    Below float32 the noise of padding, which is known to be right, says how far a layout may be from that.
    """
    alone = torch.cat([token_log_probs(model, single) for single in _split(batch)])
    noise = (token_log_probs(model, batch, packed=False) - alone).abs().max()
    return Yardstick(alone, torch.clamp(3 * noise, min=PACKING_TOLERANCE))


@torch.no_grad()
def packing_is_exact(
    model: nn.Module,
    batch: Batch,
    layout: Callable[[Batch], Batch] = lambda batch: batch,
    known: Yardstick | None = None,
) -> bool:
    """Whether the sequences of `batch` score the same packed as each alone.

    Packing by position ids is silently wrong for architectures that do not mask by them (ALiBi models, some
    linear attention), so it is tried on the model at hand.

    Args:
        model: to try it on.
        batch: of `CLOCollator`.
        layout: what is done to the batch before, such as `share_prompts`.
        known: of the same model and batch, where it is at hand.
    """
    if not _accepts(model, "position_ids"):
        return False
    return _is_exact(known or yardstick(model, batch), lambda: token_log_probs(model, layout(batch)))


@torch.no_grad()
def pieces_are_exact(model: nn.Module, batch: Batch, known: Yardstick | None = None) -> bool:
    """Whether the sequences of `batch` score the same with the output head in pieces as each alone."""
    known = known or yardstick(model, batch)
    return _is_exact(known, lambda: token_log_probs(model, batch, packed=False, in_pieces=True))


def _is_exact(known: Yardstick, score: Callable[[], torch.Tensor]) -> bool:
    try:
        error = (score() - known.alone).abs().max()
    except torch.OutOfMemoryError:  # a RuntimeError too, which says nothing of the layout
        raise
    except (AttributeError, RuntimeError, ValueError, TypeError):
        return False
    return bool(error <= known.tolerance)


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
