"""Every cell of the starter rows: present, in its own language, no leftovers of English, no duplicates."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import pytest
from conftest import LANGUAGES, starter_rows

from axolotl_clo.evaluate.language import LanguageIdentifier

ROWS = {split: starter_rows(split) for split in ("train", "test")}
ALL = [*ROWS["train"], *ROWS["test"]]


def cells(lang: str) -> list[tuple[str, str]]:
    return [(f"{row['id']} {side}", row[side][lang]) for row in ALL for side in ("prompt", "response")]


def test_numbers_of_rows_and_kinds() -> None:
    assert (len(ROWS["train"]), len(ROWS["test"])) == (128, 32)
    assert set(Counter(row["category"] for row in ROWS["train"]).values()) == {16}
    assert set(Counter(row["category"] for row in ROWS["test"]).values()) == {4}
    assert len({row["id"] for row in ALL}) == 160


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_cell_is_one_clean_line(lang: str) -> None:
    for where, text in cells(lang):
        assert text == text.strip() != "", where
        assert "\n" not in text, where
        assert text == unicodedata.normalize("NFC", text), where


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_duplicates(lang: str) -> None:
    for side in ("prompt", "response"):
        counts = Counter(row[side][lang].casefold() for row in ALL)
        assert counts.most_common(1)[0][1] == 1, counts.most_common(1)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_cell_is_in_its_language(lang: str) -> None:
    """A response must be identified; a very short prompt may be unknown, but never another language."""
    identifier = LanguageIdentifier(LANGUAGES)
    found = {where: identifier.identify(text) for where, text in cells(lang)}
    wrong = {where: code for where, code in found.items() if code not in (lang, None)}
    unknown = [where for where, code in found.items() if code is None]
    assert wrong == {}
    assert [where for where in unknown if where.endswith("response")] == []
    assert len(unknown) <= 2, unknown


# Words that are rightly the same in English: names, and loanwords with their own place in the language.
@pytest.mark.parametrize("lang", ["zh", "ko"])
def test_no_latin_words_in_other_scripts(lang: str) -> None:
    for where, text in cells(lang):
        assert re.findall(r"[A-Za-z]{2,}", text) == [], where


@pytest.mark.parametrize("lang", ["de", "id", "sw", "yo"])
def test_no_english_function_words(lang: str) -> None:
    english = {
        "the",
        "of",
        "is",
        "are",
        "with",
        "because",
        "you",
        "your",
        "which",
        "what",
        "this",
        "that",
        "please",
        "and",
    }
    for where, text in cells(lang):
        assert english & set(re.findall(r"\w+", text.casefold())) == set(), where


@pytest.mark.parametrize("lang", LANGUAGES[1:])
def test_translations_differ_from_english_and_keep_their_length(lang: str) -> None:
    for row in ALL:
        for side in ("prompt", "response"):
            assert row[side][lang] != row[side]["en"], row["id"]
        ratio = len(row["response"][lang].encode()) / len(row["response"]["en"].encode())
        assert 0.4 < ratio < 3, (row["id"], ratio)


@pytest.mark.parametrize("lang", LANGUAGES[1:])
def test_results_of_arithmetic_survive_translation(lang: str) -> None:
    """The last digits of an English arithmetic response stand in each translation."""
    for row in ALL:
        if row["category"] == "arithmetic":
            numbers = re.findall(r"\d+", row["response"]["en"])
            there = set(re.findall(r"\d+", row["response"][lang]))
            assert numbers[-1] in there, (row["id"], row["response"][lang])
