"""Both responses to a prompt attend to one copy of it (arXiv 2410.20305, "prefix sharing").

The two sequences of a pair begin with the same prompt. Laid out as prompt, chosen response, rejected response, with
positions that go on from the prompt in both, a pair costs one prompt less, if no token of the rejected response attends
to the chosen one. That is two calls of the model's own attention kernel: prompt and chosen response attend as any
sequence does, and the rejected response attends to the prompt and itself. Nothing is masked that is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from axolotl_clo.logprobs import Batch

Attention = Callable[..., tuple[torch.Tensor, Any]]
OfPairs = Callable[..., tuple[torch.Tensor, None]]


def share_prompts(batch: Batch) -> Batch:
    """The batch with each prompt once.

    Args:
        batch: of `CLOCollator`.

    Returns:
        The same, without the second copy of each prompt in `input_ids` and `position_ids` (`[1, T']`), with
        `logit_positions` in those, and with `attention_mask`, `[1, 1, directions present, 3]`, of integers and on
        the host: `pairs` in the form in which models hand a mask to their attention untouched.
    """
    global _latest
    mask = torch.tensor(batch["pairs"])[None, None]
    _PAIRS[mask] = _latest = tuple(map(tuple, batch["pairs"]))
    return {
        **batch,
        "input_ids": batch["input_ids"][:, batch["first_copies"]],
        "position_ids": batch["position_ids"][:, batch["first_copies"]],
        "logit_positions": batch["shared_logit_positions"],
        "attention_mask": mask,
    }


def forget() -> None:
    """Empty what is kept from batch to batch, before and after it holds tensors of another kind, such as fake ones."""
    _mask.cache_clear()
    _two_calls.cache_clear()


def set_attention(model: Any, longest: int) -> str | None:
    """Let a model's attention take the masks of `share_prompts`; other masks mean what they did, to any model.

    Args:
        model: a `PreTrainedModel`.
        longest: tokens of the longest sequence there will be.

    Returns:
        Why it cannot be done, else None.
    """
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config()
    name = config._attn_implementation
    kind = _FROM_THE_HUB.get(name.partition("@")[0], name)
    if kind not in _KINDS:
        return f"attn_implementation is {name}, and {' or '.join(_KINDS)} is needed"
    windows = [getattr(config, option, None) for option in ("sliding_window", "attention_chunk_size")]
    window = min((size for size in windows if size), default=longest)
    if window < longest:
        return f"the model attends to the last {window} tokens only, and sequences may have {longest}"
    attention = ALL_ATTENTION_FUNCTIONS[name]
    if not isinstance(attention, _Shared):
        AttentionInterface.register(name, _Shared(attention, _KINDS[kind]))
    return None


def shared_form(attention: Attention, kind: str) -> Attention:
    """An attention function that also takes the masks of `share_prompts`, as that of `attn_implementation` ``kind``."""
    return _Shared(attention, _KINDS[kind])


class _Shared:
    """An attention function of transformers, and that of pairs where the mask says so."""

    def __init__(self, plain: Attention, of_pairs: OfPairs) -> None:
        self.plain, self.of_pairs = plain, of_pairs

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.dtype != torch.long:
            return self.plain(module, query, key, value, attention_mask, **kwargs)
        if kwargs.get("position_bias") is not None:
            raise ValueError("prompts are not shared under a position bias")
        return self._of_pairs(module, query, key, value, attention_mask, **kwargs)

    @torch.compiler.disable  # the lengths of each batch would be compiled into it
    def _of_pairs(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pairs: torch.Tensor,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if pairs not in _PAIRS:
            # An engine made a copy on its device of the mask made last; reading that, the host would have to wait.
            assert sum(map(sum, _latest)) == query.shape[2]  # nosec B101 # or it is not the batch at hand
            _PAIRS[pairs] = _latest
        return self.of_pairs(self.plain, module, query, key, value, _PAIRS[pairs], **kwargs)


Pairs = tuple[tuple[int, int, int], ...]

# Of each mask what it says; and what the mask of the batch that the model is given next, or is computing, says.
_PAIRS: Any = WeakIdKeyDictionary()
_latest: Pairs = ()


def _sdpa(
    _plain: Attention,
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pairs: Pairs,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Pair by pair."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    # Split at once: the gradient of a slice is as long as what it is cut from, and would be added up for each pair.
    lengths = [length for prompt, chosen, rejected in pairs for length in (prompt + chosen, rejected)]
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    parts = []
    for i, (prompt, _, _) in enumerate(pairs):
        first, behind = 2 * i, 2 * i + 1
        parts.append(_causal(queries[first], keys[first], values[first], dropout, scaling))
        seen, said = (torch.cat([x[first][:, :, :prompt], x[behind]], dim=2) for x in (keys, values))
        parts.append(_causal(queries[behind], seen, said, dropout, scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Attention of the last queries of a sequence: `[1, heads, queries, size]`."""
    queries, keys = query.shape[2], key.shape[2]
    mask = None if queries == keys else _mask(queries, keys, query.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )


