"""Protected spans hidden from an engine, put back into its translation, and looked for in it.

An engine sees a hidden span as `{0}`, `{1}`, …: plain ASCII that software texts are full of, which Apertium and
language models hand back as it is, and whose usual damage (`{ 0 }`, `｛0｝`, `{٠}`) can be read back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from axolotl_clo.translate.spans import SENTINEL, SOFT, mask

_PLACEHOLDER = re.compile(r"[{｛]\s{0,3}(\d{1,4})\s{0,3}[}｝]")
_SENTINELS = re.compile(f"{SENTINEL}+")
_TAG = re.compile(r"<(/?)([A-Za-z][\w:.-]*)[^<>]*?(/?)>")
# What makes another number of one that it follows.
_GOES_ON = frozenset("0123456789.,:/eEkKMBx×%‰°")
_VOID_TAGS = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)


def request(text: str) -> str:
    """A masked text as an engine sees it, with `{0}`, `{1}`, … for the sentinels."""
    first, *rest = text.split(SENTINEL)
    return first + "".join(f"{{{i}}}{part}" for i, part in enumerate(rest))


def fragments(translation: str, spans: Sequence[str]) -> list[str] | None:
    """A translation cut at its placeholders, with the spans in their place; None if one is missing, doubled or new."""
    if not spans:
        return [translation]
    pieces = _PLACEHOLDER.split(translation)
    indices = [int(index) for index in pieces[1::2]]
    if sorted(indices) != list(range(len(spans))):
        return None
    pieces[1::2] = [spans[index] for index in indices]
    return pieces


def join(pieces: Iterable[str], spaced: bool) -> str:
    """The pieces in one; `spaced` puts a space where two would run together into another word, number or URL.

    One always stands before LaTeX that follows a letter: `$20来用$x$` would make LaTeX of what follows the price.
    """
    out: list[str] = []
    for piece in filter(None, pieces):
        if (out and _runs_into_latex(out[-1][-1], piece)) or (spaced and out and _run_together(out[-1], piece)):
            out.append(" ")
        out.append(piece)
    return "".join(out)


def _runs_into_latex(end: str, right: str) -> bool:
    return right[0] == "$" and not right[1:2].isdigit() and (end.isalnum() or end in "，。、；：！？")


def _run_together(left: str, right: str) -> bool:
    end, start = left[-1], right[0]
    if end.isspace() or start.isspace():
        return False
    if "://" in left or left.startswith("www."):
        return start.isalnum() or start in "/#&=%(-"
    return (end.isascii() and end.isalnum() and start.isascii() and start.isalnum()) or (end == "$" and start.isdigit())


@dataclass(frozen=True, slots=True)
class Scan:
    """The protected spans of a text.

    Attributes:
        text: the text with its hard spans masked.
        hard: the hard spans.
        markers: emphasis markers, brackets, pipes and the like.
        numbers: numbers with their units.
        balanced: whether every emphasis, bracket and HTML tag that opens is closed in order.
    """

    text: str
    hard: list[str]
    markers: list[str]
    numbers: list[str]
    balanced: bool


def scan(text: str) -> Scan:
    masked, hard = mask(text)
    markers: list[str] = []
    numbers: list[str] = []
    spans, nesting = iter(hard), _Nesting()
    for match in SOFT.finditer(masked):
        token = match.group()
        if token == SENTINEL:
            nesting.tag(next(spans))
        elif token[0] in "*_~`[]|{}!":
            markers.append(token)
            nesting.marker(token, masked[match.start() - 1 : match.start()], masked[match.end() : match.end() + 1])
        else:
            numbers.append(token)
    return Scan(masked, hard, markers, numbers, nesting.closed())


class _Nesting:
    """Follows what opens and closes in a text."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._stray = False

    def closed(self) -> bool:
        return not self._open and not self._stray

    def marker(self, token: str, before: str, after: str) -> None:
        if token[0] in "|`{}":
            return
        if token[-1] == "[":
            self._open.append("[")
        elif token == "]":  # nosec B105 # no password
            self._close("[")
        elif before and not before.isspace() and self._open[-1:] == [token]:
            self._open.pop()
        elif after and not after.isspace():
            self._open.append(token)
        else:
            self._stray = True

    def tag(self, span: str) -> None:
        match = _TAG.fullmatch(span)
        if not match or match[3] or match[2].lower() in _VOID_TAGS:
            return
        if match[1]:
            self._close(f"<{match[2]}>")
        else:
            self._open.append(f"<{match[2]}>")

    def _close(self, what: str) -> None:
        if self._open[-1:] == [what]:
            self._open.pop()
        else:
            self._stray = True


def lost(source: Scan, target: Scan) -> set[str] | None:
    """What a translation broke: None if nothing, else the soft spans of the source to hide from the engine.

    Every hard span and every marker must be there exactly as often as in the source, every number at least as often: a
    translation may well write `January` or `two` in digits. The set is empty where hiding soft spans cannot help.
    """
    numbers = _missing_numbers(source.numbers, target.numbers)
    before, after = Counter(source.markers), Counter(target.markers)
    if Counter(source.hard) != Counter(target.hard) or (source.balanced and not target.balanced):
        return numbers | set(before)
    if before != after:
        return numbers | {marker for marker in before if before[marker] != after[marker]}
    return numbers or None


def _missing_numbers(wanted: Sequence[str], found: Sequence[str]) -> set[str]:
    missing, spare = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    for number in list(missing.elements()):
        for other in spare:
            # `5` that came back before a word that looks like a unit (`5 h`) is still `5`.
            if other.startswith(number) and other[len(number)] not in _GOES_ON:
                spare -= Counter([other])
                missing -= Counter([number])
                break
    return set(missing)


def hide(text: str, spans: Sequence[str], tokens: set[str] | None) -> tuple[str, list[str]]:
    """A masked text with these soft spans, or all, masked as well; neighbours that touch become one."""
    rest, hidden = iter(spans), []

    def take(match: re.Match[str]) -> str:
        token = match.group()
        if token != SENTINEL and tokens is not None and token not in tokens:
            return token
        hidden.append(next(rest) if token == SENTINEL else token)
        return SENTINEL

    masked = SOFT.sub(take, text)
    rest, merged = iter(hidden), []
    for run in _SENTINELS.findall(masked):
        merged.append("".join(next(rest) for _ in run))
    return _SENTINELS.sub(SENTINEL, masked), merged
