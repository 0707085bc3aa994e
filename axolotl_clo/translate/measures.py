"""What can be measured on one text, or on one text and its translation, without knowing any other.

All of it is made for many thousand texts a second: each function passes over a text a few times at most.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import regex  # type: ignore[import-untyped, unused-ignore]

UNSPACED = frozenset({"zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages written without spaces between words."""

STEM = 6
"""Letters of a word that count, so that most forms of a word are one; Hangul is decomposed before."""

_COPIED_WORDS, _COPIED_CHARACTERS = 3, 6  # shortest run that is copied rather than common to both languages
_LONGEST_WORD = 40  # letters; what is longer is no word, and is measured by the character
_PERIODS = 20  # longest loop, in words or characters
_LEFT_AS_IS = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|(?:[a-z]+://|www\.)[!-~]+|(?<!\w)[@#]\w+", re.DOTALL)
_END = regex.compile(r"(?r)[\p{Sentence_Terminal}…:;][\p{Pe}\p{Pf}\p{Pi}\"'*_`\s]*\Z")
_NUMBER = regex.compile(r"\d{1,3}(?:[.,'\u00a0\u202f]\d{3}){1,4}(?!\d)|\d{1,15}")
_NO_DIGIT = regex.compile(r"\D")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
_ASCII_WORD = re.compile("[A-Za-z0-9]+")
_DIGIT = re.compile(r"\d")
_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_RUN = regex.compile(rf"[{_NO_SPACES}][{_NO_SPACES}\p{{M}}]*")
_IDEOGRAM = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")


def prose(text: str) -> str:
    """The text without what a translation leaves as it is: code, addresses, handles and tags."""
    has_any = "`" in text or "@" in text or "#" in text or "://" in text or "www." in text
    return _LEFT_AS_IS.sub(" ", text) if has_any else text


def plain(text: str) -> str:
    """The text in small letters without accents, as words are compared."""
    text = text.casefold()
    return text if text.isascii() else _ACCENTS.sub("", unicodedata.normalize("NFD", text))


def words(text: str) -> list[str]:
    """The words of a text made `plain`; where words are not spaced, overlapping pieces of 2 (Chinese) or 4 letters."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return _WORD.findall(_RUN.sub(_pieces, text))  # type: ignore[no-any-return, unused-ignore]


def _pieces(match: regex.Match[str]) -> str:
    run = match.group()
    size = 2 if _IDEOGRAM.match(run) else 4
    return f" {' '.join(run[i : i + size] for i in range(max(1, len(run) - size + 1)))} "


def size(text: str) -> int:
    """Length of a text made `plain`, in characters of an alphabet: an ideogram or kana counts as three."""
    return len(text) if text.isascii() else len(text) + 2 * len(_IDEOGRAM.findall(text))


def ends(text: str) -> bool:
    """Whether a text ends as a sentence or a line does, in any script; what closes quotes or emphasis may follow."""
    return _END.search(text) is not None


def numbers(text: str) -> set[int]:
    """The numbers written in digits of any script; separators of thousands are left out."""
    if not _DIGIT.search(text):
        return set()
    return {int(_NO_DIGIT.sub("", number)) for number in _NUMBER.findall(text)}


def tokens(text: str, spaced: bool) -> list[str]:
    """What repetition and copies are counted in: words with their punctuation, or else characters."""
    found = text.split()
    return found if spaced and max(map(len, found), default=0) <= _LONGEST_WORD else list("".join(found))


def copied_share(source: str, target: str, spaced: bool = True) -> float:
    """Share (0 to 1) of the letters of ``target`` that stand in runs copied from ``source``.

    Words with a capital or a digit count neither way, as names and numbers are the same in both.

    Args:
        source: text without code and addresses.
        target: its translation, likewise.
        spaced: whether the source is written with spaces.
    """
    length = _COPIED_WORDS if spaced else _COPIED_CHARACTERS
    from_source, from_target = ((text.split() if spaced else list(text)) for text in (source, target))
    grams = set(zip(*(from_source[i:] for i in range(length)), strict=False))
    places = [i for i, gram in enumerate(zip(*(from_target[i:] for i in range(length)), strict=False)) if gram in grams]
    if not places:
        return 0.0
    weights = [len(word) if _is_ordinary(word) else 0 for word in from_target]
    copied = {i + offset for i in places for offset in range(length)}
    if sum(weights[i] > 0 for i in copied) < length:
        return 0.0
    return sum(weights[i] for i in copied) / sum(weights)


def is_copy(source: str, target: str) -> bool:
    """Whether a translation is its source, although there is something to translate: a word that is no name."""
    return source.strip() == target.strip() and any(map(_is_ordinary, source.split()))


def _is_ordinary(word: str) -> bool:
    """Whether a word is no name, number or symbol: two small letters or more, or letters of a script without case."""
    if word != word.lower() or any(map(str.isdigit, word)):
        return False
    return any(map(str.isalpha, word)) and (len(word) > 1 or word == word.upper())


def repeated_share(items: Sequence[str]) -> float:
    """Share (0 to 1) of n-grams that stood in the text before: 4 words, or 8 characters."""
    length = 4 if any(len(item) > 1 for item in items) else 8
    grams = list(zip(*(items[i:] for i in range(length)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def loop_length(items: Sequence[str]) -> int:
    """Words (or characters) of the longest passage that only says again what stood right before it."""
    codes = {item: code for code, item in enumerate(dict.fromkeys(items))}
    ids = np.array([codes[item] for item in items])
    longest = 0
    for period in range(1, min(_PERIODS, len(ids) // 2) + 1):
        breaks = np.flatnonzero(np.concatenate(([True], ids[period:] != ids[:-period], [True])))
        longest = max(longest, int(np.diff(breaks).max()) - 1)
    return longest
