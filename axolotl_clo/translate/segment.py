"""What is translated in one go, and what stands between two such pieces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from axolotl_clo.translate import protect, spans
from axolotl_clo.translate.spans import SENTINEL

# Thai, Lao, Khmer, Burmese and Tibetan put no space between words, but one between sentences.
NO_SPACE_AFTER_SENTENCE = frozenset({"zh", "yue", "wuu", "ja"})

_MAKES_BLOCK = re.compile(r">|(?:[-+*]|\d{1,9}[.)]|#{1,6})(?:\s|$)")


class Segment:
    """What is translated in one go.

    Attributes:
        source: its text.
        text: its text as an engine sees it, but with sentinels for the spans in `hidden`.
        starts_line: whether nothing but a list marker and the like stands before it on its line.
        asked_again: whether a translation of it was refused, and more was hidden.
        result: its translation; its source until there is one.
    """

    __slots__ = ("_plain", "_scan", "asked_again", "hidden", "result", "source", "starts_line", "text")

    def __init__(self, text: str, hidden: list[str], starts_line: bool, plain: bool = False) -> None:
        """
        Args:
            text: as the attribute.
            hidden: as the attribute.
            starts_line: as the attribute.
            plain: it is known to hold no protected span but numbers.
        """
        self.text, self.hidden, self.starts_line = text, hidden, starts_line
        self._plain = plain and not spans.has_number(text)
        self.source = self.result = spans.restore(text, hidden)
        self.asked_again = False
        self._scan: protect.Scan | None = None

    def request(self) -> str:
        return protect.request(self.text) if self.hidden else self.text

    def has_letters(self) -> bool:
        return spans.has_letters(self.text)

    def hide(self, tokens: set[str] | None = None) -> bool:
        """Hide these soft spans, or all; False where there are none."""
        before = self.text
        self.text, self.hidden = protect.hide(self.text, self.hidden, tokens)
        return self.text != before

    def settle(self, pieces: Sequence[str]) -> set[str] | None:
        """Take the translation, given in pieces, if it keeps what is protected; else say what to hide."""
        lost: set[str] | None = None
        if "".join(pieces) == self.source:
            return None
        for spaced in (False, True):
            result = protect.join(pieces, spaced)
            lost = self._lost(result)
            if lost is None:
                self.result = result
                break
        return lost

    def parts(self) -> list[str | Segment]:
        """The segment cut at its protected spans; empty where it has none."""
        if not self.hidden and not self.hide():
            return []
        parts: list[str | Segment] = []
        for text, span in zip(self.text.split(SENTINEL), [*self.hidden, ""], strict=True):
            before, core, behind = stripped(text)
            if spans.has_letters(core):
                parts += [before, Segment(core, [], self.starts_line and not any(parts)), behind, span]
            else:
                parts += [text, span]
        return parts

    def _lost(self, result: str) -> set[str] | None:
        if self.starts_line and _MAKES_BLOCK.match(result):
            return set(self._scanned().numbers)  # `1990. …` would be a list
        if self._plain and spans.is_plain(result):
            return None
        return protect.lost(self._scanned(), protect.scan(result))

    def _scanned(self) -> protect.Scan:
        if self._scan is None:
            self._scan = protect.scan(self.source)
        return self._scan


@dataclass(slots=True)
class Gap:
    """What stands between two sentences of a line: white space, or nothing."""

    space: str

    def between(self, left: str, right: str, changed: bool, target: str) -> str:
        """The same in the target language.

        Args:
            left: what stands before it there.
            right: what stands behind it there.
            changed: whether the sentence before it was indeed translated, and had come to its end.
            target: key of the language.
        """
        if target.split("-")[0] not in NO_SPACE_AFTER_SENTENCE:
            return " " if not self.space and changed else self.space
        # Behind ASCII the space stays: it may be what ends a URL, a number, emphasis or a sentence left as it was.
        native = not left[-1].isascii() and unicodedata.category(left[-1])[0] in "LMP"
        return "" if native and right[0] not in "*_~$" and not self.space.strip(" ") else self.space


def stripped(text: str) -> tuple[str, str, str]:
    """White space, text, white space."""
    core = text.strip()
    start = text.index(core)
    return text[:start], core, text[start + len(core) :]
