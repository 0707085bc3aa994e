"""Names that come with data (ids, languages, models, runs, tasks, links) lead to no place outside the output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import load_config, write_rows
from servers import Reply, Serve, completion

from axolotl_clo.evaluate.generate import Generation, PromptOptions
from axolotl_clo.evaluate.journal import Journal
from axolotl_clo.evaluate.judge import Judgement
from axolotl_clo.evaluate.models import ModelOptions
from axolotl_clo.evaluate.report import write_report
from axolotl_clo.reference import RECORD_FILE, ReferenceRecord
from axolotl_clo.translate import translate
from axolotl_clo.translate.engines import EngineOptions
from axolotl_clo.translate.engines.families import ModelSource
from axolotl_clo.translate.sources import Source, SourceOptions
from axolotl_clo.translate.store import OutputError

HOSTILE = [
    "../../x",
    "..",
    "/etc/cron.d/x",
    "~/x",
    "a\0b",
    "x" * 5000,
    "CON",
    "nul.txt",
    "a:b|c?*",
    "..\\..\\x",
    "-rf",
    "$(touch x)",
    "\u202etxt.exe",
    "line\nbreak",
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Deep enough that names which climb stay in `tmp_path`, where they would be seen."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    return tmp_path / "a" / "b" / "c" / "out"


@pytest.fixture
def seen(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What lies beside the output; the working directory and home lie there too."""
    for name in ("home", "cwd"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    return lambda: sorted(str(p) for p in tmp_path.rglob("*") if out not in (p, *p.parents))


def names_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.bad_input("translate")
def test_ids_of_a_source_become_no_path(tmp_path: Path, out: Path, seen: Callable[[], list[str]]) -> None:
    rows = [{"id": name, "prompt": f"What is {i}?", "response": f"It is {i}."} for i, name in enumerate(HOSTILE)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    before = seen()
    translate(str(source), to="de", out=out, engine="command", command="rev", check_language=False)
    assert seen() == before
    assert names_below(out) == [
        ".work/lock",
        ".work/parts/part-000000.parquet",
        ".work/run.json",
        "README.md",
        *(["data/train-00000.parquet"] if (out / "data").exists() else []),
        "manifest.json",
        "rejected.jsonl",
    ]


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("name", sorted({*HOSTILE} - {"CON"}), ids=lambda name: ascii(name[:12]))  # `con` is Cofán
def test_a_target_language_that_is_a_path_is_refused(
    name: str, tmp_path: Path, out: Path, seen: Callable[[], list[str]]
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "A?", "response": "B."}])
    before = seen()
    with pytest.raises(ValueError, match=r"language|--to"):
        translate(str(source), to=[name], out=out, engine="command", command="rev")
    assert seen() == before
    assert not out.exists()


@pytest.mark.bad_input("data")
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_a_source_that_is_no_name_is_refused(name: str, seen: Callable[[], list[str]]) -> None:
    before = seen()
    with pytest.raises((ValueError, OSError)):
        Source(name, SourceOptions())
    assert seen() == before


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_a_translation_model_that_is_no_name_is_refused(name: str, seen: Callable[[], list[str]]) -> None:
    before = seen()
    with pytest.raises((ValueError, OSError)):
        ModelSource.find(name, None)
    assert seen() == before


@pytest.mark.bad_input("data")
@pytest.mark.parametrize("file", ["../secret.jsonl", "/etc/hostname", "http://localhost/rows.jsonl"])
def test_a_datasets_card_cannot_name_files_elsewhere(file: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "secret.jsonl", [{"prompt": "A?", "response": "my key"}])
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder / "own.jsonl", [{"prompt": "A?", "response": "B."}])
    configs = [{"config_name": "default", "data_files": [{"split": "train", "path": file}]}]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises((ValueError, OSError)):
        list(Source(str(folder), SourceOptions()).rows())


@pytest.mark.bad_input("evaluate")
def test_ids_and_models_and_replies_become_no_path(
    tmp_path: Path, out: Path, seen: Callable[[], list[str]], serve: Serve, openai_key: str
) -> None:
    rows = [{"id": name, "language": "de", "prompt": f"Was ist {i}?"} for i, name in enumerate(HOSTILE)]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    before = seen()

    def reply(question: str, nth: int) -> Reply:
        verdict = {"language_1": "../../x", "language_2": "/etc/x", "reason": "../../x", "better": 1}
        return completion(json.dumps(verdict) if "answer_1" in question else f"../../{question}")

    server = EngineOptions(base_url=serve(reply).url, retries=0)
    for file, model in (("a.jsonl", "../../m"), ("b.jsonl", "/m\0")):
        asked = PromptOptions(str(prompts))
        Generation(asked, ModelOptions(model, server=server, temperature=0.1 if model[0] == "/" else 0)).run(out / file)
    text = (out / "b.jsonl").read_text(encoding="utf-8")
    (out / "b.jsonl").write_text(text.replace('"answer": "../../', '"answer": "/etc/'), encoding="utf-8")
    judge = EngineOptions(model="../../judge", base_url=server.base_url, retries=0)
    Judgement(out / "a.jsonl", out / "b.jsonl", judge).run(out / "judged")
    write_report([out], out / "report", names=["../../x\0"])
    assert seen() == before
    assert {name for name in names_below(out) if not name.endswith(".lock")} == {
        *("a.jsonl", "a.jsonl.json", "b.jsonl", "b.jsonl.json"),
        *("judged/judge.json", "judged/verdicts.jsonl", "report/report.html", "report/report.md"),
    }


