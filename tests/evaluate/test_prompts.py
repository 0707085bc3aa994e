"""Prompts of starter rows and of files a user writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import starter_rows, write_rows

from axolotl_clo.evaluate.prompts import Prompt, read_prompts

KO = "세 가지 원색은 무엇인가요?"


def test_starter_rows_by_name_are_those_held_out() -> None:
    rows = read_prompts("starter:ko,en").rows
    held_out = starter_rows("test")
    assert len(rows) == 64
    assert rows[0] == Prompt(held_out[0]["id"], "ko", held_out[0]["prompt"]["ko"], held_out[0]["response"]["ko"])
    assert rows[1].language == "en"
    assert {row.id for row in read_prompts("starter-train:ko").rows} == {row["id"] for row in starter_rows()}


ROWS = [{"id": "a", "language": "ko", "prompt": KO}, {"id": "b", "language": "en", "prompt": "Why, though?\n\nTell."}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_one_prompt_a_row(tmp_path: Path, suffix: str) -> None:
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / f"prompts.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif suffix == "csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    elif suffix == "json":
        file.write_text(json.dumps(ROWS))
    else:
        write_rows(file, ROWS)
    found = read_prompts(str(file))
    assert found.rows == [Prompt("a", "ko", KO), Prompt("b", "en", "Why, though?\n\nTell.")]
    assert found.languages == ["ko", "en"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_parallel_rows_give_a_prompt_in_each_language_and_count_what_is_not_there(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": {"en": "Which?", "kor": KO}}, {"prompt": {"en": "Where?", "kor": None}}]
    file = tmp_path / f"prompts.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        write_rows(file, rows)
    found = read_prompts(str(file))
    assert found.rows == [Prompt("0", "en", "Which?"), Prompt("0", "ko", KO), Prompt("1", "en", "Where?")]
    assert found.left_out == {"not in ko": 1}
    assert read_prompts(str(file), ["ko"]).rows == [Prompt("0", "ko", KO)]


def test_a_file_of_one_language_needs_no_column_for_it(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "p.jsonl", [{"prompt": "Kwa nini?"}, {"prompt": "Wapi?"}, {"prompt": "Lini?"}])
    assert read_prompts(str(file), ["sw"], top=2).rows == [Prompt("0", "sw", "Kwa nini?"), Prompt("1", "sw", "Wapi?")]


def test_languages_that_are_not_asked_for_are_counted(tmp_path: Path) -> None:
    found = read_prompts(str(write_rows(tmp_path / "p.jsonl", ROWS)), ["ko"])
    assert [row.id for row in found.rows] == ["a"]
    assert found.left_out == {"in en, which --language does not name": 1}


def test_the_digest_changes_with_what_is_asked(tmp_path: Path) -> None:
    first = read_prompts(str(write_rows(tmp_path / "p.jsonl", ROWS))).digest()
    assert first == read_prompts(str(tmp_path / "p.jsonl")).digest()
    assert first != read_prompts(str(write_rows(tmp_path / "p.jsonl", ROWS[::-1]))).digest()


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "Why?"}], "row 0: no column prompt or instruction or question; its columns are text"),
        ([{"prompt": "Why?"}], "row 0: in which language"),
        ([ROWS[0], {"prompt": "", "language": "en"}], "row 1, column prompt: it is empty"),
        ([{"prompt": None, "language": "en"}], "row 0, column prompt: text is accepted, got NoneType"),
        ([{"prompt": {"en": 3}}], "row 0, column prompt.en: text is accepted, got int 3"),
        ([{"prompt": {"xq": "?"}}], "row 0, column prompt: 'xq' is not the code of a language"),
        ([{"prompt": "?", "language": "Klingonisch"}], "row 0, column language: 'Klingonisch' is not the code"),
        ([{"prompt": "?", "language": 5}], "row 0, column language: the code of a language is accepted, got int 5"),
        ([{"id": [1], "prompt": "?", "language": "en"}], "row 0, column id: text or a whole number"),
        ([ROWS[0], ROWS[0]], "row 1: id 'a' in 'ko' is that of row 0 too"),
        ([{"prompt": "\ud800", "language": "en"}], "row 0, column prompt: half a surrogate pair"),
        ([{"prompt": {"en": "Why?"}, "response": "So."}], "row 0, column response: prompt holds one text for each"),
        ([{"prompt": {"en": None}}], r"no prompts in it \(not in en: 1\)"),
        ([], r"no prompts in it \(it has no rows\)"),
    ],
)
def test_a_row_at_fault_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        read_prompts(str(file))


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("starter", "starter: which language"),
        ("starter:fr", "the starter rows are in en, zh, de, ko, id, sw, yo, not in 'fr'"),
        ("starter:", "starter:: '' is not the code of a language"),
        ("nowhere.jsonl", "nowhere.jsonl: no such file; a file, or starter:LANG"),
        (__file__, "files ending in .jsonl"),
    ],
)
def test_a_source_that_is_none_is_named(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(source)
