"""Every causal language model class of transformers, small enough to run, and an oracle that finds its attention.

    python tests/architectures.py           # prints a table: architecture, attention, share, LoRA targets
    python tests/architectures.py Jamba     # only what matches

The oracle knows no names of modules. It watches what weights do:

* Weights of one block answer together: where the output projection of an attention or feed-forward block is zero, no
  gradient reaches what lies before it in that block, while the rest of the model, joined by the residual stream, still
  learns. So blocks are the connected parts of "without this weight, that one learns nothing".
* A block mixes positions if, with every other block set to zero, an earlier token still changes a later output.
* A mixing block is softmax attention if some of its features learn nothing from sequences of one token: with one key
  the weight is 1 whatever query and key are. Other mixers are named and judged in the tables below, by hand.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING


def _each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


# Small values for the attributes that configs have in common.
SIZES: dict[str, Any] = {
    **_each("hidden_size d_model n_embd emb_dim embed_dim embedding_dim embedding_size hidden_size_global", 32),
    **_each("input_embedding_size output_embedding_size lru_width mm_embed_dim out_hidden_size", 32),
    **_each("intermediate_size intermediate_size_mlp ffn_dim ffn_hidden_size encoder_ffn_dim decoder_ffn_dim", 48),
    **_each("d_inner dff dim_ff feed_forward_size", 48),
    **_each(
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size", 24
    ),
    **_each("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth", 2),
    **_each("num_encoder_layers num_decoder_layers", 2),
    **_each("num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads", 4),
    **_each("decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads", 4),
    **_each("mamba_n_heads mamba_num_heads index_n_heads linear_num_value_heads", 4),
    **_each("num_key_value_heads num_kv_heads linear_num_key_heads o_groups", 2),
    **_each("head_dim dim_head d_head qk_rope_head_dim qk_nope_head_dim v_head_dim rotary_dim kv_channels", 8),
    **_each("global_head_dim swa_head_dim index_head_dim linear_key_head_dim linear_value_head_dim", 8),
    **_each("hidden_size_per_layer_input router_hidden_size hc_lowrank o_lora_rank gated_norm_rank", 8),
    **_each("q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim", 16),
    **_each("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
    **_each("num_experts_per_tok moe_topk moe_k moe_top_k", 4),
    **_each("mamba_d_state state_size ssm_state_size mamba_dt_rank time_step_rank mamba_chunk_size chunk_size", 4),
    **_each("vocab_size vocab_size_per_layer_input max_position_embeddings n_positions", 64),
    **_each("n_group topk_group n_groups", 1),
    **{"encoder_cross_output_size": 64, "axial_pos_embds": False},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}

# What single configs need besides: mostly one layer of each kind.
OVERRIDES: dict[str, dict[str, Any]] = {
    "BambaConfig": {"attn_layer_indices": [1]},
    "BltConfig": {
        "encoder_hash_byte_group_vocab": 20,
        "encoder_hash_byte_group_size": [3],
        "patching_threshold": 100.0,
        "max_patch_length": 2,
    },
    "CohereCompassTextConfig": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        }
    },
    "DbrxConfig": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 4},
    },
    "DeepseekV4Config": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 2},
        "index_topk": 2,
        "mlp_layer_types": ["moe", "moe"],
    },
    "Dots1Config": {"n_shared_experts": 1},
    "FalconH1Config": {"mamba_d_ssm": 64},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "Gemma3nTextConfig": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "Gemma4AssistantConfig": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "GraniteMoeHybridConfig": {"layer_types": ["mamba", "attention"]},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "LongcatFlashConfig": {"zero_expert_num": 2},
    "Mamba2Config": {"head_dim": 16},
    "MllamaTextConfig": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "MoshiConfig": {"audio_vocab_size": 64},
    "MusicgenConfig": {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}},
    "MusicgenMelodyConfig": {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "ReformerConfig": {"is_decoder": True, "attn_layers": ["local", "lsh"]},
    "RoCBertConfig": {
        "shape_vocab_size": 20,
        "shape_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "pronunciation_embed_dim": 8,
    },
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "ZambaConfig": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
    },
    "ZayaConfig": {"num_experts_per_tok": 1},
}

# Classes that cannot be watched, and why: nothing of ours.
EXCEPTIONS = {
    "Gemma3nConfig": "its image tower needs the package timm",
    "Gemma4AssistantConfig": "a draft head: it needs the keys and values of another model to run",
    "Gemma4UnifiedAssistantConfig": "a draft head: it needs the keys and values of another model to run",
}

# Patterns in typed paths (`self_attn:LlamaAttention/q_proj:Linear`), reviewed by hand.
# Attention that the watching alone does not tell.
ATTENTION = {
    r":CpmAntAttention/": "softmax, but its prompt tokens are keys for a single token too",
    r":MiniMaxLightningAttention/|:\w+(GatedDeltaNet|DeltaAttention)/": "linear attention in the slot of the softmax",
}
# What mixes positions, or is tied to what does, and is not attention.
NOT_ATTENTION = {
    r":\w*Mamba2?Mixer/|:(Bamba|FalconH1)Mixer/|:GraniteMoeHybridMambaLayer/": "state-space model",
    r":\w+ShortConv/|/attn_sconv:|/mlp_sconv:": "short convolution beside or behind attention",
    r":RecurrentGemmaRecurrentBlock/|:Rwkv(SelfAttention|FeedForward)/|:xLSTMLayer/": "recurrence",
    r":AXK2GatedRMSNorm/": "gate of a norm",
    r"^model:BltModel/(encoder_hash|local_\w+:\w+/patch_|global_\w+:\w+/token_)": "embeddings of bytes and patches",
}
# Works on one position at a time, but gets no gradient without the attention it is in series with.
POINTWISE = {
    r":Zamba2?HybridLayer/linear:|:Zamba2?MLP/": "no residual stream from the shared block to its layer",
    r":BltGlobalTransformer/.*:BltMLP/": "no residual stream around the transformer over patches",
    r":Qwen4ExpTextGatedResidual/|:HYV4HyperConnection/": "mixes the residual streams around attention",
}
# Inside attention, but without a gradient on text.
UNUSED = {r":XLNetRelativeAttention/(r_s_bias|seg_embed)$": "embeddings of segments, of which a text has one"}


def config_classes() -> list[type[PreTrainedConfig]]:
    return sorted(dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING.keys()), key=lambda cls: cls.__name__)


def model_class(config_class: type[PreTrainedConfig]) -> type[nn.Module]:
    # The kernels of fla need a GPU. Where the package is not found, the models fall back to torch.
    fla = sys.modules.get("fla")
    sys.modules["fla"] = None
    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    finally:
        sys.modules["fla"] = fla
        if fla is None:
            del sys.modules["fla"]


def _small_values(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    try:
        default = config_class()
    except Exception:  # some have no defaults
        default = None
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values = {name: size for name, size in SIZES.items() if name in fields}
    for name, field in fields.items():
        if ("drop" in name or "jitter" in name) and isinstance(field.default, float):
            values[name] = 0.0
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        values["num_key_value_heads"] = SIZES["num_attention_heads"]  # latent attention has no grouped heads
    for name, declared in (config_class.sub_configs or {}).items():
        part = getattr(default, name, None)
        if name in fields and isinstance(part, PreTrainedConfig):
            values[name] = _small_values(type(part))
            if declared is AutoConfig:
                values[name]["model_type"] = part.model_type
        elif name in fields and dataclasses.is_dataclass(declared):
            values[name] = _small_values(declared)
    for name in ("layer_types", "layers_block_type"):
        kinds = list(dict.fromkeys(getattr(default, name, None) or []))
        if name in fields and len(kinds) > 1:  # one layer of each
            depths = values.keys() & {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}
            values |= {name: kinds, **dict.fromkeys(depths, len(kinds))}
    for name, value in deepcopy(OVERRIDES.get(config_class.__name__, {})).items():
        values[name] = values[name] | value if isinstance(value, dict) and name in values else value
    return values


def tiny_model(config_class: type[PreTrainedConfig]) -> nn.Module:
    """A model of two or a few layers, at least one of each kind, with random weights and without dropout.

    Raises:
        ValueError: it would not be small.
        Exception: transformers cannot build it.
    """
    values = _small_values(config_class)
    with torch.device("meta"):
        size = sum(p.numel() for p in build(config_class, config_class(**deepcopy(values))).parameters())
    if size > 10_000_000:
        raise ValueError(f"{config_class.__name__} keeps {size:,} parameters")
    return build(config_class, config_class(**values))


def build(config_class: type[PreTrainedConfig], config: PreTrainedConfig) -> nn.Module:
    model = model_class(config_class)
    torch.manual_seed(0)
    if "Musicgen" in model.__name__:  # the auto class hands over the whole config, which the model refuses
        return model._from_config(config.decoder, attn_implementation="eager")
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits, [rows, positions, …]."""
    codebooks = model.config.num_codebooks if "Musicgen" in type(model).__name__ else 1
    torch.manual_seed(0)  # the hash of Reformer is drawn anew in every pass
    return model(input_ids=input_ids.repeat_interleave(codebooks, 0), use_cache=False).logits