@pytest.mark.bad_input("config")
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:12]))
def test_the_key_of_a_models_record_must_be_a_digest(name: str, tmp_path: Path) -> None:
    """It names the file of the reference cache, and the record may come with a model of someone else."""
    (tmp_path / RECORD_FILE).write_text(json.dumps({"key": name, "base_model": "m"}))
    with pytest.raises(ValueError, match="hexadecimal digits"):
        ReferenceRecord.read(tmp_path)


@pytest.mark.bad_input("config")
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "~/x", "a\0b"])
def test_a_language_of_the_rows_that_is_a_path_is_refused(name: str, write_config: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="a language code such as"):
        load_config(write_config(clo={"target_lang": name}))


@pytest.mark.parametrize("name", ["CON", "x" * 5000])
def test_a_language_of_the_rows_becomes_no_path(
    name: str, write_config: Callable[..., Path], tmp_path: Path, parallel_file: Path
) -> None:
    cfg = load_config(write_config(clo={"target_lang": name, "check_language": "off"}))
    prepared = Path(cfg.dataset_prepared_path)
    assert prepared.parent == tmp_path / "prepared"
    assert len(prepared.name) == len("clo-0123456789abcdef")


# ---- links in the output ----


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "notes.tmp").write_text("mine\n")
    (folder / "notes.txt").write_text("mine\n")
    return folder


def untouched(folder: Path) -> bool:
    return {p.name: p.read_text() for p in folder.iterdir()} == {"notes.tmp": "mine\n", "notes.txt": "mine\n"}


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("place", [".work", ".work/parts", ".work/final", "data"])
def test_a_linked_folder_in_the_output_is_refused(place: str, tmp_path: Path, out: Path, precious: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "A?", "response": "B."}])
    (out / ".work").parent.mkdir(parents=True, exist_ok=True)
    if place != ".work":
        (out / ".work").mkdir()
    (out / place).symlink_to(precious)
    with pytest.raises(OutputError, match="is a link"):
        translate(str(source), to="de", out=out, engine="command", command="rev")
    assert untouched(precious)


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("place", ["manifest.json", "rejected.jsonl", "README.md", ".work/run.json.tmp", ".work/lock"])
def test_a_linked_file_in_the_output_is_replaced_not_followed(
    place: str, tmp_path: Path, out: Path, precious: Path
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "What is it?", "response": "It is B."}])
    (out / ".work").mkdir(parents=True)
    (out / place).symlink_to(precious / "notes.txt")
    try:
        translate(str(source), to="de", out=out, engine="command", command="rev")
    except OutputError:
        assert place == ".work/lock"
    assert untouched(precious)


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize("linked", [True, False])
def test_a_journal_of_something_else_is_refused_and_kept(linked: bool, tmp_path: Path, precious: Path) -> None:
    partial = tmp_path / "a.jsonl.partial"
    if linked:
        partial.symlink_to(precious / "notes.txt")
    else:
        partial.write_text("mine\n")
    journal = Journal(tmp_path / "a.jsonl", tmp_path / "a.jsonl.json", {"model": "m"})
    with pytest.raises(OutputError, match=r"is a link|not of this command"), journal.locked():
        journal.results()
    assert partial.read_text() == "mine\n"
    assert untouched(precious)


@pytest.mark.bad_input("evaluate")
def test_a_report_follows_no_link(tmp_path: Path, precious: Path, serve: Serve, openai_key: str) -> None:
    answers = tmp_path / "answers.jsonl"
    server = EngineOptions(base_url=serve(lambda text, nth: completion("Ja.")).url)
    Generation(PromptOptions("starter:de", top=2), ModelOptions("m", server=server)).run(answers)
    report = tmp_path / "report"
    report.mkdir()
    for name in ("report.html", ".report.html.partial", ".report.md.partial"):
        (report / name).symlink_to(precious / "notes.txt")
    write_report([answers], report)
    assert untouched(precious)
    assert names_below(report) == ["report.html", "report.md"]
    assert not (report / "report.html").is_symlink()
