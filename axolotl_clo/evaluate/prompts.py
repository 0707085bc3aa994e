"""Prompts that models are asked: the starter rows by name, or a user's own file.

A file (JSONL, JSON, CSV, TSV, Parquet) has a row for each prompt, or one for a prompt in several languages:

    {"id": "7", "language": "ko", "prompt": "세 가지 원색은 무엇인가요?"}
    {"id": "7", "prompt": {"en": "Which are the three primary colours?", "ko": "세 가지 원색은 무엇인가요?"}}

`id` is the row's number where there is none. Rows that serve as shots have a `response` in the same form.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_clo.datasets import starter_folder
from axolotl_clo.translate.engines.languages import normalise
from axolotl_clo.translate.readers import SUFFIXES, read_rows, suffix_of

STARTER = {"starter": "test", "starter-train": "train"}
"""Names of the starter rows, held out and for training, with the file of each."""

PROMPT_COLUMNS = ("prompt", "instruction", "question")
RESPONSE_COLUMNS = ("response", "output", "answer", "completion")


@dataclass(frozen=True)
class Prompt:
    """What is asked; `id` and `language` together name it.

    Attributes:
        id: of the row, the same in all of its languages.
        language: ISO 639 key of the language that an answer is expected in.
        text: the prompt itself.
        response: what the row answers, None where it does not.
    """

    id: str
    language: str
    text: str
    response: str | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts of a source, in its order; a row's languages in the order asked for.

    Attributes:
        rows: the prompts.
        left_out: texts of parallel rows that are not there, by reason.
    """

    rows: list[Prompt]
    left_out: dict[str, int]

    @property
    def languages(self) -> list[str]:
        """The languages of the prompts, in order of their first."""
        return list(dict.fromkeys(row.language for row in self.rows))

    def digest(self) -> str:
        """SHA-256 of all that a model is asked."""
        return digest(self.rows)


def read_prompts(source: str, languages: Sequence[str] = (), top: int | None = None) -> Prompts:
    """The prompts of `starter:ko`, `starter:ko,en`, `starter-train:ko`, or a file.

    Args:
        source: name of starter rows with their languages, or a file.
        languages: of a file, the languages to take, all by default. A file of one language without a column `language`
            needs it here.
        top: take the first so many rows.

    Raises:
        ValueError: names the file, row and column at fault, what was found and what is accepted.
    """
    name, colon, listed = source.partition(":")
    wanted = [_language(code, "--language") for code in languages]
    if name in STARTER:
        if not colon:
            raise ValueError(f"{source}: which language? {name}:ko and {name}:ko,en are accepted")
        file = starter_folder() / f"{STARTER[name]}.jsonl"
        wanted = [_language(code, source) for code in listed.split(",")]
        _check_starter(source, file, wanted)
    else:
        file = Path(source)
        _check_file(file)
    prompts: dict[tuple[str, str], Prompt] = {}
    rows_of: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    for number, row in enumerate(_first(read_rows(file), top)):
        for prompt in _prompts(row, f"{source}, row {number}", number, wanted, left_out):
            key = (prompt.id, prompt.language)
            if key in prompts:
                raise ValueError(
                    f"{source}, row {number}: id {prompt.id!r} in {prompt.language!r} is that of row {rows_of[key]} "
                    "too; ids must differ (without a column `id` rows are numbered)"
                )
            prompts[key], rows_of[key] = prompt, number
    if not prompts:
        why = ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "it has no rows"
        raise ValueError(f"{source}: no prompts in it ({why})")
    return Prompts(list(prompts.values()), dict(left_out))


def digest(rows: Sequence[Prompt]) -> str:
    """SHA-256 of prompts and responses, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps([row.id, row.language, row.text, row.response]).encode())
    return found.hexdigest()


def _first(rows: Iterator[dict[str, Any]], top: int | None) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        if top is not None and number >= top:
            return
        yield row


def _check_starter(source: str, file: Path, languages: Sequence[str]) -> None:
    known = next(read_rows(file))["prompt"]
    for code in languages:
        if code not in known:
            raise ValueError(f"{source}: the starter rows are in {', '.join(known)}, not in {code!r}")


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file}: no such file; a file, or starter:LANG such as starter:ko, is accepted")
    if suffix_of(file) not in SUFFIXES:
        raise ValueError(f"{file}: files ending in {', '.join(SUFFIXES)} (also .gz) are accepted")


def _prompts(
    row: Mapping[str, Any], where: str, number: int, wanted: Sequence[str], left_out: Counter[str]
) -> Iterator[Prompt]:
    """What a row asks, in each of the languages that are wanted."""
    column = next((name for name in PROMPT_COLUMNS if name in row), None)
    if column is None:
        raise ValueError(f"{where}: no column {' or '.join(PROMPT_COLUMNS)}; its columns are {', '.join(row)}")
    answer_column = next((name for name in RESPONSE_COLUMNS if row.get(name) not in (None, "")), None)
    asked, answered = row[column], row[answer_column] if answer_column else None
    identity = _id(row.get("id"), where, number)
    if not isinstance(asked, Mapping):
        language = _language_of(row, where, wanted)
        if wanted and language not in wanted:
            left_out[f"in {language}, which --language does not name"] += 1
            return
        response = None if answered is None else _text(answered, f"{where}, column {answer_column}")
        yield Prompt(identity, language, _text(asked, f"{where}, column {column}"), response)
        return
    texts = {_language(code, f"{where}, column {column}"): text for code, text in asked.items()}
    if not isinstance(answered, Mapping | None):
        raise ValueError(
            f"{where}, column {answer_column}: {column} holds one text for each language, so this must too; got "
            f"{type(answered).__name__}"
        )
    answers = {_language(code, f"{where}, column {answer_column}"): text for code, text in (answered or {}).items()}
    for language in wanted or texts:
        if texts.get(language) is None:
            left_out[f"not in {language}"] += 1
            continue
        text, response = texts[language], answers.get(language)
        yield Prompt(
            identity,
            language,
            _text(text, f"{where}, column {column}.{language}"),
            None if response is None else _text(response, f"{where}, column {answer_column}.{language}"),
        )


def _id(value: Any, where: str, number: int) -> str:
    if value is None or value == "":
        return str(number)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{where}, column id: text or a whole number is accepted, got {type(value).__name__}")
    return _text(str(value), f"{where}, column id")


def _language_of(row: Mapping[str, Any], where: str, wanted: Sequence[str]) -> str:
    if row.get("language") not in (None, ""):
        return _language(row["language"], f"{where}, column language")
    if len(wanted) == 1:
        return wanted[0]
    raise ValueError(f"{where}: in which language? A column `language`, or one --language for the file, is accepted")


def _language(code: Any, where: str) -> str:
    if not isinstance(code, str):
        raise ValueError(f"{where}: the code of a language is accepted, got {type(code).__name__} {code!r:.40}")
    try:
        return normalise(code)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: text is accepted, got {type(value).__name__} {value!r:.40}")
    if not value.strip():
        raise ValueError(f"{where}: it is empty; remove the row, or fill it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: half a surrogate pair at character {error.start}, which is no text") from error
    return value
