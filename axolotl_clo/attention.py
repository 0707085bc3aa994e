"""Which parameters are attention, for any decoder, and how to train only those.

Attention is what a reader of "only the query, key, value and output projections train" expects: the modules that form
queries, keys and values from the text and let positions read from one another by them. That is softmax attention
in all its forms (grouped, latent, sparse, with experts) and the linear attention that stands in its place in hybrid
models (gated delta nets, lightning attention), with the biases, gates and norms inside the module. It is not a
state-space model, a recurrence or a short convolution. Nor is it what a text by itself never trains: cross-attention
to an encoder or an image, towers for other inputs, the indexer of sparse attention, which gets no gradient.

The modules are found from the model's structure: inside the layers of the text decoder, the outermost modules that
take a mask and are called attention by their class or attribute. No list of models or projections is kept, so a new
architecture needs no change here.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from axolotl_clo.schema import select_layers

KINDS = ("attention", "mlp", "norm", "embedding", "output head", "other")

# A decoder layer as its parts by full path, see `_decoder_layers`.
Layer = dict[str, nn.Module]


def attention_modules(model: Any, layers: str | None = None) -> dict[str, nn.Module]:
    """The attention modules of the decoder layers that `layers` names, by full path.

    Raises:
        ValueError: the model has no attention, or `layers` reaches outside it or names only layers without attention.
    """
    found = [
        {path: module for root, part in layer.items() for path, module in _attention_in(root, part)}
        for layer in _decoder_layers(model)
    ]
    name = type(model).__name__
    if not any(found):
        raise ValueError(
            f"{name} has no attention modules, which CLO trains; for a model without attention set "
            "`clo.train_modules: all`"
        )
    selected = [found[index] for index in sorted(select_layers(layers, len(found)))]
    if not any(selected):
        accepted = ", ".join(str(index) for index, modules in enumerate(found) if modules)
        raise ValueError(
            f"clo.layers: {layers!r} names only layers without attention; {name} has attention in layers {accepted}"
        )
    return {path: module for modules in selected for path, module in modules.items()}


def mlp_modules(model: Any, layers: str | None = None) -> dict[str, nn.Module]:
    """The feed-forward modules (dense or mixture of experts) of the decoder layers, by full path.

    They are what has weight matrices in a layer and works on one position at a time: not attention, not other
    modules that mix positions (state-space models, recurrences, convolutions), not norms.
    """
    stack = _decoder_layers(model)
    selected = [stack[index] for index in sorted(select_layers(layers, len(stack)))]
    return {
        path: module
        for layer in selected
        for root, part in layer.items()
        for path, module in _feed_forward_in(root, part, is_layer=len(layer) == 1)
    }


def modules_to_train(model: Any, train_modules: str, layers: str | None) -> dict[str, nn.Module]:
    """The modules that `clo.train_modules` and `clo.layers` name, by full path."""
    if train_modules == "all":
        stack = _decoder_layers(model)
        return {path: part for i in sorted(select_layers(layers, len(stack))) for path, part in stack[i].items()}
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
        for part in module.modules():
            if _is_indexer(part):
                part.requires_grad_(False)


def linear_paths(model: Any, train_modules: str, layers: str | None) -> list[str]:
    """Full paths of the projections inside the chosen modules, as LoRA targets.

    Full paths, because a leaf name may stand elsewhere too (`c_proj` is in attention and MLP of GPT-2).

    Raises:
        ValueError: there are projections that LoRA could not adapt, or could not merge.
    """
    chosen = modules_to_train(model, train_modules, layers)
    parts = {path: part for root, module in chosen.items() for path, part in _below(root, module)}
    targets = {path: part for path, part in parts.items() if _is_projection(part)}
    missed = [path for path, part in parts.items() if path not in targets and _holds_projections(path, part)]
    name = type(model).__name__
    if missed or not targets:
        problem = f"{_some(missed)} keep theirs outside linear layers" if missed else "it has no linear layers there"
        remedy = "remove `adapter`" if train_modules == "attention" else "set `clo.train_modules: attention`"
        raise ValueError(
            f"LoRA cannot adapt all projections of {name} that `clo.train_modules: {train_modules}` names: {problem}. "
            f"List `lora_target_modules` (and `lora_target_parameters`) yourself, or {remedy}"
        )
    users: dict[int, list[str]] = {}
    for path, part in targets.items():
        users.setdefault(id(part.weight), []).append(path)
    shared = [paths for paths in users.values() if len(paths) > 1]
    if shared:
        raise ValueError(
            f"{name} shares one weight between {_some(shared[0])}; LoRA would give each an adapter of its own, which "
            "cannot be merged. Remove `adapter`, or list `lora_target_modules` yourself"
        )
    mistaken = [path for path in targets if _is_mistaken_for_experts(model, path.rsplit(".", 1)[-1])]
    if mistaken:
        raise ValueError(
            f"PEFT takes {_some(mistaken)} of {name} for projections of the experts, by name. Remove `adapter`, or "
            "list `lora_target_modules` without them"
        )
    return list(targets)


def describe_trainable(model: Any) -> str:
    """A table of trainable and all parameters by module kind."""
    counts = count_parameters(model)
    counts["total"] = (sum(trained for trained, _ in counts.values()), sum(total for _, total in counts.values()))
    return "\n".join(f"  {kind:<12} {trained:>15,} of {total:>15,}" for kind, (trained, total) in counts.items())


def count_parameters(model: Any) -> dict[str, tuple[int, int]]:
    """Trainable and all parameters of each module kind that the model has."""
    kinds = _parameter_kinds(model)
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        kind = kinds.get(id(parameter)) or ("adapter" if "lora_" in name else "other")
        total[kind] += _count(parameter)
        trained[kind] += _count(parameter) if parameter.requires_grad else 0
    return {kind: (trained[kind], total[kind]) for kind in (*KINDS, "adapter") if total[kind]}


def decoder_layers(model: Any) -> list[list[nn.Module]]:
    """The modules of each layer of the text decoder, in order.

    Raises:
        ValueError: the model has no list of layers.
    """
    return [list(layer.values()) for layer in _decoder_layers(model)]


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
        if "norm" in type(module).__name__.lower() and not _matrices(module):
            mark(module, "norm")
    return kinds


def _count(parameter: torch.Tensor) -> int:
    # DeepSpeed ZeRO-3 leaves an empty shard in place and keeps the real size in ds_numel and ds_shape.
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _matrices(module: nn.Module) -> set[int]:
    """The parameters of two or more dimensions in the module, by identity."""
    return {id(parameter) for parameter in module.parameters() if len(_shape(parameter)) > 1}


def _is_projection(module: nn.Module) -> bool:
    # Conv1D of GPT-2, bitsandbytes and torchao layers all keep a two-dimensional weight under names of their own.
    weight = getattr(module, "weight", None)
    if weight is None or len(_shape(weight)) < 2 or next(module.children(), None) is not None:
        return False
    name = type(module).__name__
    return name == "Conv1D" or ("Linear" in name and "Grouped" not in name)


def _holds_projections(path: str, module: nn.Module) -> bool:
    """Whether weights of this module, no linear layer by itself, are projections: fused experts, heads, groups."""
    name = type(module).__name__
    shapes = [_shape(parameter) for parameter in module.parameters(recurse=False)]
    stacked = any(sum(size > 1 for size in shape) > 2 for shape in shapes)
    fused = ("expert" in path or "GroupedLinear" in name) and any(len(shape) > 1 for shape in shapes)
    return "Conv" not in name and (stacked or fused)


def _is_mistaken_for_experts(model: Any, leaf: str) -> bool:
    """Whether PEFT turns a target of this name into another one.

    For experts that transformers fused, PEFT translates the names of their projections before (`gate_proj`), and
    does so wherever a target ends in one.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, conversions=None)
    except ValueError:
        return True
    return set(config.target_modules) != {leaf}