def scatter(model: nn.Module) -> nn.Module:
    """The model with noise on all parameters, as many begin at 0 or 1 and say nothing there; in training mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.train()  # Reformer cannot go backward in evaluation mode; there is no dropout


class Observation:
    """What the weights of a model do, by parameter name."""

    def __init__(self, config_class: type[PreTrainedConfig]) -> None:
        self.config_class = config_class
        self.model = scatter(tiny_model(config_class))
        self.parameters = dict(self.model.named_parameters())
        self.ids = IDS
        self._watch_stream()

        self.learning = self.backward(self.ids)
        # An attention sink is a second key even for a single token: taken away by a score of minus infinity, or nearly.
        with _filled([p for name, p in self.parameters.items() if "sink" in name], -1e4):
            self.backward(self.ids)
            from_many = self._learning_features()
            self.backward(self.ids.reshape(-1, 1))
            from_one = self._learning_features()
        # Parameters of which some feature learns from sequences, but not from single tokens.
        self.needs_company = {name for name in from_many if _any_lost(from_many[name], from_one.get(name))}

        blocks = self._blocks()
        weights = {name for block in blocks for name in block}
        self.attention: set[str] = set()
        self.mixers: set[str] = set()
        self.unreviewed: list[set[str]] = []
        for block in blocks:
            if not self._mixes(block, weights - block):
                continue
            self.mixers |= {name for name in block if not matches(POINTWISE, self.typed_path(name))}
            rest = {name for name in block & self.mixers if not matches(NOT_ATTENTION, self.typed_path(name))}
            if rest & self.needs_company or any(matches(ATTENTION, self.typed_path(name)) for name in rest):
                self.attention |= rest
            elif rest:
                self.unreviewed.append(rest)
        self.pointwise = weights - self.mixers

    def typed_path(self, parameter_name: str) -> str:
        """Attribute and class of each module on the way: `…/self_attn:LlamaAttention/q_proj:Linear/weight`."""
        steps, module = [], self.model
        *path, leaf = parameter_name.split(".")
        for attribute in path:
            module = getattr(module, attribute)
            steps.append(f"{attribute}:{type(module).__name__}")
        return "/".join([*steps, leaf])

    def owner(self, parameter_name: str) -> nn.Module:
        return self.model.get_submodule(parameter_name.rpartition(".")[0])

    def biases(self, names: set[str]) -> set[str]:
        """The vectors that belong to a linear layer or convolution among the weights."""
        prefixes = {name.rpartition(".")[0] for name in names if name.endswith(".weight")}
        return {
            name
            for name in self.learning
            if name.rpartition(".")[0] in prefixes and self.parameters[name].dim() == 1 and name.endswith(".bias")
        }

    def inside(self, names: set[str]) -> set[str]:
        """The vectors (norms, sinks, biases) whose closest module with matrices has no others than these."""
        matrices = {name for name in self.learning if self.parameters[name].dim() > 1}
        found = set()
        for vector in (name for name, p in self.parameters.items() if p.dim() == 1):
            path, near = vector, set[str]()
            while path and not near:
                path = path.rpartition(".")[0]
                near = {name for name in matrices if name.startswith(f"{path}.")}
            if near and near <= names:
                found.add(vector)
        return found

    def _watch_stream(self) -> None:
        embedding = self.model.get_input_embeddings()
        embedding = embedding[0] if isinstance(embedding, nn.ModuleList) else embedding
        self.stream: torch.Tensor | None = None

        def keep(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            if output.requires_grad:
                output.retain_grad()
                self.stream = output

        embedding.register_forward_hook(keep)
        ends = [embedding, self.model.get_output_embeddings()]
        self._ends = {id(p) for module in ends if module is not None for p in module.parameters()}

    def backward(self, ids: torch.Tensor) -> set[str]:
        """The parameters that get a gradient."""
        self.model.zero_grad(set_to_none=True)
        self.stream = None
        logits = run(self.model, ids)
        (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        return {name for name, p in self.parameters.items() if p.grad is not None and bool(p.grad.any())}

    def _learning_features(self) -> dict[str, list[torch.Tensor]]:
        """Which rows and which columns of a weight have a gradient: a fused projection is part query, part value."""
        grads = {name: p.grad != 0 for name, p in self.parameters.items() if p.grad is not None}
        return {
            name: [grad.transpose(0, axis).flatten(1).any(1) for axis in (0, 1)] if grad.dim() > 1 else [grad]
            for name, grad in grads.items()
        }

    def _blocks(self) -> list[set[str]]:
        """Connected weights, without those that the whole stream passes (embeddings, output head)."""
        silenced: dict[str, set[str]] = {}
        for name in self.learning:
            if self.parameters[name].dim() > 1 and id(self.parameters[name]) not in self._ends:
                with _filled([self.parameters[name]], 0.0):
                    lost = self.learning - self.backward(self.ids)
                if self.stream is not None and self.stream.grad is not None and self.stream.grad.any():
                    silenced[name] = lost
        blocks = {name: {name} for name in silenced}
        for name, lost in silenced.items():
            for other in lost & silenced.keys():
                merged = blocks[name] | blocks[other]
                blocks |= dict.fromkeys(merged, merged)
        return list({id(block): block for block in blocks.values()}.values())

    def _mixes(self, block: set[str], others: set[str]) -> bool:
        changed = self.ids.clone()
        changed[:, 0] = (changed[:, 0] + 4) % 57 + 3
        with torch.no_grad(), _filled([self.parameters[name] for name in others], 0.0):
            before, after = run(self.model, self.ids), run(self.model, changed)
        return bool((before - after)[:, 1:].abs().max() > 1e-6 * before.abs().max())


@contextmanager
def _filled(parameters: list[nn.Parameter], value: float) -> Iterator[None]:
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, kept, strict=True):
                parameter.copy_(values)


def _any_lost(before: list[torch.Tensor], after: list[torch.Tensor] | None) -> bool:
    return after is None or any(bool((b & ~a).any()) for b, a in zip(before, after, strict=True))


def matches(patterns: dict[str, str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def models_for_table(config_class: type[PreTrainedConfig]) -> Iterator[tuple[str, nn.Module]]:
    """The model of the default config, without memory, and the tiny one, each after its name."""
    name = model_class(config_class).__name__
    if sum(model_class(other) is model_class(config_class) for other in config_classes()) > 1:
        name += f" ({config_class.__name__})"
    model = None
    with suppress(Exception), torch.device("meta"):
        model = build(config_class, config_class())
    if model is not None:
        yield name, model
    yield f"{name}*", tiny_model(config_class)


def table_row(config_class: type[PreTrainedConfig]) -> list[str]:
    """Class, attention modules, their share of the parameters, LoRA targets or why there are none."""
    from axolotl_clo.attention import attention_modules, linear_paths

    row = [model_class(config_class).__name__, "", "", ""]
    try:
        for row[0], model in models_for_table(config_class):
            with suppress(ValueError):  # some hybrids are all state space by default
                attention = attention_modules(model)
                break
        else:
            attention = attention_modules(model)
        owned = {id(p): p.numel() for module in attention.values() for p in module.parameters()}
        row[1:3] = [str(len(attention)), f"{sum(owned.values()) / sum(p.numel() for p in model.parameters()):.1%}"]
        targets = linear_paths(model, "attention", None)
        row[3] = " ".join(dict.fromkeys(re.split(r"\.\d+\.(?!.*\.\d+\.)", path)[-1] for path in targets))
    except ValueError as error:
        row[3] = str(error)
    except Exception as error:
        row[3] = repr(error)
    return [*row[:3], EXCEPTIONS.get(config_class.__name__, row[3])]


def main(pattern: str = "") -> None:
    print("* in a small size: the default config cannot be built, or has no attention\n")
    for config_class in config_classes():
        if re.search(pattern, config_class.__name__, re.IGNORECASE):
            name, count, share, targets = table_row(config_class)
            print(f"{name:<48} {count:>4} {share:>6}  {targets}", flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(*sys.argv[1:])
