"""Target languages that lie in different datasets or files of one run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import load_config, starter_rows, train, write_rows
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError

from axolotl_clo.datasets import check_local_files

Write = Callable[..., Path]


def rows_of(*languages: str, split: str = "train", first: int = 0, count: int = 8) -> list[dict[str, Any]]:
    rows = starter_rows(split)[first : first + count]
    return [{side: {lang: row[side][lang] for lang in languages} for side in ("prompt", "response")} for row in rows]


def entries(folder: Path, kind: str = "cross_lingual", **files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"path": str(write_rows(folder / f"{name}.jsonl", rows)), "type": f"axolotl_clo.{kind}"}
        for name, rows in files.items()
    ]


def datasets(config: Path) -> Any:
    """The datasets as `axolotl train` loads them."""
    from axolotl.common.datasets import load_datasets, load_preference_datasets

    cfg = load_config(config)
    return (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)


@pytest.fixture
def two(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Eight English-Korean rows in one dataset, four other English-Swahili ones in a second."""
    return lambda kind: entries(tmp_path, kind, ko=rows_of("en", "ko"), sw=rows_of("en", "sw", first=8, count=4))


CLO = {"target_lang": ["ko", "sw"]}


def test_a_dataset_for_each_language(two: Any, write_config: Write, clo_log: pytest.LogCaptureFixture) -> None:
    trainer = train(write_config(clo=CLO, datasets=two("cross_lingual"), max_steps=1, micro_batch_size=12))
    assert Counter(trainer.train_dataset["language"]) == {0: 8, 1: 4}
    assert "kept 8 of 8 rows" in clo_log.text
    assert "kept 4 of 4 rows" in clo_log.text
    assert "missing" not in clo_log.text
    assert {"clo/accuracy_target_ko", "clo/accuracy_target_sw"} <= set(trainer.state.log_history[0])


@pytest.mark.parametrize(
    ("kind", "rl", "count"),
    [("sft", None, 24), ("preference", "dpo", 24), ("preference", "orpo", 24), ("kto", "kto", 48)],
)
def test_a_dataset_for_each_language_in_a_baseline(
    kind: str, rl: str | None, count: int, two: Any, write_config: Write, clo_log: pytest.LogCaptureFixture
) -> None:
    config = write_config(clo=CLO, rl=rl, datasets=two(kind), remove_unused_columns=False)
    assert len(datasets(config).train_dataset) == count
    assert "missing" not in clo_log.text


def test_places_left_empty_for_other_languages_are_not_counted(
    tmp_path: Path, write_config: Write, clo_log: pytest.LogCaptureFixture
) -> None:
    """`null` in every row of a dataset, or in some rows of a small one whose rows differ in their languages."""
    korean, mixed = rows_of("en", "ko"), rows_of("en", "de", count=3) + rows_of("en", "sw", first=3, count=5)
    for row in korean:
        row["prompt"]["sw"] = row["response"]["sw"] = None
    data = entries(tmp_path, a=korean, b=mixed)
    rows = datasets(write_config(clo={"target_lang": ["ko", "sw", "de"]}, datasets=data)).train_dataset
    assert Counter(rows["language"]) == {0: 8, 1: 5, 2: 3}
    assert "kept 8 of 8 rows" in clo_log.text
    assert "kept 8 of 16 examples (8 rows, 2 target languages); dropped 5: missing (prompt.de)" in clo_log.text
    assert ".ko)" not in clo_log.text


def test_a_held_out_dataset_may_have_one_of_the_languages(two: Any, tmp_path: Path, write_config: Write) -> None:
    held_out = [{**entry, "split": "train"} for entry in entries(tmp_path, test=rows_of("en", "sw", split="test"))]
    meta = datasets(write_config(clo=CLO, datasets=two("cross_lingual"), test_datasets=held_out))
    assert set(meta.eval_dataset["language"]) == {1}
    assert len(meta.eval_dataset) == 8


@pytest.mark.bad_input("data")
@pytest.mark.parametrize(("kind", "rl"), [("cross_lingual", "clo"), ("sft", None), ("preference", "dpo")])
def test_language_in_no_dataset_is_named(kind: str, rl: str | None, two: Any, write_config: Write) -> None:
    clo = {"target_lang": ["ko", "sw", "yor"]}
    message = r"clo\.target_lang: no dataset holds yor; languages there: en, ko, sw$"
    with pytest.raises(ValueError, match=message):
        datasets(write_config(clo=clo, rl=rl, datasets=two(kind)))