def _is_indexer(module: nn.Module) -> bool:
    return "Indexer" in type(module).__name__


def _decoder_layers(model: Any) -> list[Layer]:
    """The layers of the text decoder, in order.

    A layer is one entry of a list of modules. XLM and BLT keep attention beside the rest in lists of equal length:
    there a layer is the entries of one index. Models of several stacks (BLT, HRM) count on from stack to stack.

    Raises:
        ValueError: the model has no list of layers.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    # Some models call the last linear layer `decoder`, which get_decoder then returns.
    lists = list(_lists_in(decoder, embedding)) or list(_lists_in(model, embedding))
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder layers; CLO trains transformer decoders")
    stacks: list[list[nn.ModuleList]] = []
    for parent, entries in lists:
        beside = [other for owner, other in lists if owner is parent and len(other) == len(entries)]
        if not any(_is_attention("", part) for other in beside for part in other):
            beside = [entries]
        if beside[0] is entries and any(any(_attention_in("", part)) for other in beside for part in other):
            stacks.append(beside)
    if not stacks:
        stacks = [[max((entries for _, entries in lists), key=len)]]
    paths = {id(module): path for path, module in model.named_modules()}
    return [{paths[id(part)]: part for part in parts} for stack in stacks for parts in zip(*stack, strict=True)]


def _lists_in(parent: nn.Module, embedding: nn.Module | None) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    """The outermost module lists that work on the text, each after the module that holds it."""
    for child in parent.children():
        if isinstance(child, nn.ModuleList):
            yield parent, child
        elif not _is_another_model(child, embedding):
            yield from _lists_in(child, embedding)


def _is_another_model(module: nn.Module, embedding: nn.Module | None) -> bool:
    """Whether this part of the model is a tower for images or sound, or a helper that embeds tokens by itself."""
    main_input = getattr(module, "main_input_name", None)
    if main_input is None:  # no model by itself
        return False
    reads_text = main_input == "input_ids" and _takes(module, "^(input_ids|inputs_embeds)$")
    own_embedding = embedding is not None and getattr(module, "embed_tokens", embedding) is not embedding
    return not reads_text or own_embedding


def _children(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((f"{path}.{name}", child) for name, child in module.named_children())


def _below(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The module and all in it that gradients reach, by full path."""
    if not _is_indexer(module):
        yield path, module
        for name, child in _children(path, module):
            yield from _below(name, child)


