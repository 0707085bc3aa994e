"""Results on disk: whatever moment a run is killed at, what was finished is there, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from axolotl_clo.evaluate.journal import Journal
from axolotl_clo.translate.store import OutputError

RUN = {"model": "m", "prompts": "abc"}
RESULTS = [{"id": str(i), "answer": "세 가지\n원색"} for i in range(3)]


def journal(folder: Path, **run: Any) -> Journal:
    return Journal(folder / "out.jsonl", folder / "out.jsonl.json", {**RUN, **run})


def test_results_come_back_until_the_run_is_finished(tmp_path: Path) -> None:
    first = journal(tmp_path)
    with first.locked():
        assert first.finished() is None
        assert first.results() == []
        first.append(RESULTS[:2])
        first.append(RESULTS[2:])
    again = journal(tmp_path)
    with again.locked():
        assert again.results() == RESULTS
        about = again.finish(reversed(RESULTS), {"rows": 3})
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["2", "1", "0"]
    assert about == {"rows": 3, "run": RUN} == journal(tmp_path).finished()
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith(".")) == [
        "out.jsonl",
        "out.jsonl.json",
    ]


def test_a_kill_at_any_byte_costs_the_line_that_was_being_written(tmp_path: Path) -> None:
    whole = journal(tmp_path)
    with whole.locked():
        whole.append(RESULTS)
    content = whole.partial.read_bytes()
    for size in range(len(content) + 1):
        whole.partial.write_bytes(content[:size])
        found = journal(tmp_path).results()
        assert found == RESULTS[: max(0, content[:size].count(b"\n") - 1)]
        journal(tmp_path).append(RESULTS[len(found) :])
        assert whole.partial.read_bytes() == content


def test_a_kill_while_finishing_is_made_up_for(tmp_path: Path) -> None:
    run = journal(tmp_path)
    with run.locked():
        run.append(RESULTS)
        partial = run.partial.read_bytes()
        run.finish(RESULTS, {"rows": 3})
    run.partial.write_bytes(partial)
    (tmp_path / "out.jsonl.json").unlink()  # killed between the two files
    again = journal(tmp_path)
    with again.locked():
        assert again.finished() is None
        assert again.results() == RESULTS


@pytest.mark.bad_input("long runs")
@pytest.mark.parametrize("finish", [False, True])
def test_another_run_is_refused_by_what_differs(tmp_path: Path, finish: bool) -> None:
    run = journal(tmp_path)
    with run.locked():
        run.append(RESULTS)
        if finish:
            run.finish(RESULTS, {})
    other = journal(tmp_path, model="n")
    with other.locked(), pytest.raises(OutputError, match=r'model: "m" then, "n" now.*another --out'):
        _ = other.finished() if finish else other.results()


@pytest.mark.bad_input("long runs")
def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    with journal(tmp_path).locked(), pytest.raises(OutputError, match="another process is writing"):
        journal(tmp_path).locked().__enter__()


@pytest.mark.bad_input("long runs")
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="is there and not of this command"):
        journal(tmp_path).locked().__enter__()
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.bad_input("long runs")
def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out: cannot write"):
        Journal(tmp_path / "file" / "out.jsonl", tmp_path / "about", RUN).locked().__enter__()
