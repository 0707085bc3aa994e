"""A step on fake tensors allocates, byte for byte, what the same step allocates on real ones."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from axolotl_clo.attention import restrict_training
from axolotl_clo.collator import SEQUENCES, CLOCollator
from axolotl_clo.inspection.simulate import (
    Way,
    as_fake,
    fake_batch,
    fake_tensors,
    scoring_pass,
    stand_in_for_flash,
    training_step,
)
from axolotl_clo.output_head import let_score
from axolotl_clo.shared_prompts import set_attention

SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "qwen2": Qwen2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SIZES, **HEADS),
    "neox": GPTNeoXConfig(**SIZES, num_attention_heads=4),
}


def rows(lengths: tuple[int, ...] = (40, 60, 50, 45), prompts: tuple[int, ...] = (12, 12, 9, 9)) -> list[Any]:
    sequences = {name: list(range(1, 1 + n)) for name, n in zip(SEQUENCES, lengths, strict=True)}
    return [{**sequences, "prompt_lengths": list(prompts), "language": 0}] * 2


def fake_model(config: PreTrainedConfig, **options: Any) -> Any:
    with torch.device("meta"), torch.utils._python_dispatch._disable_current_modes():
        model = build(config, **options)
    as_fake(model)
    return model


def build(config: PreTrainedConfig, scope: str = "attention", lora: bool = False, checkpointing: bool = False) -> Any:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    inner = model
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
        inner = model.get_base_model()
    else:
        restrict_training(model, scope, None)
    let_score(inner)
    assert set_attention(inner, 512) is None
    if checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_fake_step_allocates_what_a_real_one_does(kind: str, checkpointing: bool) -> None:
    way = Way()
    real = training_step(build(CONFIGS[kind], checkpointing=checkpointing), CLOCollator()(rows()), way)
    with fake_tensors() as mode:
        fake = training_step(fake_model(CONFIGS[kind], checkpointing=checkpointing), fake_batch(mode, rows()), way)
    assert fake == real
    assert fake.activations > 0
    assert fake.gradients > 0


@pytest.mark.parametrize(
    "options",
    [{"lora": True}, {"lora": True, "checkpointing": True}, {"scope": "all"}, {"scope": "attention+mlp"}],
)
@pytest.mark.parametrize("way", [Way(shared=False), Way(accumulates=True), Way(autocast=torch.bfloat16)])
def test_so_it_does_for_adapters_scopes_and_ways(options: dict[str, Any], way: Way) -> None:
    real = training_step(build(CONFIGS["llama"], **options), CLOCollator()(rows()), way)
    with fake_tensors() as mode:
        fake = training_step(fake_model(CONFIGS["llama"], **options), fake_batch(mode, rows()), way)
    assert fake == real


def test_what_a_llama_keeps_is_what_its_architecture_says() -> None:
    """Attention alone trains; float32; each prompt once. Numbers kept for a layer and a token, by what needs them."""
    config = CONFIGS["llama"]
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, size = config.num_attention_heads, config.head_dim
    lengths, prompts = (40, 60, 50, 45), (12, 12, 9, 9)
    rejected = lengths[1] - prompts[1] + lengths[3] - prompts[3]
    tokens = sum(lengths) - prompts[0] - prompts[2]
    again = prompts[0] + prompts[2] + rejected  # keys and values of the prompts stand once more before the second
    masks = sum((n - p) * n for n, p in ((lengths[1], prompts[1]), (lengths[3], prompts[3])))  # as float32, on a CPU
    norm = width + 1  # its input and the root
    attention = width + 5 * heads * size + heads  # input of q, k, v; q, k, v, what comes out twice, and its sum
    mlp = 3 * inner  # gate before and after its activation, and up
    layer = tokens * (2 * norm + attention + mlp) + again * 2 * heads * size + masks
    scored = sum(lengths) - sum(prompts)
    rotation = tokens * size * 2
    expected = layers * layer - tokens * norm + tokens * norm + rotation + scored * (width + 1)
    # The first norm gets no gradient, the last one does; the head keeps its own gradient.

    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    model = build(config)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    batch = CLOCollator()(rows(lengths, prompts)[:1])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        from axolotl_clo.logprobs import sequence_log_probs
        from axolotl_clo.shared_prompts import share_prompts

        scores = sequence_log_probs(model, share_prompts(batch), in_pieces=True)
        assert sum(kept.values()) == 4 * expected
    with fake_tensors() as mode:
        step = training_step(fake_model(config), fake_batch(mode, rows(lengths, prompts)[:1]), Way())
    assert step.activations == pytest.approx(4 * expected, rel=0.05)  # with masks, positions and results
    assert scores.shape == (1, 2, 2)


def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    config = CONFIGS["llama"]
    with fake_tensors() as mode:
        batch = fake_batch(mode, rows())
        plain = training_step(fake_model(config), batch, Way())
        checkpointed = training_step(fake_model(config, checkpointing=True), batch, Way())
    tokens = batch["first_copies"].numel()
    inputs = 4 * tokens * config.hidden_size * config.num_hidden_layers
    assert inputs < checkpointed.activations < 2.5 * inputs < plain.activations
    assert checkpointed.peak.total < plain.peak.total


def test_gradients_of_an_earlier_micro_batch_are_there_at_the_peak() -> None:
    with fake_tensors() as mode:
        batch, model = fake_batch(mode, rows()), fake_model(CONFIGS["llama"])
        first = training_step(model, batch, Way())
        second = training_step(model, batch, Way(accumulates=True))
    assert second.peak.named == second.gradients
    assert first.peak.named < first.gradients


def test_scoring_without_gradients_keeps_nothing_of_a_layer() -> None:
    with fake_tensors() as mode:
        batch, model = fake_batch(mode, rows()), fake_model(CONFIGS["llama"])
        assert scoring_pass(model, batch, Way()) < training_step(model, batch, Way()).activations / 2


def test_flash_attention_is_counted_where_it_cannot_run() -> None:
    with fake_tensors() as mode:
        model = fake_model(CONFIGS["llama"])
        plain = training_step(model, fake_batch(mode, rows()), Way())
        stand_in_for_flash(model)
        flash = training_step(model, fake_batch(mode, rows()), Way())
    assert flash.activations == pytest.approx(plain.activations, rel=0.2)
    assert flash != plain


def test_the_next_real_step_is_not_disturbed() -> None:
    batch, model = CLOCollator()(rows()), build(CONFIGS["llama"])
    before = training_step(model, batch, Way())
    with fake_tensors() as mode:
        training_step(fake_model(CONFIGS["llama"]), fake_batch(mode, rows()), Way())
    assert training_step(model, batch, Way()) == before
