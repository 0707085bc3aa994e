"""Gradient checkpointing recomputes and keeps only what gradients pass through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

Write = Callable[..., Path]

LAYERS = 6


@pytest.fixture
def deep_llama(tmp_path: Path, tiny_llama: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    config = LlamaConfig.from_pretrained(tiny_llama, num_hidden_layers=LAYERS)
    torch.manual_seed(0)
    folder = tmp_path / "deep"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Step:
    """What the second step did: calls of each layer, bytes kept for backward, gradients."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.kept = 0
        self.gradients: dict[str, torch.Tensor] = {}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Step]:
    from axolotl_clo.trainer import CLOTrainer

    def run(config: Path) -> Step:
        step = Step()
        training_step = CLOTrainer.training_step

        def watch(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 0:
                return training_step(self, model, *args, **kwargs)
            inner = model.get_base_model() if hasattr(model, "get_base_model") else model
            hooks = [
                layer.self_attn.register_forward_pre_hook(lambda *_, number=i: step.calls.update([number]))
                for i, layer in enumerate(inner.model.layers)
            ]
            weights = {p.data_ptr() for p in model.parameters()}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                if tensor.data_ptr() not in weights:
                    step.kept += tensor.numel() * tensor.element_size()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = training_step(self, model, *args, **kwargs)
            for hook in hooks:
                hook.remove()
            step.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(CLOTrainer, "training_step", watch)
            train(config, shuffle_merged_datasets=False)
        return step

    return run


CHECKPOINTING: dict[str, dict[str, Any]] = {
    "none": {},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "not reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["weights", "lora"])
def test_nothing_below_the_lowest_trained_layer_is_kept_or_recomputed(
    adapter: dict[str, Any], write_config: Write, watched: Callable[[Path], Step], deep_llama: Path
) -> None:
    def step(name: str, layers: str | None) -> Step:
        clo = {"target_lang": "de", "layers": layers}
        options = {**adapter, **CHECKPOINTING[name]}
        return watched(write_config(base_model=str(deep_llama), clo=clo, micro_batch_size=2, **options))

    steps = {name: step(name, "4-5") for name in CHECKPOINTING}
    for name, one in steps.items():
        twice = 1 if name == "none" else 2
        assert one.calls == {**dict.fromkeys(range(4), 1), 4: twice, 5: twice}, name
        assert one.gradients.keys() == steps["none"].gradients.keys()
        for weight, gradient in one.gradients.items():
            torch.testing.assert_close(gradient, steps["none"].gradients[weight], atol=1e-6, rtol=1e-4)
    if not adapter:
        assert steps["none"].kept < 0.55 * step("none", None).kept
        assert step("reentrant", None).calls == dict.fromkeys(range(LAYERS), 2)
