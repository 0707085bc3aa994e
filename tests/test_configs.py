"""Every example config passes Axolotl's validation and says what a user needs to know."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, load_config

from axolotl_clo.datasets import starter_folder
from axolotl_clo.schema import CLOConfig

CONFIGS = sorted((ROOT / "example_configs").glob("*.yml"))


def test_the_named_configs_are_there() -> None:
    names = {f"clo_{lang}.yml" for lang in ("zh", "de", "ko", "id", "sw", "yo")}
    assert names | {"clo_ko_lora.yml", "clo_ko_qlora.yml", "quickstart.yml"} <= {c.name for c in CONFIGS}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_config_passes_axolotls_validation(config: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """As on a GPU that can bf16; only the base model, which would come from the hub, is replaced."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    raw = DictDefault(yaml.safe_load(config.read_text(encoding="utf-8")))
    raw.base_model = str(tiny_llama)
    prepare_plugins(raw)
    capabilities = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}
    cfg = validate_config(raw, capabilities=capabilities, env_capabilities={"torch_version": "2.13.0"})
    clo = CLOConfig.from_cfg(cfg)
    assert clo is not None
    assert clo.active
    assert cfg.datasets[0]["path"] == str(starter_folder())
    if config.name.startswith("clo_"):
        assert clo.target_lang == config.stem.split("_")[1]
        assert clo.train_modules == "attention"


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.name.startswith("clo_")], ids=lambda c: c.name)
def test_gpu_configs_have_bf16_flash_attention_and_a_deepspeed_line(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    options: dict[str, Any] = yaml.safe_load(text)
    assert options["bf16"] is True
    assert options["attn_implementation"] == "flash_attention_2"
    assert "# deepspeed: deepspeed_configs/zero2.json" in text
    assert yaml.safe_load(text.replace("# deepspeed:", "deepspeed:"))["deepspeed"]
    assert "Put your own parallel rows here" in text


@pytest.mark.parametrize("name", ["clo_ko.yml", "clo_ko_lora.yml"])
def test_config_trains_with_only_model_and_cpu_settings_overridden(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    from conftest import train

    shutil.copy(ROOT / "example_configs" / name, tmp_path / name)
    trainer = train(
        tmp_path / name,
        base_model=str(tiny_llama),
        bf16=False,
        attn_implementation="sdpa",
        max_steps=2,
        output_dir=str(tmp_path / "out"),
        dataset_prepared_path=str(tmp_path / "prepared"),
    )
    assert trainer.state.global_step == 2


def test_config_can_be_loaded_by_path(tmp_path: Path, tiny_llama: Path) -> None:
    cfg = load_config(ROOT / "example_configs" / "quickstart.yml", base_model=str(tiny_llama), output_dir=str(tmp_path))
    assert cfg.clo.target_lang == "de"
