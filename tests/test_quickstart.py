"""The quickstart's parts: the converted model, the table, the steps that are skipped, and a machine too small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from axolotl_clo import quickstart


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "smollm2-135m-instruct"
    quickstart.convert_smollm2(folder)
    return folder


def test_converted_model_ends_its_turn(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, model.config.eos_token_id) == (end, end, end)
    assert GenerationConfig.from_pretrained(smollm2).eos_token_id == end
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert out[-1] == end
    assert "Paris" in tokenizer.decode(out)


@pytest.mark.bad_input("long runs")
def test_conversion_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        quickstart.convert_smollm2(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_table_shows_changes_in_the_units_of_each_score() -> None:
    metrics = quickstart.METRICS.values()
    before = {("de", metric): value for metric, value in zip(metrics, (0.5, 0.4, 0.25, 2.0), strict=True)}
    after = {("de", metric): value for metric, value in zip(metrics, (1.0, 0.9, 0.75, 1.5), strict=True)}
    assert quickstart.table(before, after, ["de"]).splitlines()[2:] == [
        "| de | fidelity | 50.0 % | 100.0 % | +50.0 points |",
        "| de | fidelity without echoes | 40.0 % | 90.0 % | +50.0 points |",
        "| de | preference | 25.0 % | 75.0 % | +50.0 points |",
        "| de | bits per byte | 2.000 | 1.500 | -25.0 % |",
    ]


def test_scores_are_read_as_the_harness_writes_them(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    results = {
        "axolotl_clo_de_bits_per_byte": {"alias": "x", "bits_per_byte,none": 1.25, "bits_per_byte_stderr,none": "N/A"},
        "axolotl_clo_en_fidelity": {"alias": "x", "fidelity,none": 1.0, "fidelity_no_echo,none": 0.5},
    }
    (out / "results_2026-01-01T00-00-00.json").write_text(json.dumps({"results": results}))
    assert quickstart.read_scores(tmp_path) == {
        ("de", "bits_per_byte"): 1.25,
        ("en", "fidelity"): 1.0,
        ("en", "fidelity_no_echo"): 0.5,
    }


@pytest.mark.bad_input("long runs")
def test_finished_steps_are_skipped_and_failed_ones_say_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "done").touch()
    assert quickstart.run("train", tmp_path / "done", ["false"], tmp_path / "log") == 0
    assert "done before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"train failed with exit code 3; the log ends\nno such thing"):
        quickstart.run("train", tmp_path / "missing", ["sh", "-c", "echo no such thing; exit 3"], tmp_path / "log")


@pytest.mark.bad_input("long runs")
def test_short_disk_and_memory_are_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"quickstart: .* GB free; 1000000000 GB are needed"):
        quickstart.check_machine(tmp_path, disk_gb=1e9, memory_gb=0)
    with pytest.raises(SystemExit, match=r"GB of memory are free; 1000000000 GB are needed"):
        quickstart.check_machine(tmp_path, disk_gb=0, memory_gb=1e9)


@pytest.mark.bad_input("config")
def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no config .*nowhere\.yml; run it in the root of the repository"):
        quickstart.main(["--config", str(tmp_path / "nowhere.yml")])


def test_tasks_of_the_quickstart_exist() -> None:
    names = {file.stem for file in (ROOT / "eval_tasks").glob("*.yaml")}
    assert set(quickstart.tasks(["de", "en"])) <= names
