"""Rows to train on, from the starter data: English with German, Korean and Swahili in turn."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from axolotl_clo.datasets import starter_folder

TARGETS = ("de", "ko", "sw")
TEMPLATE_TOKENS = 64  # more than a chat template puts around a prompt and a response

Row = dict[str, dict[str, str]]


def write_rows(file: Path, rows: int, length: int = 0, tokenizer: Any = None) -> Path:
    """Write rows as JSON lines.

    Args:
        file: to write.
        rows: how many; no two are the same.
        length: tokens that the longest sequence of a row comes near to, by joining starter rows; 0: one each.
        tokenizer: counts the tokens.
    """
    lines = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()
    starter = [json.loads(line) for line in lines]
    numbers = count()
    with file.open("w", encoding="utf-8") as stream:
        for i in range(rows):
            languages = ("en", TARGETS[i % len(TARGETS)])
            row = _row(starter, next(numbers), languages)
            while length:
                longer = _join(row, _row(starter, next(numbers), languages))
                if _longest(longer, tokenizer) > length - TEMPLATE_TOKENS:
                    break
                row = longer
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return file


def _row(starter: list[Any], number: int, languages: tuple[str, ...]) -> Row:
    again, place = divmod(number, len(starter))
    row = {side: {lang: starter[place][side][lang] for lang in languages} for side in ("prompt", "response")}
    if again:
        row["prompt"] = {lang: f"{text} ({again})" for lang, text in row["prompt"].items()}
    return row


def _join(one: Row, two: Row) -> Row:
    return {side: {lang: f"{text}\n\n{two[side][lang]}" for lang, text in texts.items()} for side, texts in one.items()}


def _longest(row: Row, tokenizer: Any) -> int:
    """Tokens of the longest of the four sequences."""
    prompt, response = (
        max(len(tokenizer(text, add_special_tokens=False).input_ids) for text in row[side].values())
        for side in ("prompt", "response")
    )
    return prompt + response
