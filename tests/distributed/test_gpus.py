"""The ready configs as typed on two GPUs, with a small model; `test_engines` has the same engines on CPU processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from test_commands import AXOLOTL, environment, free_port

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.process,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

ZERO2 = ["--deepspeed", "example_configs/deepspeed/zero2.json"]


@pytest.mark.parametrize(
    ("config", "options", "engine"),
    [
        ("clo_ko.yml", [], "DistributedDataParallel"),
        ("clo_ko.yml", ZERO2, "DeepSpeedEngine, ZeRO-2"),
        ("clo_ko_zero3.yml", [], "DeepSpeedEngine, ZeRO-3"),
        ("clo_ko_fsdp2.yml", [], "FSDPLlamaForCausalLM"),
        ("clo_ko_lora.yml", ZERO2, "DeepSpeedEngine, ZeRO-2"),
        ("clo_ko_qlora.yml", [], "DistributedDataParallel"),
        ("clo_ko_qlora.yml", ZERO2, "DeepSpeedEngine, ZeRO-2"),
    ],
)
def test_ready_config_trains(config: str, options: list[str], engine: str, tiny_llama: Path, tmp_path: Path) -> None:
    assert_trains([f"example_configs/{config}", *options], engine, tiny_llama, tmp_path)


def test_fsdp2_keeps_weights_in_main_memory(tiny_llama: Path, tmp_path: Path) -> None:
    """It pins them, which takes a GPU."""
    config = yaml.safe_load((ROOT / "example_configs" / "clo_ko_fsdp2.yml").read_text(encoding="utf-8"))
    config["fsdp_config"]["offload_params"] = True
    file = tmp_path / "offload.yml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert_trains([str(file)], "FSDPLlamaForCausalLM", tiny_llama, tmp_path)


def assert_trains(config: list[str], engine: str, base_model: Path, folder: Path) -> None:
    command = [AXOLOTL, "train", *config, "--base-model", str(base_model)]
    command += ["--attn-implementation", "sdpa", "--max-steps", "2", "--gradient-accumulation-steps", "1"]
    command += ["--output-dir", str(folder / "out"), "--dataset-prepared-path", str(folder / "prepared")]
    command += ["--launcher", "torchrun", "--", "--nproc_per_node=2", f"--master_port={free_port()}"]
    env = environment()
    del env["ACCELERATE_USE_CPU"]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    assert f"clo: 2 processes train {engine}" in output
    assert [*(folder / "out").glob("*.safetensors")]