def _attention_in(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost attention modules in a part of a layer, by full path."""
    inner = [
        found
        for name, child in _children(path, module)
        if not _is_cross_attention(name, child)
        for found in _attention_in(name, child)
    ]
    # Where one module inside has all the weight matrices, the outer one only adds norms of the layer (DBRX, CPM-Ant).
    if _is_attention(path, module) and not (len(inner) == 1 and _matrices(inner[0][1]) == _matrices(module)):
        yield path, module
    else:
        yield from inner


def _feed_forward_in(path: str, module: nn.Module, is_layer: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """The feed-forward modules in a part of a layer, by full path. A layer itself takes a mask, and is none."""
    if not _matrices(module) or type(module).__name__.endswith("Norm") or _is_attention(path, module):
        return
    if is_layer or any(_attention_in(path, module)):
        for name, child in _children(path, module):
            yield from _feed_forward_in(name, child)
    elif not _takes(module, "mask|cache|past_key_values|^state$"):
        yield path, module


def _called(path: str, module: nn.Module) -> str:
    """The class and the attribute of a module; in a list, the attribute of the list."""
    attribute = next((name for name in reversed(path.split(".")) if not name.isdigit()), "")
    return f"{type(module).__name__} {attribute}".lower()


def _is_attention(path: str, module: nn.Module) -> bool:
    called = _called(path, module)
    return (
        ("attention" in called or "attn" in called)
        and "conv" not in called
        and "decoderlayer" not in called
        and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        and (_takes(module, "mask") or not _arguments(module))
        and any(True for _ in module.parameters())
    )


def _is_cross_attention(path: str, module: nn.Module) -> bool:
    called = _called(path, module)
    return ("cross" in called or "encoder" in called) and ("attention" in called or "attn" in called)


def _takes(module: nn.Module, pattern: str) -> bool:
    return any(re.search(pattern, name) for name in _arguments(module))


def _arguments(module: nn.Module) -> list[str]:
    """The arguments that the module's forward names; none where it only hands on what it gets."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