@lru_cache(maxsize=32)
def _mask(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _flash(
    plain: Attention,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pairs: Pairs,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """All pairs in two calls of variable length; a causal mask is aligned to the last query and the last key."""
    two = _two_calls(pairs, query.device)
    kwargs |= {"is_causal": True, "position_ids": None}
    parts = []
    for call in two.calls:
        lengths = {
            "cu_seq_lens_q": call.query_ends,
            "cu_seq_lens_k": call.key_ends,
            "max_length_q": call.longest_query,
            "max_length_k": call.longest_key,
        }
        keys, values = (x.index_select(2, call.keys) for x in (key, value))
        parts.append(plain(module, query.index_select(2, call.queries), keys, values, None, **(kwargs | lengths))[0])
    return torch.cat(parts, dim=1).index_select(1, two.order), None


class _Call(NamedTuple):
    """Places of the tokens that ask and of those that are attended to, and where the sequences of each end, from 0."""

    queries: torch.Tensor
    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


class _TwoCalls(NamedTuple):
    calls: tuple[_Call, _Call]
    order: torch.Tensor
    """Of the tokens of both calls one after the other, which stands at each place."""


@lru_cache(maxsize=4)
def _two_calls(pairs: Pairs, device: torch.device) -> _TwoCalls:
    firsts: list[range] = []
    seconds: list[range] = []
    prompts: list[range] = []
    start = 0
    for prompt, chosen, rejected in pairs:
        end = start + prompt + chosen
        prompts.append(range(start, start + prompt))
        firsts.append(range(start, end))
        seconds.append(range(end, end + rejected))
        start = end + rejected

    def call(queries: list[range], keys: list[range] | list[list[int]]) -> _Call:
        query_ends, key_ends = ([0, *accumulate(map(len, part))] for part in (queries, keys))
        return _Call(
            torch.tensor([i for part in queries for i in part], device=device),
            torch.tensor([i for part in keys for i in part], device=device),
            torch.tensor(query_ends, dtype=torch.int32, device=device),
            torch.tensor(key_ends, dtype=torch.int32, device=device),
            max(map(len, queries)),
            max(map(len, keys)),
        )

    behind = [[*prompt, *rejected] for prompt, rejected in zip(prompts, seconds, strict=True)]
    both = call(firsts, firsts), call(seconds, behind)
    return _TwoCalls(both, torch.argsort(torch.cat([part.queries for part in both])))


# What transformers takes for FlashAttention where its package is not installed.
_FROM_THE_HUB = {
    "kernels-community/flash-attn2": "flash_attention_2",
    "kernels-community/vllm-flash-attn3": "flash_attention_3",
    "kernels-community/flash-attn3": "flash_attention_3",
}

_KINDS: dict[str, OfPairs] = {"sdpa": _sdpa, "flash_attention_2": _flash, "flash_attention_3": _flash}
