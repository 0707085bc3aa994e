"""Every example config passes Axolotl's validation, is what its name says, and says what a user needs to know."""

from __future__ import annotations

import functools
import itertools
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, load_config, train, weights
from safetensors.torch import load_file

from axolotl_clo.datasets import starter_folder
from axolotl_clo.schema import CLOConfig

FOLDER = ROOT / "example_configs"
CONFIGS = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*.yml"))
GPU_CONFIGS = [name for name in CONFIGS if name != "quickstart.yml"]
DEEPSPEED_CONFIGS = sorted(str(file.relative_to(FOLDER)) for file in (FOLDER / "deepspeed").glob("*.json"))
PAPER_CONFIGS = [name for name in CONFIGS if name.startswith("paper/")]

LANGUAGES = ("zh", "de", "ko", "id", "sw", "yo")
MODELS = {
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
}
# Method to `rl:`, dataset type, and examples one parallel row becomes.
METHODS: dict[str, tuple[str | None, str, int]] = {
    "clo": ("clo", "axolotl_clo.cross_lingual", 1),
    "sft": (None, "axolotl_clo.sft", 2),
    "sft_source": (None, "axolotl_clo.sft_source", 1),
    "sft_target": (None, "axolotl_clo.sft_target", 1),
    "sft_dpo": ("dpo", "axolotl_clo.preference", 2),
    "dpo": ("dpo", "axolotl_clo.preference", 2),
    "ipo": ("ipo", "axolotl_clo.preference", 2),
    "orpo": ("orpo", "axolotl_clo.preference", 2),
    "simpo": ("simpo", "axolotl_clo.preference", 2),
    "kto": ("kto", "axolotl_clo.kto", 4),
}
PAPER_METHODS = ("clo", "sft", "sft_source", "sft_target", "sft_dpo", "orpo")
# What may differ between the methods of the papers' grid for one model and language.
OF_THE_METHOD = {
    *("base_model", "rl", "rl_beta", "orpo_alpha", "datasets", "output_dir"),
    *("micro_batch_size", "gradient_accumulation_steps", "learning_rate"),
}
# What the configs for several GPUs have that `clo_ko.yml` does not, or that it alone has.
SHARDED = {
    "clo_ko_zero3.yml": ("deepspeed",),
    "clo_ko_fsdp2.yml": ("fsdp_version", "fsdp_config", "gradient_checkpointing"),
}
CAPABILITIES = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def read_text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(read_text(name))


def named(name: str) -> tuple[str, str, list[str]]:
    """Model, method and languages that the name of a GPU config stands for."""
    if name.startswith("paper/"):
        _, model, language, file = name.split("/")
        return model, file.removesuffix(".yml"), [language]
    parts = name.removesuffix(".yml").split("_")
    languages = [part for part in parts if part in LANGUAGES]
    return "llama-3-8b", "_".join(parts[: parts.index(languages[0])]), languages


def test_the_named_configs_are_there() -> None:
    names = {"quickstart.yml", "clo_ko_lora.yml", "clo_ko_qlora.yml", "clo_ko_sw.yml"}
    names |= {"clo_ko_zero3.yml", "clo_ko_fsdp2.yml"}
    names |= {f"clo_{language}.yml" for language in LANGUAGES} | {f"{method}_ko.yml" for method in METHODS}
    grid = itertools.product(MODELS, LANGUAGES, PAPER_METHODS)
    names |= {f"paper/{model}/{language}/{method}.yml" for model, language, method in grid}
    assert set(CONFIGS) == names


def test_files_are_those_the_generator_writes() -> None:
    generate = runpy.run_path(str(FOLDER / "generate.py"))
    assert {name: read_text(name) for name in GPU_CONFIGS} == generate["all_yamls"]()


@pytest.fixture(scope="module")
def _one_merged_schema() -> Iterator[None]:
    """All configs name the same plugins; building Axolotl's schema for them takes longer than using it."""
    from axolotl.utils import config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "merge_input_args", functools.cache(config.merge_input_args))
        yield


