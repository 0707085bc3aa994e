"""Attention is found, and LoRA fits, in every causal language model class that transformers has."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import transformers
from architectures import (
    EXCEPTIONS,
    IDS,
    NOT_ATTENTION,
    UNUSED,
    Observation,
    config_classes,
    matches,
    run,
    scatter,
    tiny_model,
)
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from axolotl_clo.attention import attention_modules, describe_trainable, linear_paths, mlp_modules, restrict_training

# Classes that came later may be out of reach of the small sizes; up to here every one was looked at.
REVIEWED = Version("5.20.99")

WITHOUT_ATTENTION = {"FalconMambaConfig", "Mamba2Config", "MambaConfig", "RwkvConfig", "xLSTMConfig"}
LORA_REFUSED = {
    "AfmoeConfig": r"PEFT takes .*self_attn\.gate_proj.* for projections of the experts",
    "BeamConfig": r"PEFT takes .*self_attn\.gate_proj.* for projections of the experts",
    "DeepseekV4Config": r"o_a_proj keep theirs outside linear layers",
    "JetMoeConfig": r"experts\.input_linear, .* keep theirs outside linear layers",
    "XLNetConfig": r"rel_attn keep theirs outside linear layers",
    "Zamba2Config": r"shares one weight between .*q_proj, .*q_proj; LoRA",
    "ZambaConfig": r"shares one weight between .*q_proj, .*q_proj; LoRA",
}


@pytest.fixture(scope="module", params=config_classes(), ids=lambda cls: cls.__name__)
def seen(request: pytest.FixtureRequest) -> Observation:
    """One class after the other, so that each is built and watched once for all tests."""
    try:
        return Observation(request.param)
    except Exception as error:
        cause = EXCEPTIONS.get(request.param.__name__)
        if cause is None and Version(transformers.__version__) > REVIEWED:
            cause = f"new in transformers {transformers.__version__}, cannot be made small: {error!r}"
        if cause is None:
            raise
        pytest.skip(cause)


def named(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    inside = {id(p) for module in modules.values() for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in inside}


def test_attention_is_all_that_lets_positions_read_one_another(seen: Observation) -> None:
    model = seen.model
    assert not seen.unreviewed, "mixes positions and is in no table of tests/architectures.py"
    assert (seen.config_class.__name__ in WITHOUT_ATTENTION) == (not seen.attention)
    if not seen.attention:
        with pytest.raises(ValueError, match=f"{type(model).__name__} has no attention modules.*train_modules: all"):
            attention_modules(model)
        return
    restrict_training(model, "attention", None)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    unused = {name for name in trained if matches(UNUSED, seen.typed_path(name))}
    let_gradients_pass(model)
    assert seen.backward(IDS) == trained - unused
    table = describe_trainable(model)
    model.requires_grad_(True)
    matrices = {name for name in trained - unused if seen.parameters[name].dim() > 1}
    assert matrices == seen.attention
    vectors = trained - unused - matrices
    assert vectors <= seen.inside(seen.attention)
    assert seen.biases(seen.attention) <= vectors
    assert seen.needs_company & seen.inside(seen.attention) <= vectors
    count = sum(seen.parameters[name].numel() for name in trained)
    assert re.search(rf"^  attention +{count:,} of ", table, re.MULTILINE)
    assert re.search(rf"^  total +{count:,} of +{sum(p.numel() for p in model.parameters()):,}$", table, re.MULTILINE)


def test_feed_forward_is_the_rest_of_a_layer_that_works_on_one_position(seen: Observation) -> None:
    found = {name for name in named(seen.model, mlp_modules(seen.model)) if seen.parameters[name].dim() > 1}
    assert not found & seen.mixers
    assert found & seen.learning <= seen.pointwise
    # The lists of layers are those in which something mixes positions.
    stacks = {before_number(name) for name in seen.mixers} - {None}
    rest = {name for name in seen.pointwise if before_number(name) in stacks}
    assert {name for name in rest if not matches(NOT_ATTENTION, seen.typed_path(name))} <= found


def test_each_layer_selects_its_own_attention(seen: Observation) -> None:
    by_layer, without = {}, {}
    for index in itertools.count():
        try:
            by_layer[index] = attention_modules(seen.model, str(index))
        except ValueError as error:
            without[index] = str(error)
            if "names only layers without attention" not in str(error):
                break
    count, message = without.popitem()
    if not seen.attention:
        assert "has no attention" in message
        return
    assert f"the model has {count} layers; accepted are 0 to {count - 1}" in message
    assert [path for modules in by_layer.values() for path in modules] == list(attention_modules(seen.model))
    for modules in by_layer.values():
        assert len({re.search(r"\.\d+\b", path)[0] for path in modules}) == 1, "one layer, one number in its paths"
    kinds = getattr(seen.model.config.get_text_config(), "layer_types", None) or []
    if len(kinds) == count:
        assert {kinds[index] for index in without} <= {"conv", "mamba", "linear_attention", "moe", "mlp"}
        assert not {kinds[index] for index in by_layer} & {"conv", "mamba", "moe", "mlp"}


def test_lora_adapts_all_projections_of_attention_and_merges(seen: Observation) -> None:
    model = scatter(tiny_model(seen.config_class))
    refusal = LORA_REFUSED.get(seen.config_class.__name__, None if seen.attention else "has no attention")
    if refusal:
        with pytest.raises(ValueError, match=refusal):
            linear_paths(model, "attention", None)
        return
    paths = linear_paths(model, "attention", None)
    owners = {name.rpartition(".")[0] for name in seen.attention}
    assert set(paths) == {name for name in owners if isinstance(model.get_submodule(name), (nn.Linear, Conv1D))}

    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=paths, init_lora_weights=False))
    assert {path for path, module in model.named_modules() if isinstance(module, LoraLayer)} == set(paths)
    let_gradients_pass(model)
    logits = run(model, IDS)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.any())
        assert learns == ("lora_" in name), name
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(run(merged, IDS), logits, rtol=1e-3, atol=1e-3 * logits.abs().max().item())


def test_wider_scopes_are_adapted_or_refused_by_name(seen: Observation) -> None:
    modules = dict(seen.model.named_modules())
    for scope in ("attention+mlp", "all"):
        try:
            paths = linear_paths(seen.model, scope, None)
        except ValueError as error:
            assert re.search("has no attention|outside linear layers|shares one weight|PEFT takes", str(error))  # noqa: PT017
        else:
            assert paths
            assert all(isinstance(modules[path], (nn.Linear, Conv1D)) for path in paths)


def test_no_class_is_left_out() -> None:
    assert {cls.__name__ for cls in config_classes()} == {cls.__name__ for cls in MODEL_FOR_CAUSAL_LM_MAPPING}
    assert len(config_classes()) > 150


def let_gradients_pass(model: nn.Module) -> None:
    # Reversible layers run without a graph, and go backward only where what comes in has a gradient.
    if "Reformer" in type(model).__name__:
        model.enable_input_require_grads()


def before_number(name: str) -> str | None:
    return found[1] if (found := re.match(r"(.*?)\.\d+\.", name)) else None
