"""Rows of every form and file, and what is said of those that cannot be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axolotl_clo.translate.sources import Source, SourceOptions, SourceRow

ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Add.", "input": "1 and 2", "output": "3 it is."},
]


def _jsonl(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def _rows(name: str, **options: Any) -> list[SourceRow]:
    return list(Source(name, SourceOptions(**options)).rows())


def _said(rows: list[SourceRow]) -> list[list[str]]:
    return [[turn["content"] for turn in row.turns] for row in rows]


def test_alpaca_joins_instruction_and_input(tmp_path):
    rows = _rows(_jsonl(tmp_path / "a.jsonl", ALPACA))
    assert _said(rows) == [["Name a colour.", "Red."], ["Add.\n\n1 and 2", "3 it is."]]
    assert [row.id for row in rows] == ["0", "1"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, ending):
    file = tmp_path / f"rows.{ending}"
    lines = "".join(json.dumps(row) + "\n" for row in ALPACA)
    if ending == "jsonl":
        file.write_text(lines)
    elif ending == "jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    elif ending == "json":
        file.write_text(json.dumps(ALPACA))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(ALPACA), file)
    else:
        separator = "," if ending == "csv" else "\t"
        table = [list(ALPACA[0]), *(list(row.values()) for row in ALPACA)]
        file.write_text("".join(separator.join(cells) + "\n" for cells in table))
    assert _said(_rows(str(file))) == [["Name a colour.", "Red."], ["Add.\n\n1 and 2", "3 it is."]]


def test_a_folder_is_read_by_its_splits(tmp_path):
    _jsonl(tmp_path / "train.jsonl", ALPACA)
    _jsonl(tmp_path / "test.jsonl", ALPACA[:1])
    assert len(_rows(str(tmp_path))) == 2
    assert len(_rows(str(tmp_path), split="test")) == 1
    with pytest.raises(ValueError, match=r"--split: 'dev' is not in .*train"):
        Source(str(tmp_path), SourceOptions(split="dev"))


def test_prompt_and_response_columns_by_name_and_by_option(tmp_path):
    name = _jsonl(tmp_path / "a.jsonl", [{"question": "Why?", "answer": "So.", "id": "q1"}])
    rows = _rows(name)
    assert (_said(rows), rows[0].id) == ([["Why?", "So."]], "q1")
    odd = _jsonl(tmp_path / "b.jsonl", [{"q": "Why?", "a": "So."}])
    assert _said(_rows(odd, prompt_column="q", response_column="a")) == [["Why?", "So."]]
    with pytest.raises(ValueError, match="--response-column: no column 'aa' in the source, which has q, a"):
        Source(odd, SourceOptions(prompt_column="q", response_column="aa"))
    with pytest.raises(ValueError, match="--prompt-column and --response-column"):
        Source(odd, SourceOptions())


@pytest.mark.parametrize(
    "turns",
    [
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo"},
        ],
        [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}],
    ],
)
def test_chat_messages_of_openai_and_sharegpt(tmp_path, turns):
    column = "messages" if "role" in turns[0] else "conversations"
    source = Source(_jsonl(tmp_path / "a.jsonl", [{column: turns}]), SourceOptions())
    (row,) = source.rows()
    assert source.multi_turn
    assert row.turns == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
    ]


@pytest.mark.bad_input("data")
def test_rows_that_cannot_be_used_say_why_and_keep_their_place(tmp_path):
    rows = _rows(
        _jsonl(
            tmp_path / "a.jsonl",
            [
                {"prompt": "Good?", "response": "Yes."},
                {"prompt": None, "response": "Yes."},
                {"prompt": "Good?", "response": 7},
                {"prompt": "Good?", "response": "  "},
                {"prompt": "Good?"},
                {"prompt": "x" * 1_000_000, "response": "Yes."},
                {"prompt": "Half \ud83d", "response": "Yes."},
            ],
        )
    )
    assert [row.number for row in rows] == list(range(7))
    assert [row.problem for row in rows] == [None, "missing", "not text", "empty", "missing", "too long", "not text"]
    assert rows[2].detail == "response: int 7"
    assert rows[4].detail == "response: no such column in this row"
    assert rows[5].detail == "prompt: 1000000 characters, --max-chars is 20000"


@pytest.mark.bad_input("data")
@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([{"role": "user", "content": "Hi"}], "role"),
        ([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x"}], "role"),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "x"}], "missing"),
        ([], "missing"),
        ("text", "not messages"),
    ],
)
def test_conversations_that_cannot_be_used(tmp_path, turns, problem):
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]
    rows = _rows(_jsonl(tmp_path / "a.jsonl", [{"messages": good}, {"messages": turns}]))
    assert [row.problem for row in rows] == [None, problem]


def _message(name: str, parent: str | None, role: str, rank: int | None = None, lang: str = "en") -> dict[str, Any]:
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": name[0],
        "role": role,
        "text": f"text of {name}",
        "lang": lang,
        "rank": rank,
        "deleted": False,
    }


OASST = [
    _message("a", None, "prompter"),
    _message("a1", "a", "assistant", rank=1),
    _message("a0", "a", "assistant", rank=0),
    _message("a0x", "a0", "prompter"),
    _message("a0y", "a0x", "assistant", rank=0),
    _message("b", None, "prompter", lang="es"),
    _message("b0", "b", "assistant", rank=0, lang="es"),
    _message("c", None, "prompter"),
    _message("c?", "c", "assistant"),
    _message("d", None, "prompter"),
    _message("d0", "d", "assistant", rank=0),
]


def test_openassistant_first_turns_best_ranked_first(tmp_path):
    source = Source(_jsonl(tmp_path / "a.jsonl", OASST), SourceOptions())
    assert source.preset == "oasst1"
    rows = list(source.rows())
    assert [row.id for row in rows] == ["a0", "d0", "a1", "c?"]
    assert _said(rows)[0] == ["text of a", "text of a0"]
    assert source.left_out == {"message not in English": 2, "message of a later turn": 2}
    assert [row.id for row in _rows(str(tmp_path / "a.jsonl"), preset="oasst1", top=2)] == ["a0", "d0"]


def test_openassistant_whole_trees_give_the_same_rows(tmp_path):
    def tree(name: str) -> dict[str, Any]:
        message = next(dict(m) for m in OASST if m["message_id"] == name)
        message.pop("parent_id")
        message["replies"] = [tree(m["message_id"]) for m in OASST if m["parent_id"] == name]
        return message

    trees = [{"message_tree_id": m["message_id"], "prompt": tree(m["message_id"])} for m in OASST if not m["parent_id"]]
    rows = _rows(_jsonl(tmp_path / "trees.jsonl", trees), preset="oasst1")
    assert [row.id for row in rows] == ["a0", "d0", "a1", "c?"]


@pytest.mark.bad_input("data")
def test_openassistant_preset_on_other_columns(tmp_path):
    with pytest.raises(ValueError, match="--preset oasst1: the columns instruction, input, output"):
        Source(_jsonl(tmp_path / "a.jsonl", ALPACA), SourceOptions(preset="oasst1"))


def test_top_takes_the_first_rows_and_is_counted(tmp_path):
    source = Source(_jsonl(tmp_path / "a.jsonl", ALPACA * 5), SourceOptions(top=3))
    assert source.total == 3
    assert len(list(source.rows())) == 3


@pytest.mark.bad_input("data")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x", "response": "y"}\n{"prompt": "\xff"}\n', r"a\.jsonl, line 2: not valid UTF-8"),
        ("a.jsonl", b'{"prompt": "x", "response": "y"}\n{"prompt": \n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"prompt": "x", "response": "y"}\n[1]\n', r"a\.jsonl, line 2: got a JSON list"),
        ("a.json", b'[{"prompt": "x", "response": "y"}, 3]', r"a\.json, element 1: got a JSON int"),
        ("a.csv", b"prompt,response\nx,y\nz\n", r"a\.csv, line 3: its fields do not match the 2 columns"),
        ("a.csv", b"prompt,response\nx,y\n\xff,y\n", r"a\.csv, after line 2: not valid UTF-8"),
        ("a.parquet", b"PAR1 this is not one", r"a\.parquet: not a Parquet file that can be read"),
        ("a.jsonl", b"", r"a\.jsonl: no rows in it"),
        ("a.xml", b"<x/>", r"a\.xml: files ending in .jsonl"),
    ],
)
def test_broken_files_stop_with_file_and_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Source(str(file), SourceOptions())


@pytest.mark.bad_input("data")
def test_a_corrupt_row_group_stops_before_any_work(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ALPACA * 1000), file, compression="zstd")
    content = bytearray(file.read_bytes())
    content[40:400] = bytes(360)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet: not a Parquet file that can be read"):
        Source(str(file), SourceOptions())


@pytest.mark.bad_input("data")
@pytest.mark.parametrize("name", ["missing.jsonl", "./nothing", "nothing"])
def test_a_source_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        Source(name, SourceOptions())


@pytest.mark.bad_input("data")
def test_the_hub_out_of_reach_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="nobody/nothing: cannot be read from the hub"):
        Source("nobody/nothing", SourceOptions())


@pytest.mark.bad_input("data")
def test_rows_that_are_parallel_already_are_said_to_be(tmp_path):
    row = {"prompt": {"en": "Hello", "ko": "안녕"}, "response": {"en": "Hi", "ko": "안녕"}}
    with pytest.raises(
        ValueError, match=r"column 'prompt' is no text, but holds the fields en, ko; .* parallel already"
    ):
        Source(_jsonl(tmp_path / "a.jsonl", [row]), SourceOptions())


@pytest.mark.bad_input("data")
def test_unknown_preset(tmp_path):
    with pytest.raises(ValueError, match="--preset: 'x' is not one of auto, alpaca"):
        Source(_jsonl(tmp_path / "a.jsonl", ALPACA), SourceOptions(preset="x"))


def test_the_fingerprint_follows_the_content(tmp_path):
    name = _jsonl(tmp_path / "a.jsonl", ALPACA)
    before = Source(name, SourceOptions()).fingerprint
    assert Source(name, SourceOptions()).fingerprint == before
    _jsonl(tmp_path / "a.jsonl", [*ALPACA, ALPACA[0]])
    assert Source(name, SourceOptions()).fingerprint != before
