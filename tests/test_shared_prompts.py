"""Each prompt once for both of its responses: exactly as with a copy for each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import logged, train, weights
from torch.overrides import TorchFunctionMode
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from axolotl_clo import shared_prompts
from axolotl_clo.collator import SEQUENCES, CLOCollator
from axolotl_clo.logprobs import packing_is_exact, sequence_log_probs, token_log_probs
from axolotl_clo.shared_prompts import set_attention, share_prompts

Write = Callable[..., Path]

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
GQA = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "llama": LlamaConfig(**GQA),
    "qwen2": Qwen2Config(**GQA),
    "mistral": MistralConfig(**GQA, sliding_window=64),
    "granite": GraniteConfig(**GQA, logits_scaling=3.0, attention_multiplier=0.3),
    "cohere": CohereConfig(**GQA, logit_scale=0.3),
    "gemma2": Gemma2Config(**GQA, head_dim=8, sliding_window=64, final_logit_softcapping=2.0),
    "gpt_neox": GPTNeoXConfig(**SMALL, intermediate_size=48),
    "qwen3_moe": Qwen3MoeConfig(**GQA, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=8),
}
LENGTHS = [(5, 7, 3, 9), (2, 1, 11, 4), (9, 2, 2, 2)]  # source prompt, its response, target prompt, its response


def build(config: Any, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attn, dtype=dtype).eval()


def rows(kind: str = "both directions") -> list[dict[str, Any]]:
    """Rows of random tokens in which both sequences of a direction begin with one prompt."""
    numbers = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(1, 61, (length,), generator=numbers).tolist()

    made: list[dict[str, Any]] = []
    for a, b, c, d in LENGTHS:
        source, target, answer, translated = draw(a), draw(c), draw(b), draw(d)
        texts = (source + answer, source + translated, target + translated, target + answer)
        row = dict(zip(SEQUENCES, texts, strict=True)) | {"prompt_lengths": [a, a, c, c], "language": 0}
        if kind == "a token on the border":
            row["prompt_lengths"] = [a - 1, a, c, c - 1]
        if kind == "one direction" and made:
            row |= {"source_chosen": [], "source_rejected": [], "prompt_lengths": [0, 0, c, c]}
        made.append(row)
    return made


@pytest.mark.parametrize("kind", ["both directions", "one direction", "a token on the border"])
@pytest.mark.parametrize("name", CONFIGS)
def test_shared_prompts_give_the_same_scores_and_gradients(name: str, kind: str) -> None:
    model, batch = build(CONFIGS[name]), CLOCollator()(rows(kind))
    apart = token_log_probs(model, batch, packed=False)
    apart.square().mean().backward()
    expected = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    assert set_attention(model, longest=64) is None
    together = token_log_probs(model, share_prompts(batch))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    together.square().mean().backward()
    for key, weight in model.named_parameters():
        if key in expected:
            size = max(float(expected[key].abs().max()), 1.0)
            torch.testing.assert_close(weight.grad / size, expected[key] / size, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_shared_prompts_are_as_near_in_bfloat16_as_packed_ones(name: str) -> None:
    whole, batch = build(CONFIGS[name]), CLOCollator()(rows())
    model = build(CONFIGS[name], dtype=torch.bfloat16)
    model.load_state_dict(whole.state_dict())
    with torch.no_grad():
        truth, packed = (sequence_log_probs(m, batch) for m in (whole, model))
        set_attention(model, longest=64)
        shared = sequence_log_probs(model, share_prompts(batch))
    assert (shared - truth).abs().max() <= 2 * (packed - truth).abs().max() + 0.05


def test_every_prompt_passes_through_the_model_once() -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    set_attention(model, longest=64)
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.shape[1]))
    sequence_log_probs(model, share_prompts(batch))
    assert seen == [sum(a + b + d + c + d + b for a, b, c, d in LENGTHS)]


def test_an_engine_may_copy_the_mask_to_its_device() -> None:
    """Nobody waits for the copy to be read."""
    model, batch = build(CONFIGS["llama"]), share_prompts(CLOCollator()(rows()))
    set_attention(model, longest=64)
    expected = token_log_probs(model, batch)
    copied = {**batch, "attention_mask": batch["attention_mask"].clone()}
    read = []

    class Reads(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.Tensor.tolist, torch.Tensor.item):
                read.append(func)
            return func(*args, **(kwargs or {}))

    with Reads():
        assert torch.equal(token_log_probs(model, copied), expected)
    assert not read


def test_a_response_does_not_see_the_other_one() -> None:
    model, examples = build(CONFIGS["llama"]), rows()
    set_attention(model, longest=64)
    before = token_log_probs(model, share_prompts(CLOCollator()(examples)))
    prompt = examples[0]["prompt_lengths"][0]
    chosen = examples[0]["source_chosen"]
    examples[0]["source_chosen"] = chosen[:prompt] + [token % 60 + 1 for token in chosen[prompt:]]
    after = token_log_probs(model, share_prompts(CLOCollator()(examples)))
    changed = len(chosen) - prompt
    assert (before[:changed] - after[:changed]).abs().max() > 0.01
    torch.testing.assert_close(before[changed:], after[changed:])


def test_other_masks_mean_what_they_did() -> None:
    model = build(CONFIGS["llama"])
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        return model(input_ids=ids, attention_mask=mask).logits[mask.bool()], made

    (logits, made), why_not = outputs(), set_attention(model, longest=64)
    assert why_not is None
    again, made_again = outputs()
    assert torch.equal(logits, again)
    assert torch.equal(made, made_again)
    assert model.config._attn_implementation == "sdpa"


def of_variable_length(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    scaling: float,
    is_causal: bool,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What FlashAttention promises of sequences of variable length, in plain PyTorch: masks end with the last key."""
    assert attention_mask is None
    assert is_causal
    assert (cu_seq_lens_q.dtype, cu_seq_lens_k.dtype) == (torch.int32, torch.int32)
    query_ends, key_ends = cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist()
    assert max_length_q == max(b - a for a, b in pairwise(query_ends))
    assert max_length_k == max(b - a for a, b in pairwise(key_ends))
    groups = query.shape[1] // key.shape[1]
    parts = []
    for (a, b), (c, d) in zip(pairwise(query_ends), pairwise(key_ends), strict=True):
        keys, values = (x[0, :, c:d].repeat_interleave(groups, dim=0) for x in (key, value))
        scores = query[0, :, a:b] @ keys.mT * scaling
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        parts.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values)
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


