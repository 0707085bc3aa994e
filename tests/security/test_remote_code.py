"""Code that comes with a model or a dataset does not run unless the user says so."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import write_rows
from typer.testing import CliRunner

from axolotl_clo.cli import app
from axolotl_clo.translate.sources import Source, SourceOptions


@pytest.fixture
def with_code(tmp_path: Path, tiny_llama: Path) -> tuple[Path, Path]:
    """A model whose code leaves a mark when it runs, and where the mark would be."""
    folder, mark = tmp_path / "model", tmp_path / "it-ran"
    shutil.copytree(tiny_llama, folder)
    file = folder / "config.json"
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own", "AutoModelForSeq2SeqLM": "own.Own"}
    config = json.loads(file.read_text()) | {"model_type": "own-llama", "auto_map": own}
    file.write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own-llama'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder, mark


@pytest.fixture(autouse=True)
def a_user_who_says_yes_to_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where a caller leaves the question open."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))


@pytest.mark.bad_input("evaluate")
def test_generate_runs_a_models_code_only_where_told_to(with_code: tuple[Path, Path], tmp_path: Path) -> None:
    model, mark = with_code
    arguments = ["generate", "starter:de", "--top", "1", "--max-new-tokens", "1", "--model", str(model)]
    with pytest.raises(ValueError, match="--model"):
        CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a.jsonl")], input="y\n", catch_exceptions=False)
    assert not mark.exists()
    assert not (tmp_path / "a.jsonl").exists()
    told = CliRunner().invoke(app, [*arguments, "--trust-remote-code", "--out", str(tmp_path / "b.jsonl")])
    assert told.exit_code == 0, told.output
    assert mark.exists()


@pytest.mark.bad_input("translate")
def test_translate_never_runs_a_models_code(with_code: tuple[Path, Path], tmp_path: Path) -> None:
    from axolotl_clo.translate.engines import EngineError, EngineOptions
    from axolotl_clo.translate.engines.families import ModelSource
    from axolotl_clo.translate.engines.seq2seq import TransformersEngine, load_model

    model, mark = with_code
    with pytest.raises((ValueError, EngineError), match="--model"):
        TransformersEngine(EngineOptions(model=str(model)))
    with pytest.raises(ValueError, match="--model"):
        load_model(ModelSource.find(str(model), None), "auto")
    assert not mark.exists()


@pytest.mark.bad_input("config")
def test_the_measure_of_a_model_never_runs_its_code(with_code: tuple[Path, Path]) -> None:
    from axolotl_clo.scope import main

    model, mark = with_code
    with pytest.raises(ValueError, match="trust_remote_code"):
        main([str(model), "--languages", "de"])
    assert not mark.exists()


@pytest.mark.bad_input("data")
def test_a_datasets_loading_script_does_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "rows", tmp_path / "it-ran"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"prompt": "A?", "response": "B."}])
    (folder / "rows.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    with pytest.raises(ValueError, match=r"no dataset in this folder .*rows\.py"):
        Source(str(folder), SourceOptions())
    assert not mark.exists()
