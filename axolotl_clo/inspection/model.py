"""The model of a config without its weights: what trains, how large it is, what LoRA adapts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axolotl_clo.attention import (
    count_parameters,
    decoder_layers,
    linear_paths,
    modules_to_train,
    restrict_training,
)
from axolotl_clo.inspection.simulate import stand_in_for_flash
from axolotl_clo.output_head import let_score
from axolotl_clo.precision import keep_in_float32
from axolotl_clo.schema import CLOConfig
from axolotl_clo.shared_prompts import set_attention

# NF4 keeps half a byte a weight and a float32 for each block of 64; quantized twice, a byte for each block and a
# float32 for 256 of them (QLoRA, arXiv 2305.14314, section 3).
NF4_BYTES = 0.5 + 4 / 64
NF4_TWICE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0


@dataclass
class Structure:
    """A model without weights.

    model: with its adapter, and with what trains requiring gradients.
    train_modules: the scope, with `auto` resolved or assumed.
    targets: full paths of the attention (and other) modules that train, or of the projections LoRA adapts.
    cannot_share: why prompts are not shared between responses, or None.
    """

    model: Any
    train_modules: str
    targets: list[str]
    cannot_share: str | None

    def parameters(self) -> dict[str, tuple[int, int]]:
        """Trained and all parameters by module kind."""
        return count_parameters(self.model)


def build(cfg: Any, train_modules: str, keeps_float32: bool = False) -> Structure:
    """The model of a validated config as Axolotl and the plugin would set it up, on the meta device.

    Args:
        cfg: of Axolotl.
        train_modules: `clo.train_modules`, not `auto`.
        keeps_float32: what trains is cast, see `precision`.

    Raises:
        ValueError: the base model is unknown, or has no attention, layers or projections as the options ask for.
    """
    clo = CLOConfig.from_cfg(cfg)
    assert clo is not None  # nosec B101 # tells the type checker
    with torch.device("meta"):
        structure = _build(cfg, clo, train_modules)
    if keeps_float32:
        keep_in_float32(structure.model)
    return structure


def _build(cfg: Any, clo: CLOConfig, train_modules: str) -> Structure:
    model = _model(cfg)
    if cfg.adapter:
        targets = cfg.lora_target_modules
        if not targets and not cfg.lora_target_parameters:
            targets = linear_paths(model, train_modules, clo.layers)
        model = _with_adapter(cfg, model, targets)
        found = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
        found = [name.removeprefix("base_model.model.") for name in found]
    else:
        restrict_training(model, train_modules, clo.layers)
        found = list(modules_to_train(model, train_modules, clo.layers))
    inner = model.get_base_model() if cfg.adapter else model
    let_score(inner)
    cannot_share = "clo.share_prompts is false" if not clo.share_prompts else _share(cfg, inner)
    return Structure(model.train(), train_modules, found, cannot_share)


def _share(cfg: Any, inner: Any) -> str | None:
    if _attention(cfg).startswith("flash_attention"):
        window = getattr(inner.config.get_text_config(), "sliding_window", None)
        stand_in_for_flash(inner)
        too_short = window is not None and window < cfg.sequence_len
        return f"the model attends to the last {window} tokens only" if too_short else None
    return set_attention(inner, cfg.sequence_len)


def _attention(cfg: Any) -> str:
    return str(cfg.attn_implementation or ("flash_attention_2" if cfg.flash_attention else "sdpa"))


def _model(cfg: Any) -> Any:
    from axolotl.loaders.utils import load_model_config
    from transformers import AutoModelForCausalLM

    attention = "eager" if _attention(cfg) == "eager" else "sdpa"
    config = load_model_config(cfg)
    try:
        return AutoModelForCausalLM.from_config(
            config,
            dtype=cfg.torch_dtype,
            attn_implementation=attention,
            trust_remote_code=bool(cfg.trust_remote_code),
        )
    except ValueError as error:
        raise ValueError(f"base_model: {cfg.base_model!r} cannot be built from its config: {error}") from error


def _with_adapter(cfg: Any, model: Any, targets: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    more = {"target_parameters": cfg.lora_target_parameters} if cfg.lora_target_parameters else {}
    accepted = inspect.signature(LoraConfig).parameters
    config = LoraConfig(
        r=cfg.lora_r,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout or 0.0,
        target_modules=targets,
        modules_to_save=cfg.lora_modules_to_save or None,
        use_dora=bool(cfg.peft_use_dora),
        task_type="CAUSAL_LM",
        **{name: value for name, value in more.items() if name in accepted},
    )
    return get_peft_model(model, config)


def set_checkpointing(cfg: Any, model: Any, on: bool) -> None:
    """Switch gradient checkpointing on or off, of the kind that the config asks for."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if not on:
        inner.gradient_checkpointing_disable()
        return
    options = dict(cfg.gradient_checkpointing_kwargs or {"use_reentrant": False})
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if options.get("use_reentrant"):
        inner.enable_input_require_grads()


def quantized_bytes(cfg: Any) -> float | None:
    """Bytes of a weight of a quantized linear layer, or None where weights are not quantized."""
    if cfg.load_in_4bit:
        return NF4_TWICE_BYTES if (cfg.bnb_config_kwargs or {}).get("bnb_4bit_use_double_quant", True) else NF4_BYTES
    return INT8_BYTES if cfg.load_in_8bit else None


def weight_bytes(model: Any, quantized: float | None = None) -> int:
    """Bytes of all parameters and buffers, adapters included.

    Args:
        model: without weights.
        quantized: bytes of a weight of the linear layers but the output head, where these are quantized.
    """
    less = {id(module.weight) for module in _quantizable(model)} if quantized else set()
    total = 0.0
    for parameter in model.parameters():
        size = quantized if quantized and id(parameter) in less else parameter.element_size()
        total += size * parameter.numel()
    return round(total) + sum(buffer.nbytes for buffer in model.buffers())


def _quantizable(model: Any) -> Iterator[nn.Linear]:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name:
            yield module


def largest_block(model: Any) -> int:
    """Bytes of the largest part that an engine which shards weights gathers at once: a layer, or the embeddings."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = [sum(p.nbytes for part in layer for p in part.parameters()) for layer in decoder_layers(inner)]
    return max([*layers, *(p.nbytes for p in inner.get_input_embeddings().parameters())])


@dataclass(frozen=True)
class Matrices:
    """Weights of matrix products, for `duration.operations`.

    body: in the decoder's layers; of experts as many as a token meets.
    trained: those of them that train, adapters included.
    head: in the output head.
    head_trains: whether that trains.
    """

    body: int
    trained: int
    head: int
    head_trains: bool


def matrices(model: Any) -> Matrices:
    """Those of a model."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    config = inner.config.get_text_config()
    experts = next((n for key in _EXPERTS if (n := getattr(config, key, None))), None)
    met = getattr(config, "num_experts_per_tok", None)
    share = met / experts if experts and met else 1.0
    body = trained = 0.0
    for layer in decoder_layers(inner):
        for part in layer:
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1:
                    size = parameter.numel() * (share if "expert" in name and "shared" not in name else 1.0)
                    body += size
                    trained += size if parameter.requires_grad else 0
    head = inner.get_output_embeddings().weight
    return Matrices(round(body), round(trained), head.numel(), bool(head.requires_grad))


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@contextmanager
def real_model(cfg: Any) -> Iterator[Any]:
    """The model with its weights, for what must be measured."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(  # nosec B615 # the user names it
        cfg.base_model, dtype=cfg.torch_dtype, trust_remote_code=bool(cfg.trust_remote_code)
    ).to(device)
    try:
        yield model
    finally:
        del model