@pytest.mark.parametrize("kind", ["both directions", "one direction", "a token on the border"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3_moe"])
def test_a_kernel_of_variable_length_is_asked_for_the_same_scores(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build(CONFIGS[name]), CLOCollator()(rows(kind))
    expected = token_log_probs(model, batch, packed=False)
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", of_variable_length)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert set_attention(model, longest=64) is None
    found = token_log_probs(model, share_prompts(batch))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(x.sum(), model.model.layers[0].self_attn.k_proj.weight) for x in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attn", ["sdpa", "flash_attention_2"])
def test_shared_prompts_are_as_near_on_a_gpu_as_packed_ones(attn: str) -> None:
    if attn == "flash_attention_2":
        pytest.importorskip("flash_attn")
    config = LlamaConfig(**{**GQA, "hidden_size": 128})  # FlashAttention wants heads of 32 and more
    whole, batch = build(config), CLOCollator()(rows())
    batch = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
    model = build(config, attn=attn, dtype=torch.bfloat16).cuda()
    model.load_state_dict(whole.state_dict())
    with torch.no_grad():
        truth, packed = (sequence_log_probs(m, batch) for m in (whole.cuda(), model))
        assert set_attention(model, longest=64) is None
        shared = sequence_log_probs(model, share_prompts(batch))
    assert (shared - truth).abs().max() <= 2 * (packed - truth).abs().max() + 0.05


def test_flash_attention_from_the_hub_is_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "kernels-community/flash-attn2@v1"
    monkeypatch.setitem(AttentionInterface._global_mapping, name, lambda *_args, **_kwargs: None)
    model = build(CONFIGS["llama"])
    model.config._attn_implementation = name
    assert set_attention(model, longest=64) is None
    assert AttentionInterface._global_mapping[name].of_pairs is shared_prompts._flash


def test_what_cannot_share_says_why() -> None:
    why_not = set_attention(build(CONFIGS["llama"], attn="eager"), 64)
    assert why_not == "attn_implementation is eager, and sdpa or flash_attention_2 or flash_attention_3 is needed"
    why_not = set_attention(build(CONFIGS["mistral"]), 65)
    assert why_not == "the model attends to the last 64 tokens only, and sequences may have 65"


def test_the_probe_finds_a_model_that_mixes_tokens_outside_attention() -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    set_attention(model, longest=64)
    assert packing_is_exact(model, batch, share_prompts)
    mixing = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: mixing(x + x.roll(1, dims=1))
    assert not packing_is_exact(model, batch, share_prompts)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["plain", "gradient checkpointing"])
def test_training_is_the_same_with_prompts_shared(options: dict[str, Any], write_config: Write, tmp_path: Path) -> None:
    losses = {}
    for share in (True, False):
        config = write_config(
            clo={"target_lang": "de", "share_prompts": share},
            max_steps=12,
            num_epochs=12,
            output_dir=str(tmp_path / str(share)),
            dataset_prepared_path=str(tmp_path / f"prepared {share}"),
            **options,
        )
        losses[share] = logged(train(config), "loss")
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)
    for name, weight in weights(tmp_path / "True").items():
        torch.testing.assert_close(weights(tmp_path / "False")[name], weight, atol=1e-4, rtol=0)


def test_the_log_says_which_layout_is_used(write_config: Write, clo_log: pytest.LogCaptureFixture) -> None:
    train(write_config(max_steps=1))
    assert "hold each prompt once" in clo_log.text
    clo_log.clear()
    train(write_config(max_steps=1, attn_implementation="eager", clo={"target_lang": "ko"}))
    assert "prompts are not shared between responses: attn_implementation is eager" in clo_log.text
