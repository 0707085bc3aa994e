"""Texts of models, which nobody vouches for, made fit for a page."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier, supported

MAX_CHARACTERS = 600
# Invisible and able to reorder or hide the text around them: shown by their number instead.
_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
_KEPT = {"\n", "\t", "\u200c", "\u200d"}  # joiners that Persian, Indic scripts and emoji are written with


class Shown(NamedTuple):
    """A text as it is shown; `cut` is its whole length in characters where it was cut, else 0."""

    text: str
    cut: int


def shown(text: str, limit: int = MAX_CHARACTERS) -> Shown:
    """A text with its control characters visible, cut after `limit` characters."""
    kept = text[:limit]
    return Shown("".join(_visible(c) for c in kept), len(text) if len(text) > limit else 0)


def _visible(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _HIDDEN:
        return character
    number = ord(character)
    if number < 0x20:
        return chr(0x2400 + number)  # the picture of the control character, as ␀
    return "␡" if number == 0x7F else f"⟨U+{number:04X}⟩"


def one_line(text: str, limit: int = 80) -> str:
    """A name or a title: visible, in one line, with an ellipsis where it was cut."""
    flat = " ".join("".join(_visible(c) for c in text).split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def languages_of(texts: list[str], asked: str) -> list[str | None]:
    """In which language each text is, of those the package knows and the one asked."""
    known = (*LANGUAGES, asked) if supported(asked) else LANGUAGES
    return LanguageIdentifier(known).identify_many([text[:10_000] for text in texts])
