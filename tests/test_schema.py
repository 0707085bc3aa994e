"""The `clo:` section: defaults, and every impossible config stopped with a message that says what to change."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import load_config

from axolotl_clo.schema import CLOConfig, parse_layers, select_layers

Write = Callable[..., Path]

BAD_SECTIONS: dict[str, tuple[Any, str]] = {
    "nll_weight above one": ({"nll_weight": 1.5}, r"clo\.nll_weight\n.*less than or equal to 1"),
    "nll_weight below zero": ({"nll_weight": -0.1}, r"clo\.nll_weight\n.*greater than or equal to 0"),
    "nll_weight not a number": ({"nll_weight": "half"}, r"clo\.nll_weight\n.*valid number"),
    "beta zero": ({"beta": 0}, r"clo\.beta\n.*greater than 0"),
    "beta negative": ({"beta": -0.1}, r"clo\.beta\n.*greater than 0"),
    "near miss": ({"bета": 1, "nll_wieght": 0.3}, r"unknown option .*`nll_wieght` \(did you mean `nll_weight`\?\)"),
    "unknown key": ({"temperature": 1}, r"unknown option `temperature`.*accepted here: .*target_lang"),
    "unknown nll_languages": ({"nll_languages": "source"}, r"clo\.nll_languages\n.*'target' or 'both'"),
    "unknown train_modules": (
        {"train_modules": "mlp"},
        r"clo\.train_modules\n.*'attention', 'attention\+mlp', 'all' or 'auto'",
    ),
    "unknown reference": ({"reference": "model"}, r"clo\.reference\n.*'precompute' or 'adapter'"),
    "layers reversed": ({"layers": "8-3"}, r"clo\.layers\n.*first layer comes after the last"),
    "layers not ranges": ({"layers": "top"}, r"clo\.layers\n.*accepted are layer ranges such as '16-31'"),
    "same languages": ({"target_lang": "en"}, r"source_lang and target_lang are both 'en'"),
    "source among the targets": ({"target_lang": ["ko", "en"]}, r"target_lang \['ko', 'en'\] holds source_lang 'en'"),
    "language listed twice": ({"target_lang": ["ko", "ko"]}, r"a list of different language codes"),
    "no language in the list": ({"target_lang": []}, r"a list of different language codes"),
    "language in the list no code": ({"target_lang": ["ko", "sw KE"]}, r"got 'sw KE'; a language code such as"),
    "flat columns for two languages": (
        {
            "target_lang": ["ko", "sw"],
            "fields": {f"{a}_{b}": f"{a}_{b}" for a in ("source", "target") for b in ("prompt", "response")},
        },
        r"flat columns hold one target language",
    ),
    "unknown loss": ({"preference_loss": "dpo"}, r"clo\.preference_loss\n.*'sigmoid', 'ipo', 'hinge'"),
    "beta with orpo": ({"preference_loss": "orpo", "beta": 0.1}, r"orpo has no beta; balance it with nll_weight"),
    "smoothing with hinge": (
        {"preference_loss": "hinge", "label_smoothing": 0.1},
        r"label_smoothing is for preference_loss sigmoid, robust or simpo, not hinge",
    ),
    "robust without smoothing": ({"preference_loss": "robust"}, r"robust needs label_smoothing above 0"),
    "smoothing of a half": ({"label_smoothing": 0.5}, r"clo\.label_smoothing\n.*less than 0\.5"),
    "gamma without simpo": ({"simpo_gamma": 1.0}, r"simpo_gamma is for preference_loss simpo, not sigmoid"),
    "no examples": ({"max_examples": 0}, r"clo\.max_examples\n.*greater than or equal to 1"),
    "ratio of zero": ({"target_source_ratio": 0}, r"clo\.target_source_ratio\n.*greater than 0"),
    "temperature below one": (
        {"sampling_temperature": 0.5},
        r"clo\.sampling_temperature\n.*greater than or equal to 1",
    ),
    "language no code": ({"target_lang": "ko KR"}, r"clo\.target_lang\n.*a language code such as"),
    "norwegian as boolean": ({"target_lang": False}, r"the YAML boolean false: write the language code in quotes"),
    "flat columns incomplete": (
        {"fields": {"source_prompt": "q", "target_prompt": "f"}},
        r"clo\.fields\n.*missing: source_response, target_response",
    ),
    "unknown field": ({"fields": {"promt": "q"}}, r"`promt` \(did you mean `prompt`\?\)"),
    "adapter reference without adapter": ({"reference": "adapter"}, r"clo\.reference: adapter .* no `adapter:` is set"),
}

BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "no target_lang": ({"clo": {}}, r"rl: clo needs `clo\.target_lang`"),
    "no section": ({"clo": None}, r"rl: clo needs `clo\.target_lang`"),
    "section is text": ({"clo": "ko"}, r"`clo:` is a section with options"),
    "sample packing": ({"sample_packing": True}, r"cannot run with `sample_packing: True`; remove it"),
    "reward model": ({"reward_model": True}, r"cannot run with `reward_model: True`"),
    "remove unused columns": ({"remove_unused_columns": True}, r"`remove_unused_columns: false`"),
    "top-level option": ({"clo.beta": 0.2}, r"`clo\.beta` at top level has no effect; write it as\nclo:\n  beta: 0\.2"),
    "top-level option, other spelling": ({"clo__beta": 0.2}, r"`clo__beta` at top level has no effect"),
    "adapter with all": (
        {"clo": {"target_lang": "de", "train_modules": "all"}, "adapter": "lora", "lora_r": 4, "lora_alpha": 8},
        r"train_modules: all .* `adapter: lora`",
    ),
    "fsdp_config": (
        {
            **{"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "fsdp_version": 2},
            "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "activation_checkpointing": True},
        },
        r"fsdp_config.activation_checkpointing with an adapter saves it under names that nothing loads",
    ),
    "lora_target_linear": (
        {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True},
        r"lora_target_linear: true would add adapters outside",
    ),
    "adapter reference on a loaded adapter": (
        {
            "clo": {"target_lang": "de", "reference": "adapter"},
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_model_dir": "somewhere",
        },
        r"clo\.reference: adapter with `lora_model_dir`",
    ),
    "unfrozen parameters": ({"unfrozen_parameters": ["^lm_head"]}, r"use `clo\.train_modules` and `clo\.layers`"),
    "beta of another loss": ({"rl_beta": 0.2}, r"cannot run with `rl_beta: 0\.2`; use `clo\.beta`"),
    "neftune": ({"neftune_noise_alpha": 5}, r"cannot run with `neftune_noise_alpha: 5"),
    "streaming": ({"streaming": True}, r"cannot run with `streaming: True`"),
    "another prompt strategy": (
        {"datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca"}]},
        r"reads `datasets\[0\]` with `type: axolotl_clo\.cross_lingual`, got 'alpaca'",
    ),
    "auto with an attention kernel": (
        {
            "clo": {"target_lang": "de", "train_modules": "auto"},
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_qkv_kernel": True,
        },
        r"train_modules: auto measures the model before it has an adapter, which `lora_qkv_kernel: true` does not",
    ),
    "examples from two datasets": (
        {
            "clo": {"target_lang": "de", "max_examples": 4},
            "datasets": [
                {"path": "axolotl_clo/starter", "type": "axolotl_clo.cross_lingual", "split": s} for s in "ab"
            ],
        },
        r"clo\.max_examples draws from one dataset, but `datasets` lists 2",
    ),
    "sft type under rl: clo": (
        {"datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.sft"}]},
        r"rl: clo reads `datasets\[0\]` with `type: axolotl_clo\.cross_lingual`, got 'axolotl_clo\.sft'",
    ),
    "sft type under rl: dpo": (
        {"rl": "dpo", "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.sft"}]},
        r"datasets\[0\]\.type: axolotl_clo\.sft makes rows for no `rl:` \(SFT\), but this config has rl: dpo; "
        r"use type: axolotl_clo\.preference",
    ),
    "preference type without rl": (
        {"rl": None, "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.preference"}]},
        r"makes rows for rl: dpo or rl: ipo or rl: orpo or rl: simpo, but this config has no `rl:`; use type: "
        r"axolotl_clo\.sft",
    ),
    "preference type under rl: kto": (
        {"rl": "kto", "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.preference"}]},
        r"but this config has rl: kto; use type: axolotl_clo\.kto",
    ),
    "clo type without rl": ({"rl": None}, r"axolotl_clo\.cross_lingual makes rows for rl: clo, but this config has no"),
    "held-out type under another rl": (
        {
            "rl": "dpo",
            "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.preference"}],
            "test_datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.kto", "split": "test"}],
        },
        r"test_datasets\[0\]\.type: axolotl_clo\.kto makes rows for rl: kto",
    ),
    "type misspelt": (
        {"rl": "dpo", "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.prefrence"}]},
        r"unknown 'axolotl_clo\.prefrence' \(did you mean 'axolotl_clo\.preference'\?\); accepted: ",
    ),
    "baseline without languages": (
        {"rl": None, "clo": None, "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.sft"}]},
        r"a dataset of parallel rows needs `clo\.target_lang`",
    ),
    "baseline with adapter and all": (
        {
            "rl": None,
            "clo": {"target_lang": "de", "train_modules": "all"},
            "adapter": "lora",
            "lora_r": 4,
            "lora_alpha": 8,
            "datasets": [{"path": "axolotl_clo/starter", "type": "axolotl_clo.sft"}],
        },
        r"train_modules: all .* `adapter: lora`",
    ),
    **{
        f"truncated texts for {rl}": (
            {
                "rl": rl,
                "excess_length_strategy": "truncate",
                "datasets": [{"path": "axolotl_clo/starter", "type": f"axolotl_clo.{kind}"}],
            },
            rf"excess_length_strategy: truncate .*`datasets\[0\]` \(type: axolotl_clo\.{kind}\); use drop or raise",
        )
        for rl, kind in (("dpo", "preference"), ("kto", "kto"))
    },
    "missing file": (
        {"datasets": [{"path": "./nowhere.jsonl", "type": "axolotl_clo.cross_lingual"}]},
        r"datasets\[0\]\.path: no such file or folder: \./nowhere\.jsonl",
    ),
    "missing test file": (
        {"test_datasets": [{"path": "data/nowhere.parquet", "split": "train", "type": "axolotl_clo.cross_lingual"}]},
        r"test_datasets\[0\]\.path: no such file or folder: data/nowhere\.parquet",
    ),
}


def message_of(write_config: Write, **options: Any) -> str:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is what each case checks)
        load_config(write_config(**options))
    return str(raised.value)


@pytest.mark.bad_input("config")
@pytest.mark.parametrize("case", BAD_SECTIONS)
def test_bad_section_is_refused(case: str, write_config: Write) -> None:
    section, expected = BAD_SECTIONS[case]
    assert re.search(expected, message_of(write_config, clo={"target_lang": "de", **section}), re.DOTALL)


@pytest.mark.bad_input("config")
@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_impossible_combination_is_refused(case: str, write_config: Write) -> None:
    options, expected = BAD_CONFIGS[case]
    assert re.search(expected, message_of(write_config, **options))


@pytest.mark.parametrize("how", ["drop", "raise"])
@pytest.mark.parametrize(("rl", "kind"), [("orpo", "preference"), ("kto", "kto")])
def test_preference_rows_too_long_are_dropped_or_stop_the_run(
    how: str, rl: str, kind: str, write_config: Write
) -> None:
    data = [{"path": "axolotl_clo/starter", "type": f"axolotl_clo.{kind}"}]
    cfg = load_config(write_config(rl=rl, datasets=data, excess_length_strategy=how, remove_unused_columns=False))
    assert cfg.excess_length_strategy == how


@pytest.mark.bad_input("data")
def test_broken_json_line_is_named(write_config: Write, parallel_file: Path) -> None:
    lines = parallel_file.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4][:-20]
    parallel_file.write_text("\n".join(lines), encoding="utf-8")
    assert re.search(r"datasets\[0\]\.path: .*rows\.jsonl, line 5: not valid JSON", message_of(write_config))


def test_json_line_that_is_no_object_is_named(write_config: Write, parallel_file: Path) -> None:
    parallel_file.write_text('{"prompt": {}}\n["a", "b"]\n', encoding="utf-8")
    assert re.search(r"rows\.jsonl, line 2: got a JSON list; one object per line", message_of(write_config))


def test_defaults_are_the_method(write_config: Write) -> None:
    cfg = load_config(write_config())
    clo = CLOConfig.from_cfg(cfg)
    assert cfg.rl is None
    assert clo is not None
    assert clo.model_dump(exclude={"fields"}) == {
        "active": True,
        "source_lang": "en",
        "target_lang": "de",
        "nll_weight": 0.5,
        "beta": 0.1,
        "nll_languages": "target",
        "preference_loss": "sigmoid",
        "label_smoothing": 0.0,
        "simpo_gamma": 0.5,
        "train_modules": "attention",
        "layers": None,
        "reference": "precompute",
        "share_prompts": True,
        "nonfinite_loss": "stop",
        "tokens_per_batch": None,
        "max_examples": None,
        "target_source_ratio": 1.0,
        "rejected": "source",
        "sampling_temperature": 1.0,
        "eval_answers": 8,
        "show_answers": False,
        "check_language": "warn",
    }
    assert cfg.remove_unused_columns is False


def test_every_option_is_described() -> None:
    for model in (CLOConfig, type(CLOConfig().fields)):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_section_without_rl_clo_is_legal_and_inactive(write_config: Write) -> None:
    cfg = load_config(write_config(rl=None, datasets=[{"path": "tatsu-lab/alpaca", "type": "alpaca"}]))
    clo = CLOConfig.from_cfg(cfg)
    assert clo is not None
    assert not clo.active


def test_validating_a_second_time_changes_nothing(write_config: Write) -> None:
    """As Ray workers do, over the config the first pass already changed."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault(yaml.safe_load(write_config().read_text()))
    prepare_plugins(cfg)
    cfg = validate_config(cfg)
    again = DictDefault(cfg.to_dict())
    prepare_plugins(again)
    again = validate_config(again)
    assert again.clo == cfg.clo
    assert again.rl is None
    assert again.dataset_prepared_path == cfg.dataset_prepared_path


def test_options_are_overridden_with_double_underscores(write_config: Write) -> None:
    cfg = load_config(write_config(), clo__beta="0.25", clo__target_lang="ko", learning_rate="3e-5")
    assert (cfg.clo.beta, cfg.clo.target_lang, cfg.learning_rate) == (0.25, "ko", 3e-5)


@pytest.mark.process
def test_documented_override_reaches_the_run_through_the_launcher(write_config: Write) -> None:
    """`accelerate launch -m axolotl.cli.train CONFIG --clo__beta=…`, stopped by a bad value before any model loads."""
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "-m", "axolotl.cli.train"]
    result = subprocess.run([*command, str(write_config()), "--clo__beta=-3"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "clo.beta" in result.stderr
    assert "greater than 0" in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"), [("16-31", [(16, 31)]), ("0-3, 28-31", [(0, 3), (28, 31)]), ("7", [(7, 7)])]
)
def test_layers_are_inclusive_ranges(text: str, expected: list[tuple[int, int]]) -> None:
    assert parse_layers(text) == expected


def test_layers_select() -> None:
    assert select_layers("0,2-3", 4) == {0, 2, 3}
    assert select_layers(None, 2) == {0, 1}