@pytest.mark.bad_input("data")
def test_misspelt_language_of_several_gets_a_hint(two: Any, write_config: Write) -> None:
    for targets, message in (
        (["ko", "swa"], r"no dataset holds swa; languages there: en, ko, sw \(did you mean 'sw'\?\)"),
        (["kor", "sw"], r"'kor' is not in column 'prompt'; languages there: en, ko \(did you mean 'ko'\?\)"),
    ):
        with pytest.raises(ValueError, match=rf"clo\.target_lang: {message}"):
            datasets(write_config(clo={"target_lang": targets}, datasets=two("cross_lingual")))


@pytest.mark.bad_input("data")
def test_language_without_a_usable_row_in_any_dataset_is_named(tmp_path: Path, write_config: Write) -> None:
    broken = rows_of("en", "ko", "sw", first=8)
    for row in broken:
        row["response"]["sw"] = " "
    data = entries(tmp_path, ko=rows_of("en", "ko"), both=broken)
    message = r"no usable row holds sw; kept 8 of 16 .* dropped 8: empty \(response\.sw\)"
    with pytest.raises(ValueError, match=message):
        datasets(write_config(clo=CLO, datasets=data))


@pytest.mark.bad_input("data")
def test_one_dataset_needs_all_languages(tmp_path: Path, write_config: Write) -> None:
    with pytest.raises(ValueError, match=r"clo\.target_lang: 'sw' is not in column 'prompt'; languages there: en, ko"):
        datasets(write_config(clo=CLO, datasets=entries(tmp_path, ko=rows_of("en", "ko"))))


@pytest.mark.bad_input("data")
def test_source_is_needed_in_each_dataset(tmp_path: Path, write_config: Write) -> None:
    data = entries(tmp_path, ko=rows_of("en", "ko"), sw=rows_of("ko", "sw"))
    with pytest.raises(ValueError, match=r"clo\.source_lang: 'en' is not in column 'prompt'; languages there: ko, sw"):
        datasets(write_config(clo=CLO, datasets=data))


@pytest.mark.bad_input("data")
def test_temperature_cannot_even_out_languages_of_different_datasets(two: Any, write_config: Write) -> None:
    clo = {**CLO, "sampling_temperature": 2.0}
    message = r"clo\.sampling_temperature: 2 .* but sw are not in that with ko; join the rows in one file"
    with pytest.raises(ValueError, match=message):
        datasets(write_config(clo=clo, datasets=two("cross_lingual")))


# ---- languages that the loader of JSON lines does not expect ----

FIRST = 10 << 20  # bytes that the loader reads at first


