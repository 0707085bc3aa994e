"""How the plugin is found, and that runs which are not CLO do not notice it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import load_config, logged, train, weights

Write = Callable[..., Path]

AXOLOTL = tuple(int(x) for x in version("axolotl").split(".")[:2])


def test_entry_point_names_the_plugin_in_the_spelling_of_the_documentation() -> None:
    (entry,) = [e for e in entry_points(group="axolotl.plugins") if e.name == "clo"]
    assert entry.value == "axolotl_clo:CLOPlugin"
    from axolotl_clo.plugin import CLOPlugin

    assert entry.load() is CLOPlugin


def test_import_is_light() -> None:
    code = (
        "import sys, axolotl_clo; axolotl_clo.__all__\n"
        "print([m for m in ('torch', 'axolotl', 'transformers', 'datasets', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_attribute_is_an_attribute_error() -> None:
    import axolotl_clo

    assert axolotl_clo.__version__ == version("axolotl-clo")
    with pytest.raises(AttributeError, match="no attribute 'CLOPlugn'"):
        _ = axolotl_clo.CLOPlugn


@pytest.mark.parametrize(
    "plugins",
    [
        ["axolotl_clo.CLOPlugin"],
        ["axolotl_clo.plugin.CLOPlugin"],
        ["axolotl_clo.CLOPlugin", "axolotl_clo.plugin.CLOPlugin"],
        ["axolotl_clo.CLOPlugin", "axolotl_clo.CLOPlugin"],
        ["axolotl.integrations.lm_eval.LMEvalPlugin", "axolotl_clo.CLOPlugin"],
    ],
    ids=["documented", "other spelling", "both spellings", "twice", "after another plugin"],
)
def test_spellings_of_the_plugins_name(plugins: list[str], write_config: Write) -> None:
    cfg = load_config(write_config(plugins=plugins))
    assert cfg.clo.target_lang == "de"
    trainer = train(write_config(plugins=plugins), max_steps=1)
    assert type(trainer).__name__ == "CLOTrainer"


@pytest.mark.bad_input("config")
@pytest.mark.skipif(AXOLOTL >= (0, 20), reason="Axolotl 0.20 finds the plugin without a `plugins:` line")
def test_without_plugins_line_axolotl_019_refuses_rl_clo(write_config: Write) -> None:
    with pytest.raises(ValueError, match="rl"):
        load_config(write_config(plugins=None, clo=None))


@pytest.mark.skipif(AXOLOTL < (0, 20), reason="Axolotl 0.19 does not look for entry points")
@pytest.mark.parametrize("plugins", [None, ["axolotl_clo.CLOPlugin"], ["axolotl_clo.plugin.CLOPlugin"]])
def test_entry_point_alone_and_together_with_the_plugins_line(plugins: list[str] | None, write_config: Write) -> None:
    trainer = train(write_config(plugins=plugins), max_steps=1)
    assert type(trainer).__name__ == "CLOTrainer"


def sft(write_config: Write, tmp_path: Path, name: str, plugins: list[str] | None) -> tuple[list[float], dict]:
    rows = tmp_path / "sft.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Say {i}", "output": f"I say {i}."}) + "\n" for i in range(8)))
    config = write_config(
        f"{name}.yml",
        plugins=plugins,
        rl=None,
        clo=None,
        datasets=[{"path": str(rows), "type": "alpaca"}],
        output_dir=str(tmp_path / name),
    )
    trainer = train(config)
    assert type(trainer).__name__ == "AxolotlTrainer"
    assert all(p.requires_grad for p in trainer.model.parameters())
    return logged(trainer, "loss"), weights(tmp_path / name)


def dpo(write_config: Write, tmp_path: Path, name: str, plugins: list[str] | None) -> tuple[list[float], dict]:
    rows = tmp_path / "dpo.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"system": "", "question": f"Say {i}", "chosen": f"I say {i}.", "rejected": "No."}) + "\n"
            for i in range(8)
        )
    )
    config = write_config(
        f"{name}.yml",
        plugins=plugins,
        rl="dpo",
        clo=None,
        datasets=[{"path": str(rows), "type": "chatml.intel", "split": "train"}],
        output_dir=str(tmp_path / name),
        remove_unused_columns=False,
    )
    trainer = train(config)
    assert type(trainer).__name__ == "AxolotlDPOTrainer"
    return logged(trainer, "loss"), weights(tmp_path / name)


@pytest.mark.parametrize("run", [sft, dpo])
def test_other_runs_in_the_process_behave_as_if_we_were_not_installed(
    run: Callable[..., Any], write_config: Write, tmp_path: Path
) -> None:
    """Before, with and after a CLO run: same losses, same weights to the bit."""
    before = run(write_config, tmp_path, "before", None)
    assert type(train(write_config())).__name__ == "CLOTrainer"
    after = run(write_config, tmp_path, "after", None)
    listed = run(write_config, tmp_path, "listed", ["axolotl_clo.CLOPlugin"])
    for other in (after, listed):
        assert other[0] == before[0]
        assert all(torch.equal(other[1][name], value) for name, value in before[1].items())


def test_hooks_decide_from_the_config_alone(write_config: Write) -> None:
    from axolotl_clo.plugin import CLOPlugin

    plugin = CLOPlugin()
    clo = load_config(write_config())
    other = load_config(write_config(rl=None, datasets=[{"path": "tatsu-lab/alpaca", "type": "alpaca"}]))
    for _ in range(2):
        assert plugin.get_trainer_cls(clo) is not None
        assert plugin.get_trainer_cls(other) is None
        assert plugin.get_collator_cls_and_kwargs(other) is None
    assert vars(plugin) == {}


def test_inference_keeps_the_section_but_runs_no_clo(write_config: Write) -> None:
    """`axolotl inference` empties `rl` before plugins are registered."""
    cfg = load_config(write_config(), inference=True, rl=None)
    assert cfg.clo.target_lang == "de"
    assert not cfg.clo.active


def test_yaml_scalars_arrive_as_the_schema_has_them(write_config: Write, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config().read_text())
    config["clo"] |= {"layers": 1, "beta": "0.2"}
    file = tmp_path / "scalars.yml"
    file.write_text(yaml.safe_dump(config))
    cfg = load_config(file)
    assert (cfg.clo.layers, cfg.clo.beta) == ("1", 0.2)
