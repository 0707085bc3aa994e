"""The file of a model's answers: a line for each prompt, and beside it what the model was.

    {"id": "facts-17", "language": "ko", "prompt": "…", "answer": "…", "shots": 0}

More keys stand where there is something to say: `text`, all that a model said, where the answer is only the end of it;
`cut_off`, where the longest answer was reached; `problem`, where there is no answer and why.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_clo.translate.readers import read_rows

FORMAT = "axolotl-clo answers 1"

Key = tuple[str, str]  # id, language


@dataclass(frozen=True)
class Answers:
    """A model's answers.

    Attributes:
        file: where they were read.
        model: the model's name, that of the file where nothing says it.
        rows: the file's lines by id and language, in its order.
    """

    file: Path
    model: str
    rows: dict[Key, dict[str, Any]]

    @property
    def shots(self) -> int:
        """Examples that stood before each prompt."""
        return max((row["shots"] for row in self.rows.values() if isinstance(row.get("shots"), int)), default=0)


def about_file(file: Path) -> Path:
    """The file beside an answers file that says what the model was."""
    return file.with_name(f"{file.name}.json")


def read_answers(file: Path) -> Answers:
    """An answers file of `axolotl-clo generate`, or one in its form.

    Raises:
        ValueError: names the file and row at fault, what was found and what to do.
    """
    if not file.is_file():
        unfinished = file.with_name(f"{file.name}.partial").is_file()
        hint = "it is not finished: run `axolotl-clo generate` again as before" if unfinished else "no such file"
        raise ValueError(f"{file}: {hint}")
    rows: dict[Key, dict[str, Any]] = {}
    for number, row in enumerate(read_rows(file)):
        where = f"{file}, row {number}"
        row = _checked(row, where)
        key = (row["id"], row["language"])
        if key in rows:
            raise ValueError(f"{where}: a second answer to id {key[0]!r} in {key[1]!r}; one is accepted")
        rows[key] = row
    if not rows:
        raise ValueError(f"{file}: no answers in it")
    return Answers(file, _model(file), rows)


def counts(rows: Mapping[Key, Mapping[str, Any]]) -> dict[str, int]:
    """How many answers are not whole, by reason."""
    found: Counter[str] = Counter()
    for row in rows.values():
        if row.get("problem"):
            found[row["problem"]] += 1
        elif not row["answer"].strip():
            found["empty"] += 1
        elif row.get("cut_off"):
            found["cut off at --max-new-tokens"] += 1
    return dict(found.most_common())


def _checked(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    for column in ("id", "language", "prompt", "answer"):
        value = row.get(column)
        if column == "answer" and value is None and "answer" in row:
            value = ""
        if column == "id" and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            found = f"got {type(value).__name__}" if column in row else f"its columns are {', '.join(row)}"
            raise ValueError(f"{where}: column {column!r} must be text, {found}")
        row = {**row, column: value}
    return dict(row)


def _model(file: Path) -> str:
    about = about_file(file)
    if not about.is_file():
        return file.name.removesuffix(".jsonl")
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        form, model = said["format"], said["model"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{about}: not what `axolotl-clo generate` wrote ({error}); delete it, or write it anew"
        ) from error
    if form != FORMAT:
        raise ValueError(f"{about}: format {form!r}, and this version reads {FORMAT!r}; generate the answers anew")
    return str(model)
