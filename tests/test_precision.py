"""In half precision what trains is kept in float32, or small steps would leave weights as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from axolotl.utils.dict import DictDefault
from conftest import logged, train, weights
from test_configs import FOLDER
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from axolotl_clo.attention import restrict_training
from axolotl_clo.precision import give_back, keep_in_float32, keeps_no_copy
from axolotl_clo.reference import model_key

Write = Callable[..., Path]
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8}
MIXED = DictDefault(bf16=True)


@pytest.fixture
def _bf16_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state()  # its precision is no other test's


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.usefixtures("_bf16_on_the_cpu")
@pytest.mark.parametrize("name", ["clo_ko.yml", "sft_target_ko.yml", "dpo_ko.yml", "orpo_ko.yml", "kto_ko.yml"])
def test_every_attention_weight_moves_at_the_rate_of_the_config(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    trainer = train(
        FOLDER / name,
        base_model=str(tiny_llama),
        attn_implementation="sdpa",
        gradient_accumulation_steps=1,
        max_steps=3,
        saves_per_epoch=None,
        save_steps=3,
        warmup_ratio=0.0,
        dataset_num_proc=0,
        output_dir=str(tmp_path / "out"),
        dataset_prepared_path=str(tmp_path / "prepared"),
    )
    assert trainer.accelerator.mixed_precision == "bf16"
    before, kept, saved = (weights(path) for path in (tiny_llama, tmp_path / "out" / "checkpoint-3", tmp_path / "out"))
    for key, value in saved.items():
        if ".self_attn." in key:
            assert (kept[key].dtype, value.dtype) == (torch.float32, torch.bfloat16), key
            read = before[key].bfloat16().float()
            assert (kept[key] != read).float().mean() > 0.9, key
            assert torch.equal(kept[key].bfloat16(), value), key
        else:  # Axolotl keeps some of these in float32
            assert torch.equal(value.bfloat16(), before[key].bfloat16()), key


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.usefixtures("_bf16_on_the_cpu")
def test_a_run_that_goes_on_ends_where_it_would_have(write_config: Write, tmp_path: Path) -> None:
    options = {
        "bf16": True,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "num_epochs": 4,
        "learning_rate": 1e-5,
    }
    whole = train(write_config(**options, output_dir=str(tmp_path / "whole")))
    AcceleratorState._reset_state()
    resumed = train(
        write_config(
            **options,
            output_dir=str(tmp_path / "resumed"),
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"),
        )
    )
    assert logged(whole, "loss")[2:] == logged(resumed, "loss")[2:]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "resumed")[name]), name


@pytest.mark.parametrize("scope", ["attention", "all"])
def test_what_trains_is_cast_and_given_back(scope: str) -> None:
    """Norms of queries and keys too; the forward pass under autocast and the reference's key stay what they were."""
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SMALL, intermediate_size=48), dtype=torch.bfloat16).eval()
    restrict_training(model, scope, None)
    before, key = copy.deepcopy(model.state_dict()), model_key(model, without_adapter=True, compute_dtype="bf16")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(ids).logits
        keep_in_float32(model)
        cast = model(ids).logits
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} <= {torch.bfloat16}
    torch.testing.assert_close(cast.float(), plain.float(), atol=0.05, rtol=0.05)
    assert model_key(model, without_adapter=True, compute_dtype="bf16") == key
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids).logits.float().sum().backward()
    give_back(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options",
    [{"bf16": "full"}, {"bf16": False}, {"deepspeed": "zero1.json"}, {"fsdp_config": {"a": 1}}, {"adapter": "lora"}],
)
def test_others_that_keep_a_copy_or_want_none_are_left_alone(options: dict) -> None:
    assert keeps_no_copy(MIXED)
    assert not keeps_no_copy(DictDefault({**MIXED, **options}))


def test_experts_are_left_alone_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    restrict_training(model, "all", None)
    keep_in_float32(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert "experts" in caplog.text
    restrict_training(model, "attention", None)
    keep_in_float32(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