def padded(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Rows and more like the last that together are `size` bytes long as JSON lines of ASCII."""
    left = size - sum(len(json.dumps(one)) + 1 for one in rows)
    sizes = [FIRST // 8] * (left // (FIRST // 8) - 1)
    filling = [rows[-1] | {"text": "x" * (n - len(json.dumps(rows[-1])) - 1)} for n in [*sizes, left - sum(sizes)]]
    return [*rows, *filling]


def plain(*languages: str, empty: tuple[str, ...] = ()) -> dict[str, Any]:
    texts = {lang: f"in {lang}" for lang in languages} | dict.fromkeys(empty)
    return {"prompt": dict(texts), "response": dict(texts), "text": ""}


def talk(*languages: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return {"messages": dict.fromkeys(languages, turns), "text": ""}


KO, SW, ALL, EMPTY = plain("en", "ko"), plain("en", "sw"), plain("en", "ko", "sw"), plain("en", "ko", empty=("sw",))
# Files of one dataset, and the file, line, column and language that the loader fails at.
LOADED: dict[str, tuple[list[list[dict[str, Any]]], tuple[int, int, str, str] | None]] = {
    "small and mixed": ([[KO, KO, SW]], None),
    "small conversations, mixed": ([[talk("en", "ko"), talk("en", "sw")]], None),
    "large, mixed from the start": ([[KO, *padded([SW, KO], FIRST + 10), SW, ALL]], None),
    "large, one row with all at the start": ([[ALL, *padded([KO], FIRST + 10), SW]], None),
    "large, in the line that crosses the border": ([[*padded([KO], FIRST), SW]], None),
    "the first file has all": ([[ALL], [SW], [KO]], None),
    "the first file is mixed": ([[KO, SW], [ALL]], None),
    "fewer later": ([padded([ALL], FIRST + 10), [KO]], None),
    "large, Swahili at the end": ([[*padded([KO], FIRST + 1), SW]], (0, 9, "prompt", "sw")),
    "large, an empty place at the end": ([[*padded([KO], FIRST + 1), EMPTY]], (0, 9, "prompt", "sw")),
    "large, empty places until the end": ([[*padded([EMPTY], FIRST + 1), ALL]], (0, 9, "prompt", "sw")),
    "a file for each language": ([[KO, KO], [KO, SW]], (1, 2, "prompt", "sw")),
    "a file of conversations for each": ([[talk("en", "ko")], [talk("en", "sw")]], (1, 1, "messages", "sw")),
    "empty places in the first file": ([[EMPTY], [ALL]], (1, 1, "prompt", "sw")),
}


@pytest.mark.bad_input("data")
@pytest.mark.parametrize("case", LOADED)
def test_languages_that_the_loader_fails_at_are_named_and_no_others(case: str, tmp_path: Path) -> None:
    files, at = LOADED[case]
    paths = [str(write_rows(tmp_path / f"{i}.jsonl", rows)) for i, rows in enumerate(files)]
    entry = {"type": "axolotl_clo.cross_lingual", "path": paths[0]}
    if len(paths) > 1:
        entry |= {"path": str(tmp_path), "data_files": paths}
    cfg = {"clo": {"target_lang": ["ko", "sw"]}, "datasets": [entry]}

    def load() -> Any:
        return load_dataset("json", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))

    if at is None:
        assert len(load()) == sum(map(len, files))
        check_local_files(cfg)
        return
    with pytest.raises(DatasetGenerationError):
        load()
    file, line, column, language = at
    where = rf"datasets\[0\]\.path: {re.escape(paths[file])}, line {line}: `{column}` holds {language}, "
    accepted = r"accepted are rows of all languages .* 10 MiB .*, or an entry of `datasets:` for each language"
    with pytest.raises(ValueError, match=where + ".*" + accepted):
        check_local_files(cfg)


def test_blank_lines_leave_the_languages_of_all_first_rows(tmp_path: Path) -> None:
    """With one the loader does not see that rows differ, and puts their languages together."""
    first = write_rows(tmp_path / "0.jsonl", [KO, SW])
    first.write_text("\n" + first.read_text())
    paths = [str(first), str(write_rows(tmp_path / "1.jsonl", [ALL]))]
    assert len(load_dataset("json", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))) == 3
    check_local_files({"datasets": [{"type": "axolotl_clo.sft", "path": str(tmp_path), "data_files": paths}]})


def test_files_of_other_types_are_not_looked_into_for_languages(tmp_path: Path) -> None:
    paths = [str(write_rows(tmp_path / f"{i}.jsonl", [row])) for i, row in enumerate((KO, SW))]
    check_local_files({"datasets": [{"type": "chat_template", "path": str(tmp_path), "data_files": paths}]})


@pytest.mark.bad_input("data")
def test_columns_have_the_names_of_the_config(tmp_path: Path) -> None:
    rows = [[{"frage": row["prompt"], "response": "…"}] for row in (KO, SW)]
    paths = [str(write_rows(tmp_path / f"{i}.jsonl", file)) for i, file in enumerate(rows)]
    entry = {"type": "axolotl_clo.sft", "path": str(tmp_path), "data_files": paths}
    with pytest.raises(ValueError, match="line 1: `frage` holds sw, "):
        check_local_files({"clo": {"fields": {"prompt": "frage"}}, "datasets": [entry]})


def test_an_entry_with_several_names_is_several_datasets() -> None:
    from axolotl.utils.dict import DictDefault

    from axolotl_clo.datasets import training_entries

    ours = {"path": "hub/rows", "type": "axolotl_clo.sft", "name": ["ko", "sw"]}
    found = training_entries(DictDefault({"datasets": [{"path": "a/b", "type": "alpaca"}, ours]}))
    assert [(entry.path, entry.name) for entry in found] == [("hub/rows", "ko"), ("hub/rows", "sw")]