@pytest.mark.usefixtures("_one_merged_schema")
@pytest.mark.parametrize("name", CONFIGS)
def test_config_passes_axolotls_validation(name: str) -> None:
    """As on a GPU that can bf16."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    raw = DictDefault(read(name))
    assert raw.plugins == ["axolotl_clo.CLOPlugin"]
    prepare_plugins(raw)
    cfg = validate_config(raw, capabilities=CAPABILITIES, env_capabilities={"torch_version": "2.13.0"})
    clo = CLOConfig.from_cfg(cfg)
    assert clo is not None
    assert clo.active == (read(name).get("rl") == "clo")
    assert clo.train_modules == "attention"
    assert len(cfg.datasets) == 1
    assert cfg.datasets[0]["path"] == str(starter_folder())


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_config_is_what_its_name_says(name: str) -> None:
    options = read(name)
    model, method, languages = named(name)
    rl, dataset_type, examples = METHODS[method]
    assert options.get("rl") == rl
    assert options["datasets"] == [{"path": "axolotl_clo/starter", "type": dataset_type}]
    target = options["clo"]["target_lang"]
    assert target == (languages[0] if len(languages) == 1 else languages)
    if method == "sft_dpo":
        first = read(name.replace("sft_dpo", "sft"))
        assert named(name.replace("sft_dpo", "sft")) == (model, "sft", languages)
        assert options["base_model"] == first["output_dir"]
        assert options["chat_template"] == first["chat_template"]
    else:
        assert options["base_model"] == MODELS[model]
    rows, rest = divmod(options["micro_batch_size"] * options["gradient_accumulation_steps"], examples)
    assert (rows, rest) == (16, 0)


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_config_says_where_other_examples_of_a_held_out_row_are_trained_on(name: str) -> None:
    """Axolotl holds out examples, of which a row becomes several by its method or its target languages."""
    _, method, languages = named(name)
    several = METHODS[method][2] * len(languages) > 1
    note = "# Examples are held out, not rows: the others of the same row are trained on."
    assert (note in read_text(name)) == (several and read(name)["val_set_size"] > 0)


def test_no_two_runs_write_to_one_folder() -> None:
    folders = [read(name)["output_dir"] for name in CONFIGS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("name", PAPER_CONFIGS)
def test_methods_of_the_grid_differ_in_the_method_alone(name: str) -> None:
    options, clo = read(name), read(str(Path(name).with_name("clo.yml")))
    differing = {key for key in options.keys() | clo.keys() if options.get(key) != clo.get(key)}
    assert differing <= OF_THE_METHOD


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_gpu_configs_have_bf16_flash_attention_and_a_deepspeed_line(name: str) -> None:
    text = read_text(name)
    options = yaml.safe_load(text)
    assert f"`axolotl train example_configs/{name}`" in text
    assert options["bf16"] is True
    assert options["attn_implementation"] == "flash_attention_2"
    if name not in SHARDED:
        assert "# deepspeed: example_configs/deepspeed/zero2.json" in text
        assert yaml.safe_load(text.replace("# deepspeed:", "deepspeed:"))["deepspeed"]
    assert "Put your own parallel rows here" in text


@pytest.mark.parametrize("name", PAPER_CONFIGS)
def test_taking_off_the_marks_widens_the_scope_and_draws_rows(name: str) -> None:
    text = read_text(name)
    for line in ("train_modules: all", "max_examples: 3200"):
        text = text.replace(f"  # {line}", f"  {line}")
    clo = CLOConfig(**yaml.safe_load(text)["clo"])
    assert clo.train_modules == "all"
    assert clo.max_examples == 3200


@pytest.mark.parametrize("name", DEEPSPEED_CONFIGS)
def test_deepspeed_config_is_what_its_name_says(name: str) -> None:
    """What Axolotl's own options say is left to them (`auto`), and ZeRO-3 saves whole weights."""
    config = json.loads(read_text(name))
    zero = config["zero_optimization"]
    stage, offload = int(Path(name).stem[4]), "offload" in name
    assert zero["stage"] == stage
    assert ("offload_optimizer" in zero) == offload
    assert ("offload_param" in zero) == (offload and stage == 3)
    assert bool(zero.get("stage3_gather_16bit_weights_on_model_save")) == (stage == 3)
    for option in ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size"):
        assert config[option] == "auto"


def test_configs_under_an_engine_differ_from_the_one_without_in_that_alone() -> None:
    plain = read("clo_ko.yml")
    for name, engine in SHARDED.items():
        options = read(name)
        changed = {key for key in options.keys() | plain.keys() if options.get(key) != plain.get(key)}
        assert changed == {*engine, "output_dir"}
    assert (FOLDER.parent / read("clo_ko_zero3.yml")["deepspeed"]).is_file()


def train_two_steps(name: str, base_model: Path, folder: Path) -> Any:
    """Train with nothing overridden but model, folders, and what a CPU cannot do or not soon."""
    return train(
        FOLDER / name,
        base_model=str(base_model),
        bf16=False,
        attn_implementation="sdpa",
        gradient_accumulation_steps=1,
        max_steps=2,
        dataset_num_proc=0,
        output_dir=str(folder / "out"),
        dataset_prepared_path=str(folder / "prepared"),
    )


# SFT on both languages is the first stage of the test below.
@pytest.mark.parametrize("name", ["clo_ko_sw.yml", *(f"{m}_ko.yml" for m in METHODS if m not in ("sft", "sft_dpo"))])
def test_method_trains_attention(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    trainer = train_two_steps(name, tiny_llama, tmp_path)
    assert_only_attention_moved(trainer, tiny_llama, tmp_path / "out")


def test_sft_then_dpo_train_in_two_stages(tiny_llama: Path, tmp_path: Path) -> None:
    first = train_two_steps("sft_ko.yml", tiny_llama, tmp_path / "sft")
    assert_only_attention_moved(first, tiny_llama, tmp_path / "sft" / "out")
    second = train_two_steps("sft_dpo_ko.yml", tmp_path / "sft" / "out", tmp_path / "dpo")
    assert_only_attention_moved(second, tmp_path / "sft" / "out", tmp_path / "dpo" / "out")


def assert_only_attention_moved(trainer: Any, before: Path, after: Path) -> None:
    assert trainer.state.global_step == 2
    old, new = weights(before), weights(after)
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {name for name in old if ".self_attn." in name}


def test_lora_config_trains(tiny_llama: Path, tmp_path: Path) -> None:
    assert train_two_steps("clo_ko_lora.yml", tiny_llama, tmp_path).state.global_step == 2
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    second = {name: weight for name, weight in adapter.items() if "lora_B" in name}  # zero before training
    assert len(second) == 8
    assert all(weight.any() for weight in second.values())


def test_config_can_be_loaded_by_path(tmp_path: Path, tiny_llama: Path) -> None:
    cfg = load_config(FOLDER / "quickstart.yml", base_model=str(tiny_llama), output_dir=str(tmp_path))
    assert cfg.clo.target_lang == "de"
