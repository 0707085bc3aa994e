"""Parallel rows: what a row says in each language, and why one cannot be used.

A row holds the same prompt and response in two or more languages:

    {"id": "…", "prompt":   {"en": "What is …?", "ko": "… 무엇입니까?"},
                "response": {"en": "It is …",    "ko": "…입니다."}}

or one conversation per language under `messages`, or four flat columns named in `clo.fields`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from axolotl_clo.schema import FieldMapping

Messages = list[dict[str, str]]

# Rows looked through at once for their languages.
_SCANNED_ROWS = 1000


class Unusable(Exception):
    """A row that cannot be used: why, and which column is at fault."""

    def __init__(self, reason: str, column: str) -> None:
        super().__init__(reason)
        self.reason, self.column = reason, column


@dataclass
class Side:
    """One language of a row: the conversation up to the response, and the response."""

    prompt: Messages
    response: str
    prompt_column: str
    response_column: str


class RowReader:
    """Reads the sides of rows by language."""

    def __init__(self, fields: FieldMapping, source: str, targets: list[str]) -> None:
        """
        Args:
            fields: which columns hold the parallel text.
            source: key of the source language.
            targets: keys of the target languages; flat columns hold one.
        """
        self.fields, self.source, self.targets = fields, source, targets

    def check_columns(self, dataset: Any, every_target: bool = True) -> None:
        """Stop where a `datasets.Dataset` lacks a column or a language altogether.

        Args:
            dataset: parallel rows.
            every_target: whether it must have all target languages, or one at least.

        Raises:
            ValueError: names the column or the option, and what the dataset has.
        """
        columns = dataset.column_names
        if flat := self.fields.flat:
            for option, column in flat.items():
                if column.split(".")[0] not in columns:
                    raise ValueError(
                        f"clo.fields.{option}: no column {column!r} in the dataset, which has {', '.join(columns)}"
                    )
            return
        if self.fields.messages in columns:
            nested = [self.fields.messages]
        else:
            nested = [self.fields.prompt, self.fields.response]
        for column in nested:
            if column not in columns:
                raise ValueError(
                    f"no column {column!r} in the dataset; its columns are {', '.join(columns)}. Accepted are `prompt` "
                    "and `response` (or `messages`) holding one entry per language, or flat columns named in "
                    "`clo.fields`"
                )
            known = _languages(dataset, column)
            if not known:
                continue
            targets = [target for target in self.targets if every_target or known.isdisjoint(self.targets)]
            for option, language in [("source_lang", self.source), *(("target_lang", target) for target in targets)]:
                if language not in known:
                    raise ValueError(
                        f"clo.{option}: {language!r} is not in column {column!r}; {self.described(known, [language])}"
                    )

    def held(self, dataset: Any, languages: list[str]) -> list[str]:
        """Those of `languages` in which some row of a dataset says something."""
        if self.fields.flat:
            return languages
        columns = self._nested(dataset)
        known = [_languages(dataset, column) for column in columns]
        left = {language for language in languages if any(not there or language in there for there in known)}
        found: set[str] = set()
        for start in range(0, len(dataset), _SCANNED_ROWS):
            if not left:
                break
            rows = dataset[start : start + _SCANNED_ROWS]
            texts = [value for column in columns for value in rows[column] if isinstance(value, dict)]
            found |= {language for language in left if any(text.get(language) is not None for text in texts)}
            left -= found
        return [language for language in languages if language in found]

    def known(self, dataset: Any) -> set[str]:
        """All languages that the rows of a dataset have a place for."""
        columns = self._nested(dataset)
        return {
            language
            for column in columns
            for language in _languages(dataset, column)
            or (key for value in dataset[column] if isinstance(value, dict) for key in value)
        }

    @staticmethod
    def described(known: set[str], asked: list[str]) -> str:
        """The languages there are, for a message on those that are not, with one that may have been meant."""
        near = [name for language in asked for name in difflib.get_close_matches(language, known, n=1, cutoff=0.5)]
        return f"languages there: {', '.join(sorted(known))}" + (f" (did you mean {near[0]!r}?)" if near else "")

    def _nested(self, dataset: Any) -> list[str]:
        names = (self.fields.messages, self.fields.prompt, self.fields.response)
        return [name for name in names if name in dataset.column_names]

    def side(self, row: dict[str, Any], number: int, language: str) -> Side:
        """One language of a row.

        Raises:
            Unusable: its text is missing or empty.
            ValueError: it is not text; the message names row and column.
        """
        if flat := self.fields.flat:
            role = "source" if language == self.source else "target"
            prompt_column, response_column = flat[f"{role}_prompt"], flat[f"{role}_response"]
        elif row.get(self.fields.messages) is not None:
            column = f"{self.fields.messages}.{language}"
            return _conversation(_reach(row, column), number, column)
        else:
            prompt_column, response_column = (f"{c}.{language}" for c in (self.fields.prompt, self.fields.response))
        prompt = _text(_reach(row, prompt_column), number, prompt_column)
        return Side(
            prompt=[{"role": "user", "content": prompt}],
            response=_text(_reach(row, response_column), number, response_column),
            prompt_column=prompt_column,
            response_column=response_column,
        )


def _languages(dataset: Any, column: str) -> set[str]:
    """Languages of a nested column by its type; none where that leaves them to each row."""
    feature = dataset.features[column]
    return set(feature) if isinstance(feature, dict) else set(getattr(feature, "languages", None) or ())


def _conversation(turns: Any, number: int, column: str) -> Side:
    if not turns:
        raise Unusable("missing", column)
    if not isinstance(turns, list) or not all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in turns):
        raise ValueError(f"row {number}, column {column}: accepted is a list of turns with `role` and `content`")
    messages = [{"role": str(t["role"]), "content": _text(t["content"], number, column)} for t in turns]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(
            f"row {number}, column {column}: the last of at least two turns must be the assistant's, got "
            f"{[m['role'] for m in messages]}"
        )
    return Side(messages[:-1], messages[-1]["content"], prompt_column=column, response_column=column)


def _reach(row: dict[str, Any], column: str) -> Any:
    """The value at a dotted column name, or None."""
    value: Any = row
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any, number: int, column: str) -> str:
    if value is None:
        raise Unusable("missing", column)
    if not isinstance(value, str):
        raise ValueError(f"row {number}, column {column}: accepted is text, got {type(value).__name__} {value!r:.40}")
    if not value.strip():
        raise Unusable("empty", column)
    return value
