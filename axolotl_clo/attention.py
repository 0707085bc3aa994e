"""Which parameters are attention, for any decoder, and how to train only those.

Attention modules are found from the model's structure: inside the stack of decoder layers, the outermost
modules that take an attention mask and are called attention by their class or attribute. No list of model or
projection names is kept, so biases and norms inside the module belong to it and a new architecture needs no
change here.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from axolotl_clo.schema import select_layers

KINDS = ("attention", "mlp", "norm", "embedding", "output head", "other")


def attention_modules(model: Any, layers: str | None = None) -> dict[str, nn.Module]:
    """The attention modules of the decoder layers that `layers` names, by full path.

    Raises:
        ValueError: the model has no attention, or `layers` reaches outside it.
    """
    stack = _decoder_layers(model)
    found = {
        index: {f"{path}.{name}": module for name, module in _attention_in(layer)}
        for index, (path, layer) in enumerate(stack)
    }
    if not any(found.values()):
        raise ValueError(
            f"{type(model).__name__} has no attention modules, which CLO trains; for a model without attention set "
            "`clo.train_modules: all`"
        )
    selected = select_layers(layers, len(stack))
    return {path: module for index in sorted(selected) for path, module in found[index].items()}


def mlp_modules(model: Any, layers: str | None = None) -> dict[str, nn.Module]:
    """The feed-forward modules (dense or mixture of experts) of the decoder layers, by full path."""
    stack = _decoder_layers(model)
    selected = select_layers(layers, len(stack))
    found: dict[str, nn.Module] = {}
    for index in sorted(selected):
        path, layer = stack[index]
        attention = {name.split(".")[0] for name, _ in _attention_in(layer)}
        for name, child in layer.named_children():
            if name not in attention and any(p.dim() > 1 for p in child.parameters()):
                found[f"{path}.{name}"] = child
    return found


def modules_to_train(model: Any, train_modules: str, layers: str | None) -> dict[str, nn.Module]:
    """The modules that `clo.train_modules` and `clo.layers` name, by full path."""
    if train_modules == "all":
        stack = _decoder_layers(model)
        return {stack[i][0]: stack[i][1] for i in sorted(select_layers(layers, len(stack)))}
    found = attention_modules(model, layers)
    if train_modules == "attention+mlp":
        found |= mlp_modules(model, layers)
    return found


def restrict_training(model: Any, train_modules: str, layers: str | None) -> None:
    """Let gradients reach the chosen parameters and no others, in place.

    `all` without `layers` trains everything, embeddings and output head too; with `layers`, those layers whole.
    """
    if train_modules == "all" and layers is None:
        model.requires_grad_(True)
        return
    chosen = modules_to_train(model, train_modules, layers)
    model.requires_grad_(False)
    for module in chosen.values():
        module.requires_grad_(True)


def linear_paths(model: Any, train_modules: str, layers: str | None) -> list[str]:
    """Full paths of the projections inside the chosen modules, as LoRA targets.

    Full paths, because a leaf name may stand elsewhere too (`c_proj` is in attention and MLP of GPT-2).

    Raises:
        ValueError: there is none that LoRA could adapt.
    """
    paths = [
        f"{path}.{name}" if name else path
        for path, module in modules_to_train(model, train_modules, layers).items()
        for name, leaf in module.named_modules()
        if _is_projection(leaf)
    ]
    if not paths:
        raise ValueError(
            f"no linear projections found in the {train_modules} modules of {type(model).__name__}; "
            "list `lora_target_modules` yourself"
        )
    return paths


def describe_trainable(model: Any) -> str:
    """A table of trainable and all parameters by module kind."""
    kinds = _parameter_kinds(model)
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        kind = kinds.get(id(parameter)) or ("adapter" if "lora_" in name else "other")
        total[kind] += _count(parameter)
        trained[kind] += _count(parameter) if parameter.requires_grad else 0
    rows = [f"  {kind:<12} {trained[kind]:>15,} of {total[kind]:>15,}" for kind in (*KINDS, "adapter") if total[kind]]
    rows.append(f"  {'total':<12} {trained.total():>15,} of {total.total():>15,}")
    return "\n".join(rows)


def _count(parameter: torch.Tensor) -> int:
    # DeepSpeed ZeRO-3 leaves an empty shard in place and keeps the real size in ds_numel.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _parameter_kinds(model: Any) -> dict[int, str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds: dict[int, str] = {}

    def mark(module: nn.Module | None, kind: str) -> None:
        if module is not None:
            for name, parameter in module.named_parameters():
                if "lora_" not in name:
                    kinds.setdefault(id(parameter), kind)

    try:
        for module in attention_modules(base).values():
            mark(module, "attention")
    except ValueError:
        pass
    for module in mlp_modules(base).values():
        mark(module, "mlp")
    mark(base.get_input_embeddings(), "embedding")
    mark(base.get_output_embeddings(), "output head")
    for module in base.modules():
        if "norm" in type(module).__name__.lower():
            mark(module, "norm")
    return kinds


def _is_projection(module: nn.Module) -> bool:
    # Conv1D of GPT-2, bitsandbytes and torchao layers all keep a two-dimensional weight under names of their own.
    if next(module.children(), None) is not None:
        return False
    weight = getattr(module, "weight", None)
    name = type(module).__name__.lower()
    return weight is not None and ("linear" in name or name == "conv1d")


def _decoder_layers(model: Any) -> list[tuple[str, nn.Module]]:
    """The decoder layers with their full paths: the longest list of layers of the text decoder."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    decoder = decoder if isinstance(decoder, nn.Module) else model
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder layers; CLO trains transformer decoders")
    config = getattr(model, "config", None)
    depth = getattr(config.get_text_config() if config is not None else None, "num_hidden_layers", None)
    # The stack is the list with one entry per layer of the config; else the outermost of the longest lists.
    stack = next((m for m in lists if len(m) == depth), None) or max(lists, key=len)
    paths = {id(module): name for name, module in model.named_modules()}
    return [(paths[id(layer)], layer) for layer in stack]


def _attention_in(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost attention modules of one decoder layer, with their paths inside it."""
    inside: list[str] = []
    for name, module in layer.named_modules():
        if not name or any(name.startswith(f"{outer}.") for outer in inside):
            continue
        called = f"{type(module).__name__} {name.rsplit('.', 1)[-1]}".lower()
        if (
            ("attention" in called or "attn" in called)
            and _takes_mask(module)
            and any(True for _ in module.parameters())
        ):
            inside.append(name)
            yield name, module


def _takes_mask(module: nn.Module) -> bool:
    parameters = inspect.signature(type(module).forward).parameters
    only_variadic = {p.kind for n, p in parameters.items() if n != "self"} <= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    return "attention_mask" in parameters or only_variadic
