"""From a source to a dataset: the command, the Python form, the filter, and training on what comes out."""

from __future__ import annotations

import inspect as inspect_module
import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import train
from datasets import load_dataset

from axolotl_clo import cli
from axolotl_clo.datasets import starter_folder
from axolotl_clo.translate import inspect, translate
from axolotl_clo.translate.engines import EngineError, EngineOptions
from axolotl_clo.translate.pipeline import Run, RunOptions
from axolotl_clo.translate.quality import Thresholds
from axolotl_clo.translate.sources import SourceOptions

APERTIUM = pytest.mark.skipif(shutil.which("apertium") is None, reason="apertium is not installed")
ENGLISH = [json.loads(line) for line in (starter_folder() / "train.jsonl").open(encoding="utf-8")]


@pytest.fixture
def source(tmp_path) -> str:
    return _jsonl(
        tmp_path / "english.jsonl", [{"prompt": r["prompt"]["en"], "response": r["response"]["en"]} for r in ENGLISH]
    )


def _jsonl(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def _lexicon(tmp_path: Path, language: str) -> str:
    """A command that says the starter rows' own translations, line by line, and answers other lines with `?`."""
    known = {}
    for row in ENGLISH:
        for column in ("prompt", "response"):
            for mine, theirs in zip(row[column]["en"].split("\n"), row[column][language].split("\n"), strict=False):
                known[mine.strip()] = theirs.strip()
    table = tmp_path / f"{language}.json"
    table.write_text(json.dumps(known))
    script = tmp_path / f"{language}.py"
    script.write_text(
        f"import json, sys\nknown = json.load(open({str(table)!r}))\n"
        "for line in sys.stdin: print(known.get(line.rstrip('\\n'), '?'))\n"
    )
    return f"{sys.executable} {script}"


def _rows(out: Path) -> list[dict[str, Any]]:
    if not (out / "data").is_dir():
        return []
    return load_dataset(str(out), split="train").to_list()  # type: ignore[no-any-return]


def _rejected(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").open(encoding="utf-8")]


@APERTIUM
def test_english_instructions_become_parallel_rows(source, tmp_path):
    out = tmp_path / "out"
    manifest = translate(source, to="es", out=out, engine="command", command="apertium -u eng-spa")
    rows, rejected = _rows(out), _rejected(out)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert len(rows) + len(rejected) == len(ENGLISH) == manifest["counts"]["source_rows"]
    assert len(rows) >= 0.9 * len(ENGLISH)
    assert rows[0]["prompt"]["en"] == ENGLISH[0]["prompt"]["en"]
    assert rows[0]["prompt"]["es"] != rows[0]["prompt"]["en"]
    assert {row["scores"]["es"]["target_language"] for row in rows} <= {"es", None}
    assert manifest["engine"]["engine"] == "command"


@pytest.mark.bad_input("translate")
def test_every_dropped_row_is_kept_with_reason_scores_and_texts(source, tmp_path):
    out = tmp_path / "out"
    manifest = translate(source, to="de", out=out, engine="command", command="cat")
    assert _rows(out) == []
    rejected = _rejected(out)
    assert [line["row"] for line in rejected] == list(range(len(ENGLISH)))
    assert sum(manifest["counts"]["languages"]["de"]["dropped"].values()) == len(ENGLISH)
    assert {line["reason"] for line in rejected} <= {"language", "untranslated"}
    assert rejected[0]["texts"]["en"] == rejected[0]["texts"]["de"]
    assert rejected[0]["scores"]["source_language"] == "en"


def test_other_thresholds_filter_again_without_an_engine(source, tmp_path):
    out = tmp_path / "out"
    command = tmp_path / "translator"
    command.write_text("#!/bin/sh\nexec cat\n")
    command.chmod(0o755)
    given = {"to": "de", "out": out, "engine": "command", "command": str(command)}
    translate(source, **given)
    assert _rows(out) == []
    command.unlink()
    translate(source, **given, check_language=False, max_untranslated=None)
    assert len(_rows(out)) == len(ENGLISH)


@pytest.mark.bad_input("translate")
def test_several_languages_stand_in_one_row_and_one_that_fails_is_null(source, tmp_path, engine_package):
    engine_package(
        "def translate(self, segments, source, target):\n"
        "    return [Failure('not a word of it') if target == 'yo' and 'e' in s else s.upper() for s in segments]"
    )
    rows = [{"prompt": "Say hi", "response": "hi to all"}, {"prompt": "Tell me", "response": "hi there"}]
    name, out = _jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out"
    manifest = translate(name, to="sw,yo", out=out, engine="other", check_language=False)
    assert manifest["languages"] == ["en", "sw", "yo"]
    first, second = _rows(out)
    assert first["prompt"] == {"en": "Say hi", "sw": "SAY HI", "yo": "SAY HI"}
    assert second["prompt"] == {"en": "Tell me", "sw": "TELL ME", "yo": None}
    assert second["scores"]["yo"] is None
    (line,) = _rejected(out)
    assert (line["language"], line["reason"], line["detail"]) == ("yo", "not translated", "not a word of it")


def test_datasets_in_folders_of_the_same_name_are_not_taken_for_each_other(source, tmp_path):
    given = {"to": "de", "engine": "command", "check_language": False, "max_untranslated": None, "top": 2}
    for parent, command in (("a", "tr a-z b-za"), ("b", "tr a-z c-zab")):
        translate(source, out=tmp_path / parent / "out", command=command, **given)
    assert _rows(tmp_path / "a" / "out")[0]["prompt"]["de"] != _rows(tmp_path / "b" / "out")[0]["prompt"]["de"]


def test_chat_messages_keep_their_turns(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Hello `x = 1` again"},
    ]
    source = _jsonl(tmp_path / "a.jsonl", [{"id": "one", "messages": turns}])
    translate(source, to="de", out=tmp_path / "out", engine="command", command="tr a-z b-za", check_language=False)
    (row,) = _rows(tmp_path / "out")
    assert row["id"] == "one"
    assert row["messages"]["en"] == turns
    assert [turn["role"] for turn in row["messages"]["de"]] == ["system", "user", "assistant"]
    assert row["messages"]["de"][2]["content"] == "Hfmmp `x = 1` bhbjo"


@pytest.mark.bad_input("translate")
def test_rows_that_cannot_be_used_are_counted_and_kept(tmp_path):
    source = _jsonl(tmp_path / "a.jsonl", [{"prompt": "Hi", "response": None}, {"prompt": "Hello", "response": "Yes."}])
    manifest = translate(
        source, to="de", out=tmp_path / "out", engine="command", command="tr a-z b-za", check_language=False
    )
    assert manifest["counts"]["unusable"] == {"missing": 1}
    assert manifest["counts"]["rows"] == 1
    assert _rejected(tmp_path / "out") == [{"row": 0, "id": "0", "reason": "missing", "detail": "response: null"}]


def test_round_trips_are_scored(tmp_path):
    source = _jsonl(tmp_path / "a.jsonl", [{"prompt": "Hello my friends", "response": "I am fine today."}])
    given = {"to": "de", "engine": "command", "command": "tr a-z b-za", "check_language": False, "round_trip": True}
    translate(source, **given, out=tmp_path / "good", back_command="tr b-za a-z")
    assert _rows(tmp_path / "good")[0]["scores"]["de"]["round_trip_chrf"] == 100.0
    translate(source, **given, out=tmp_path / "bad", back_command="tr a-z qwq")
    assert _rejected(tmp_path / "bad")[0]["reason"] == "round trip"
    with pytest.raises(ValueError, match="--back-command"):
        translate(source, **given, out=tmp_path / "none")


def test_parts_and_workers_change_nothing(source, tmp_path):
    command = _lexicon(tmp_path, "de")
    for name, options in {"a": {"part_rows": 7}, "b": {"part_rows": 7, "workers": 2}, "c": {"part_rows": 1000}}.items():
        translate(source, to="de", out=tmp_path / name, engine="command", command=command, **options)
    assert _rows(tmp_path / "a") == _rows(tmp_path / "b") == _rows(tmp_path / "c")
    assert (tmp_path / "a" / "rejected.jsonl").read_bytes() == (tmp_path / "b" / "rejected.jsonl").read_bytes()


@pytest.fixture
def engine_package(tmp_path, monkeypatch):
    """Installs a package whose engine `other` has the given methods."""

    def install(methods: str) -> None:
        info = tmp_path / "site" / "other_engine-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-engine\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[axolotl_clo.engines]\nother = other_engine:Other\n")
        (tmp_path / "site" / "other_engine.py").write_text(
            "from axolotl_clo.translate.engines import Failure\n"
            "class Other:\n"
            "    batch, max_chars, unit = 10, 400, 'line'\n"
            "    def __init__(self, options): pass\n"
            "    def describe(self): return {'engine': 'other'}\n"
            "    def check(self, source, target): pass\n"
            "    def close(self): pass\n" + textwrap.indent(methods, "    ") + "\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, "other_engine", raising=False)

    return install


def test_an_engine_of_another_package_is_found_by_its_entry_point(source, tmp_path, engine_package):
    engine_package("def translate(self, segments, source, target): return [s.upper() for s in segments]")
    manifest = translate(source, to="de", out=tmp_path / "out", engine="other", top=3, check_language=False)
    assert manifest["engine"] == {"engine": "other"}
    with pytest.raises(
        ValueError, match="no engine 'othr'; known are command, ctranslate2, openai, other, transformers"
    ):
        translate(source, to="de", out=tmp_path / "other_out", engine="othr")


@pytest.mark.bad_input("translate")
def test_a_segment_that_fails_takes_its_row_alone(tmp_path, engine_package):
    engine_package(
        "def translate(self, segments, source, target):\n"
        "    return [Failure('too blue') if 'blue' in s.lower() else s.upper() for s in segments]"
    )
    rows = [{"prompt": "Red?", "response": "It is red."}, {"prompt": "Blue?", "response": "Yes."}]
    name = _jsonl(tmp_path / "a.jsonl", rows)
    translate(name, to="de", out=tmp_path / "out", engine="other", check_language=False)
    assert [row["prompt"]["de"] for row in _rows(tmp_path / "out")] == ["RED?"]
    (line,) = _rejected(tmp_path / "out")
    assert (line["reason"], line["detail"]) == ("not translated", "too blue")


@pytest.mark.bad_input("translate")
def test_an_engine_that_cannot_go_on_keeps_what_is_done(source, tmp_path):
    stop = tmp_path / "stop"
    script = tmp_path / "translator.py"
    script.write_text(
        f"import pathlib, sys\ntext = sys.stdin.read()\n"
        f"if 'STOP' in text and pathlib.Path({str(stop)!r}).exists(): sys.exit(3)\n"
        "sys.stdout.write(text)\n"
    )
    rows = [{"prompt": f"Row {i}?", "response": "STOP here." if i == 7 else "Go on."} for i in range(10)]
    name = _jsonl(tmp_path / "a.jsonl", rows)
    given = {
        "to": "de",
        "engine": "command",
        "command": f"{sys.executable} {script}",
        "part_rows": 2,
        "out": tmp_path / "out",
    }
    stop.touch()
    with pytest.raises(EngineError, match="3"):
        translate(name, **given)
    assert len(list((tmp_path / "out" / ".work" / "parts").glob("*.parquet"))) == 3
    with pytest.raises(ValueError, match="unfinished run with 3 finished parts"):
        inspect(tmp_path / "out")
    stop.unlink()
    assert translate(name, **given)["counts"]["source_rows"] == 10


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "en"}, "--to: one or more languages other than en"),
        ({"to": ""}, "--to: one or more languages"),
        ({"beam_sise": 2}, "no option 'beam_sise' .did you mean 'beam_size'"),
        ({"engine": "apertium"}, "--engine: no engine 'apertium'; known are command"),
        ({"workers": 0}, "--workers: 1 or more"),
    ],
)
def test_wrong_options_are_named(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        translate(source, **{"to": "de", "out": tmp_path / "out", "engine": "command", "command": "cat", **options})


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "axolotl_clo.cli", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.process
def test_the_command_prints_json_for_scripts_and_errors_for_people(source, tmp_path):
    given = ("translate", source, "--to", "de", "--engine", "command", "--command", "cat", "--top", "12")
    done = _command(*given, "--out", str(tmp_path / "out"), "--no-filter", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["rows"] == 12
    shown = _command("inspect", str(tmp_path / "out"), "--json", "--samples", "2")
    assert len(json.loads(shown.stdout)["samples"]) == 2
    assert "12 source rows, 12 rows" in _command("inspect", str(tmp_path / "out")).stdout
    wrong = _command(*given)
    assert (wrong.returncode, "--out: the folder" in wrong.stderr, "Traceback" in wrong.stderr) == (1, True, False)


@pytest.mark.process
def test_a_dry_run_shows_ten_rows_and_an_estimate_and_writes_nothing(source, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = _command("translate", source, "--to", "de", "--engine", "command", "--command", "rev", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 10
    assert found["estimate"]["rows"] == len(ENGLISH)
    assert found["estimate"]["seconds"] > 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.bad_input("translate")
def test_keys_never_reach_manifest_or_work_folder(source, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "sk-very-secret")
    run = Run(
        source,
        to="de",
        engine="openai",
        base_url="http://user:sk-very-secret@localhost:1/v1",
        model="m",
        api_key_env="SECRET_KEY",
        retries=0,
        timeout=1.0,
    )
    with pytest.raises(EngineError) as error:
        run.run(tmp_path / "out")
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert b"sk-very-secret" not in b"".join(written)
    assert "sk-very-secret" not in str(error.value)


def test_axolotl_trains_on_the_output_as_it_is(source, tmp_path, engine_package, write_config):
    known = {row[column]["en"]: row[column]["de"] for row in ENGLISH for column in ("prompt", "response")}
    engine_package(
        f"def translate(self, segments, source, target):\n    return [{known!r}.get(s, s) for s in segments]"
    )
    out = tmp_path / "parallel"
    translate(source, to="de", out=out, engine="other", top=24)
    rows = len(_rows(out))
    assert rows >= 8
    trainer = train(
        write_config(datasets=[{"path": str(out), "type": "axolotl_clo.cross_lingual"}], val_set_size=0, max_steps=1)
    )
    assert len(trainer.train_dataset) == rows
    assert trainer.state.global_step == 1


def test_every_option_has_one_home():
    names = [field.name for kind in (SourceOptions, EngineOptions, Thresholds, RunOptions) for field in fields(kind)]
    assert len(names) == len(set(names))


def test_the_command_has_every_option_of_the_python_form():
    given = set(inspect_module.signature(cli.translate).parameters)
    homes = (SourceOptions, EngineOptions, Thresholds, RunOptions)
    assert {field.name for kind in homes for field in fields(kind)} - {"extra"} <= given
    for kind in homes:
        for field in fields(kind):
            if field.name != "extra":
                assert inspect_module.signature(cli.translate).parameters[field.name].default == field.default, (
                    field.name
                )


@pytest.mark.process
def test_two_workers_of_a_ray_cluster_give_the_same_dataset_and_the_same_resume(source, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    command = _lexicon(tmp_path, "de")
    given = {"to": "de", "engine": "command", "command": command, "part_rows": 20}
    translate(source, out=tmp_path / "alone", **given)
    part = tmp_path / "ray" / ".work" / "parts" / "part-000002.parquet"
    for missing in (False, True):
        if missing:
            part.unlink()
        done = _command(
            *("translate", source, "--to", "de", "--engine", "command", "--command", command, "--part-rows", "20"),
            *("--out", str(tmp_path / "ray"), "--engine-workers", "local", "--workers", "2"),
        )
        assert done.returncode == 0, done.stderr
        for name in ("data/train-00000.parquet", "rejected.jsonl", "manifest.json", "README.md"):
            assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
