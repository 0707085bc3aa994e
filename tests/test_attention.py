"""Attention is found from the structure of a model, in every architecture a user is likely to bring."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    DeepseekV32Config,
    FalconConfig,
    Gemma2Config,
    GitConfig,
    GPT2Config,
    GPTNeoXConfig,
    JambaConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    XLMConfig,
)

from axolotl_clo.attention import attention_modules, describe_trainable, linear_paths, mlp_modules, restrict_training

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "pad_token_id": 0}
FFN = {"intermediate_size": 24, "num_key_value_heads": 1}
QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}

# name: config, parameters of one attention module, its linear projections
MODELS = {
    "llama": (LlamaConfig(**SIZES, **FFN, attention_bias=True), QKVO, QKVO),
    "mistral": (MistralConfig(**SIZES, **FFN), QKVO, QKVO),
    "qwen2": (Qwen2Config(**SIZES, **FFN), QKVO, QKVO),
    "qwen3": (Qwen3Config(**SIZES, **FFN, head_dim=8), QKVO | {"q_norm", "k_norm"}, QKVO),
    "gemma2": (Gemma2Config(**SIZES, **FFN, head_dim=8), QKVO, QKVO),
    "phi3": (Phi3Config(**SIZES, **FFN), {"qkv_proj", "o_proj"}, {"qkv_proj", "o_proj"}),
    "gpt_neox": (
        GPTNeoXConfig(**SIZES, intermediate_size=24),
        {"query_key_value", "dense"},
        {"query_key_value", "dense"},
    ),
    "gpt2": (
        GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2),
        {"c_attn", "c_proj"},
        {"c_attn", "c_proj"},
    ),
    "falcon": (FalconConfig(**SIZES), {"query_key_value", "dense"}, {"query_key_value", "dense"}),
    "mixtral": (MixtralConfig(**SIZES, **FFN, num_local_experts=2), QKVO, QKVO),
}


def build(name: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(MODELS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_exactly_the_attention_parameters_train(name: str) -> None:
    model = build(name)
    restrict_training(model, "attention", None)
    found = attention_modules(model)
    assert len(found) == 3
    for path, module in found.items():
        assert {n.split(".")[0] for n, _ in module.named_parameters()} == MODELS[name][1], path
    inside = {id(p) for module in found.values() for p in module.parameters()}
    for parameter_name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) in inside), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_lora_targets_are_the_projections_by_full_path(name: str) -> None:
    model = build(name)
    paths = linear_paths(model, "attention", None)
    attention = tuple(f"{path}." for path in attention_modules(model))
    assert all(path.startswith(attention) for path in paths)
    assert {path.rsplit(".", 1)[1] for path in paths} == MODELS[name][2]
    assert len(paths) == 3 * len(MODELS[name][2])


@pytest.mark.parametrize("name", MODELS)
def test_mlp_is_the_rest_of_a_layer_but_its_norms(name: str) -> None:
    model = build(name)
    mlps = mlp_modules(model)
    assert len(mlps) == 3
    inside = {id(p) for module in (*mlps.values(), *attention_modules(model).values()) for p in module.parameters()}
    outside = [n for n, p in model.named_parameters() if id(p) not in inside]
    assert all("norm" in n or "ln_" in n or "emb" in n or "wte" in n or "wpe" in n or "head" in n for n in outside)
    restrict_training(model, "attention+mlp", None)
    assert {id(p) for p in model.parameters() if p.requires_grad} == inside


def test_gpt2_lora_leaves_the_mlps_projection_of_the_same_name_alone() -> None:
    from peft import LoraConfig, get_peft_model

    model = build("gpt2")
    peft = get_peft_model(model, LoraConfig(target_modules=linear_paths(model, "attention", "1-2")))
    adapted = {name.split(".lora_A")[0] for name, _ in peft.named_parameters() if "lora_A" in name}
    assert adapted == {
        f"base_model.model.transformer.h.{i}.attn.{leaf}" for i in (1, 2) for leaf in ("c_attn", "c_proj")
    }


def test_layers_narrow_the_scope() -> None:
    model = build("llama")
    restrict_training(model, "attention", "0,2")
    layers = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert layers == {"0", "2"}


def test_all_trains_everything_and_with_layers_whole_layers() -> None:
    model = build("llama")
    restrict_training(model, "all", None)
    assert all(p.requires_grad for p in model.parameters())
    restrict_training(model, "all", "1")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.startswith("model.layers.1.")
    }


@pytest.mark.bad_input("config")
def test_layers_out_of_range_name_what_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"clo.layers: '2-3' reaches layer 3, .* 3 layers; accepted are 0 to 2"):
        attention_modules(build("llama"), "2-3")


@pytest.mark.bad_input("config")
def test_a_model_without_attention_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
    )
    with pytest.raises(ValueError, match="MambaForCausalLM has no attention modules"):
        attention_modules(model)


def test_a_hybrid_trains_its_attention_layers_and_names_them() -> None:
    sizes = {**SIZES, **FFN, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}
    model = AutoModelForCausalLM.from_config(JambaConfig(**sizes, mamba_d_state=4, mamba_dt_rank=4))
    assert list(attention_modules(model)) == ["model.layers.1.self_attn", "model.layers.3.self_attn"]
    assert list(attention_modules(model, "2-3")) == ["model.layers.3.self_attn"]
    assert list(mlp_modules(model, "0-1")) == ["model.layers.0.feed_forward", "model.layers.1.feed_forward"]
    with pytest.raises(ValueError, match=r"clo.layers: '0,2' names only layers without .* attention in layers 1, 3$"):
        attention_modules(model, "0,2")


def test_what_a_text_does_not_reach_stays_frozen() -> None:
    """Cross-attention of a decoder without its encoder, an image tower, the indexer of sparse attention."""
    bart = BartConfig(vocab_size=40, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=24)
    git = GitConfig(**SIZES, intermediate_size=24, vision_config={**SIZES, "intermediate_size": 24})
    sparse = {"index_n_heads": 2, "index_head_dim": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "n_group": 1}
    deepseek = DeepseekV32Config(
        **SIZES, intermediate_size=24, num_key_value_heads=2, topk_group=1, n_routed_experts=8, **sparse
    )
    for config, frozen in ((bart, "encoder_attn"), (git, "image_encoder"), (deepseek, "indexer")):
        model = AutoModelForCausalLM.from_config(config)
        restrict_training(model, "attention", None)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert not [name for name in trained if frozen in name]
        assert [name for name, _ in model.named_parameters() if frozen in name]
        assert not [path for path in linear_paths(model, "attention", None) if frozen in path]


def test_attention_and_feed_forward_in_lists_side_by_side() -> None:
    model = AutoModelForCausalLM.from_config(XLMConfig(n_words=40, emb_dim=16, n_layers=3, n_heads=2))
    assert list(attention_modules(model)) == [f"transformer.attentions.{i}" for i in range(3)]
    assert list(mlp_modules(model, "1-2")) == [f"transformer.ffns.{i}" for i in (1, 2)]
    restrict_training(model, "all", "1")
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {
        "attentions",
        "ffns",
        "layer_norm1",
        "layer_norm2",
    }


@pytest.mark.bad_input("config")
def test_experts_in_one_tensor_are_refused_for_lora() -> None:
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.experts, .*outside linear layers.* `clo.train_modules: attention`"
    ):
        linear_paths(build("mixtral"), "attention+mlp", None)


def test_shards_of_zero_3_do_not_hide_what_is_a_matrix() -> None:
    whole, sharded = build("qwen3"), build("qwen3")
    for parameter in sharded.parameters():
        parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
        parameter.data = torch.empty(0)
    assert list(mlp_modules(sharded)) == list(mlp_modules(whole))
    assert describe_trainable(sharded) == describe_trainable(whole)


def test_table_counts_trainable_parameters_by_kind() -> None:
    model = build("qwen3")
    restrict_training(model, "attention", None)
    table = {line.split()[0]: line for line in describe_trainable(model).splitlines()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert table["attention"].split()[1::2] == [f"{trained:,}", f"{trained:,}"]
    assert table["mlp"].split()[1] == table["norm"].split()[1] == table["embedding"].split()[1] == "0"
    assert table["total"].split()[-1] == f"{sum(p.numel() for p in model.parameters()):,}"
