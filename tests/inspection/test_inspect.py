"""`axolotl-clo inspect CONFIG` through Axolotl's own validation and loading."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import starter_rows, train, write_rows
from typer.testing import CliRunner

from axolotl_clo.cli import app
from axolotl_clo.inspection.report import inspect_run

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXOLOTL_TEE_STDOUT", "0")


def test_it_tells_what_the_run_then_does(write_config: Write, parallel_file: Path, tmp_path: Path) -> None:
    rows = starter_rows()[:12]
    rows[2]["response"]["de"] = " "
    rows[7]["prompt"]["de"] = None
    write_rows(parallel_file, rows)
    config = write_config(max_steps=None, micro_batch_size=2, gradient_accumulation_steps=2, num_epochs=2)
    before = sorted(tmp_path.rglob("*"))
    found = inspect_run(config)
    assert sorted(tmp_path.rglob("*")) == before
    json.dumps(found)

    (dataset,) = found["rows"]["datasets"]
    assert (dataset["rows"], dataset["kept"]) == (12, 10)
    assert dataset["dropped"] == {"empty (response.de)": [3], "missing (prompt.de)": [8]}

    trainer = train(config)
    data, tokens = trainer.train_dataset, found["tokens"]
    assert found["rows"]["train"] == len(data) == 10
    assert found["steps"]["total"] == trainer.state.global_step
    assert tokens["layouts"]["packed"] == sum(data["length"])
    assert tokens["layouts"]["shared"] < tokens["layouts"]["packed"] < tokens["layouts"]["padded"]
    answered = sum(len(row["target_chosen"]) - row["prompt_lengths"][2] for row in data)
    assert tokens["directions"]["target"]["chosen"] == tokens["directions"]["source"]["rejected"] == answered
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert found["model"]["parameters"]["attention"]["trained"] == trained
    weights = sum(p.nbytes for p in trainer.model.parameters())
    assert found["memory"]["parts"]["weights"] == pytest.approx(weights, rel=0.01)
    assert found["memory"]["parts"]["optimizer"] == 8 * trained


def test_a_row_is_shown_token_by_token(write_config: Write, tiny_llama: Path, parallel_file: Path) -> None:
    from transformers import AutoTokenizer

    rows = starter_rows()[:12]
    found = inspect_run(write_config(clo={"target_lang": "ko"}))
    (sample,) = found["samples"]
    row = rows[sample["row"] - 1]
    spoken = [("en", "en"), ("en", "ko"), ("ko", "ko"), ("ko", "en")]
    assert [(s["prompt_language"], s["response_language"]) for s in sample["sequences"]] == spoken
    for sequence, (asked, answered) in zip(sample["sequences"], spoken, strict=True):
        prompt, response = ("".join(piece["text"] for piece in sequence[part]) for part in ("prompt", "response"))
        assert prompt.endswith(f"{row['prompt'][asked]}<|im_end|>\n<|im_start|>assistant\n")
        assert response == f"{row['response'][answered]}<|im_end|>"
        assert [piece["text"] for piece in sequence["response"] if piece["special"]] == ["<|im_end|>"]
        size = sum(piece["tokens"] for part in ("prompt", "response") for piece in sequence[part])
        assert size == len(AutoTokenizer.from_pretrained(tiny_llama)(prompt + response)["input_ids"])


def test_lora_targets_are_full_paths(write_config: Write) -> None:
    found = inspect_run(write_config(adapter="lora", lora_r=4, lora_alpha=8, clo={"target_lang": "de", "layers": "1"}))
    assert sorted(found["model"]["targets"]) == [f"model.layers.1.self_attn.{x}_proj" for x in "koqv"]
    parameters = found["model"]["parameters"]
    assert parameters["attention"]["trained"] == 0
    assert parameters["adapter"]["trained"] == parameters["adapter"]["all"] > 0


def test_auto_is_measured_on_the_weights_and_says_so(write_config: Write) -> None:
    said: list[str] = []
    found = inspect_run(write_config(clo={"target_lang": "de", "train_modules": "auto"}), say=said.append)
    assert "clo.train_modules: auto measures them" in said[0]
    assert found["model"]["train_modules"] in ("attention", "all")
    assert any("auto was measured on the weights" in note for note in found["notes"])


def test_token_batches_count_the_steps_of_the_trainer(write_config: Write) -> None:
    options = {"clo": {"target_lang": "de", "tokens_per_batch": 1500}, "micro_batch_size": 1}
    config = write_config(**options, max_steps=None, num_epochs=2)
    assert inspect_run(config)["steps"]["total"] == train(config).state.global_step


def test_gpus_and_stage_shard_what_they_should(write_config: Write) -> None:
    config = write_config(bf16=True, micro_batch_size=8, eval_batch_size=1)  # the reference is not the worst moment
    one, two, three = (inspect_run(config, gpus=8, zero=zero) for zero in ("0", "2", "3"))
    assert [found["config"]["engine"] for found in (one, two, three)] == ["DDP", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3"]
    assert one["steps"]["total"] == 2  # max_steps
    trained = one["model"]["parameters"]["attention"]["trained"]
    assert one["memory"]["parts"]["weights"] == two["memory"]["parts"]["weights"] + 2 * trained  # cast to float32
    assert one["memory"]["parts"]["optimizer"] == 8 * trained
    assert two["memory"]["parts"]["optimizer"] == pytest.approx(12 * trained / 8)
    if not torch.cuda.is_available():
        assert any("no GPU here" in note for note in one["notes"])


# ---- the command ----


def command(*arguments: str) -> Any:
    wide = CliRunner(env={"COLUMNS": "220"})  # tables that do not wrap
    return wide.invoke(app, ["inspect", *arguments], catch_exceptions=True)


def test_the_command_prints_tables_and_the_same_as_json(write_config: Write) -> None:
    config = str(write_config())
    shown = command(config)
    assert shown.exit_code == 0, shown.exception
    for text in (
        "is valid",
        "source, chosen (en → en",
        "‖",
        "│",
        "with each prompt once",
        "model.layers.0-1.self_attn",
    ):
        assert text in shown.stdout
    assert re.search(r"total.*at its highest, in the", shown.stdout)
    told = command(config, "--json")
    assert json.loads(told.stdout)["rows"]["train"] == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("rl: [", "not valid YAML"),
        ("- a", "accepted is a config with options such as base_model, got list"),
        ("rl: dpo", "accepted are configs with `rl: clo`, got rl: dpo"),
        ("base_model: x", "accepted are configs with `rl: clo`, got no `rl:`"),
    ],
)
def test_files_that_are_no_config_of_a_clo_run(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    if text is not None:
        file.write_text(text)
    error = command(str(file)).exception
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{file}: ")
    assert message in str(error)


@pytest.mark.bad_input("config")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_model": "./no-such-model"}, "no-such-model"),
        ({"clo": {"target_lang": "de", "betta": 1}}, "did you mean `beta`"),
        ({"clo": {"target_lang": "de", "layers": "1-4"}}, "reaches layer 4, but the model has 2 layers"),
        ({"sample_packing": True}, "cannot run with `sample_packing: True`"),
        ({"datasets": [{"path": "./none.jsonl", "type": "axolotl_clo.cross_lingual"}]}, "none.jsonl"),
        ({"deepspeed": "./none.json"}, "none.json"),
    ],
)
def test_errors_are_those_of_training_and_name_what_is_wrong(
    options: dict[str, Any], message: str, write_config: Write
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        inspect_run(write_config(**options))


@pytest.mark.bad_input("config")
def test_options_of_a_config_are_refused_for_a_dataset(tmp_path: Path) -> None:
    for option in (["--gpus", "8"], ["--zero", "2"], ["--calibrate"]):
        error = command(str(tmp_path), *option).exception
        assert isinstance(error, ValueError)
        assert option[0] in str(error)
    for wrong in (["--gpus", "0"], ["--zero", "4"], ["--samples", "-1"]):
        assert command("run.yml", *wrong).exit_code == 2
