"""The output head on a piece of the positions at a time: the scores and gradients of all logits at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from test_shared_prompts import CONFIGS, build, rows
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, DeepseekV3Config, FalconConfig, Gemma3TextConfig, MambaConfig, OPTConfig

from axolotl_clo import output_head
from axolotl_clo.collator import CLOCollator
from axolotl_clo.logprobs import pieces_are_exact, sequence_log_probs, token_log_probs
from axolotl_clo.output_head import let_score
from axolotl_clo.shared_prompts import set_attention, share_prompts

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {
    "gemma3": Gemma3TextConfig(**SMALL, num_key_value_heads=2, intermediate_size=48, head_dim=8, pad_token_id=0),
    "bloom": BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4),
    "falcon": FalconConfig(**SMALL, alibi=True),
    "mamba": MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0),
    "deepseek_v3": DeepseekV3Config(
        **SMALL,
        num_key_value_heads=4,
        intermediate_size=48,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        v_head_dim=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        pad_token_id=0,
    ),
}
ALL = CONFIGS | MORE


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "PIECE", {"cpu": 7 * 61, "other": 7 * 61})


def gradients(model: Any, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (scores * torch.linspace(-1, 1, len(scores))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def freeze(model: Any, head: str) -> None:
    """``head`` "frozen": attention alone trains."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(head == "trained" or "attn" in name or "attention" in name or "mixer" in name)


@pytest.mark.parametrize("head", ["frozen", "trained"])
@pytest.mark.parametrize("name", ALL)
def test_pieces_give_the_scores_and_gradients_of_all_logits_at_once(name: str, head: str) -> None:
    model, batch = build(ALL[name], attn="eager" if name in ("mamba", "bloom") else "sdpa"), CLOCollator()(rows())
    freeze(model, head)
    at_once = token_log_probs(model, batch, packed=False)
    expected = gradients(model, at_once)
    assert let_score(model)
    in_pieces = token_log_probs(model, batch, packed=False, in_pieces=True)
    torch.testing.assert_close(in_pieces, at_once, atol=1e-5, rtol=1e-5)
    found = gradients(model, in_pieces)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        size = max(float(expected[key].abs().max()), 1.0)
        torch.testing.assert_close(gradient / size, expected[key] / size, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt_neox"])
def test_pieces_go_with_packed_and_shared_sequences(name: str, layout: str) -> None:
    model, batch = build(CONFIGS[name]), CLOCollator()(rows())
    freeze(model, "frozen")
    expected = sequence_log_probs(model, batch, packed=False)
    let_score(model)
    if layout == "shared":
        assert set_attention(model, longest=64) is None
        batch = share_prompts(batch)
    torch.testing.assert_close(sequence_log_probs(model, batch, in_pieces=True), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("head", ["frozen", "trained"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_bfloat16_pieces_differ_by_its_rounding_alone(name: str, head: str) -> None:
    model, batch = build(CONFIGS[name], dtype=torch.bfloat16), CLOCollator()(rows())
    freeze(model, head)
    at_once = token_log_probs(model, batch, packed=False)
    expected = gradients(model, at_once)
    let_score(model)
    in_pieces = token_log_probs(model, batch, packed=False, in_pieces=True)
    assert in_pieces.dtype == torch.float32
    torch.testing.assert_close(in_pieces, at_once, atol=0.02, rtol=0)
    for key, gradient in gradients(model, in_pieces).items():
        torch.testing.assert_close(gradient, expected[key], atol=0.02 * float(expected[key].abs().max()), rtol=0.02)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.size = max(self.size, made.numel())
        return made


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_no_tensor_grows_with_vocabulary_times_positions(head: str) -> None:
    config = copy.deepcopy(CONFIGS["llama"])
    config.vocab_size = 3001
    model, largest = build(config), {}
    freeze(model, head)
    let_score(model)
    for examples in (1, 3):
        batch = CLOCollator()(rows()[:examples])
        with Largest() as seen:
            token_log_probs(model, batch, in_pieces=True).sum().backward()
        largest[examples] = seen.size
    assert largest[1] == largest[3] == model.lm_head.weight.numel()
    with Largest() as seen:
        token_log_probs(model, batch).sum().backward()
    assert seen.size == len(batch["logit_positions"]) * 3001 > largest[3]


def test_adapters_and_autocast_pass_through() -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    let_score(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    torch.testing.assert_close(
        token_log_probs(adapted, batch, in_pieces=True), token_log_probs(adapted, batch), atol=1e-5, rtol=1e-5
    )
    with torch.autocast("cpu", torch.bfloat16):
        mixed = token_log_probs(adapted, batch, in_pieces=True)
        torch.testing.assert_close(mixed, token_log_probs(adapted, batch), atol=0.02, rtol=0)
    assert (mixed - token_log_probs(adapted, batch)).abs().max() > 1e-4


def test_a_frozen_head_is_cast_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    let_score(model)
    model.lm_head.requires_grad_(False)
    weight = model.lm_head.weight
    monkeypatch.setitem(output_head.PIECE, "cpu", 4 * model.config.vocab_size)
    assert len(batch["logit_positions"]) > 8
    casts = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].shape == weight.shape:
                casts.append(args[0])
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Casts():
        found = token_log_probs(model, batch, in_pieces=True)
    assert len([x for x in casts if x is weight]) == 1
    assert model.lm_head.weight is weight
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(found, token_log_probs(model, batch), atol=0.02, rtol=0)


def test_the_model_still_scores_in_pieces_after_accelerate_wrapped_and_unwrapped_it() -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    let_score(model)
    AcceleratorState._reset_state()  # another test's, of another precision; Axolotl holds on to the PartialState
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare_model(model)
    assert pieces_are_exact(prepared, batch)
    assert pieces_are_exact(accelerator.unwrap_model(prepared, keep_fp32_wrapper=False), batch)
    AcceleratorState._reset_state()


def test_nothing_else_changes() -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    ids = batch["input_ids"]
    before, made = model(input_ids=ids).logits, model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    keys = model.state_dict().keys()
    let_score(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=5, do_sample=False), made)
    assert model.state_dict().keys() == keys
    twin = copy.deepcopy(model)
    twin.lm_head.weight.data.zero_()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert (twin(input_ids=ids).logits == 0).all()


def test_a_model_without_a_decoder_apart_is_left_as_it_was() -> None:
    model = build(CONFIGS["llama"]).model
    assert not let_score(model)
    assert "forward" not in vars(model)


def test_the_probe_finds_a_model_whose_decoder_cannot_be_told_apart() -> None:
    model, batch = build(CONFIGS["llama"]), CLOCollator()(rows())
    assert not pieces_are_exact(model, batch)  # not before it was let
    assert let_score(model)
    assert pieces_are_exact(model, batch)
    opt = build(OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=128, pad_token_id=0))
    assert let_score(opt)
    assert not pieces_are_exact(opt, batch)  # it calls the decoder of its decoder
    assert token_log_probs(opt, batch, packed=False).isfinite().all()
