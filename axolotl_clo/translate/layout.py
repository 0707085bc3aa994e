"""A text taken apart: segments to translate, gaps between them, and what stays as it is.

What stays: code blocks, what a line begins with (quotes, list markers, headings), borders of table cells, white space,
and lines without a letter. All of it joined again is the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING

from sentencex import segment as split_sentences  # type: ignore[import-untyped]

from axolotl_clo.translate import spans
from axolotl_clo.translate.segment import Gap, Segment, stripped
from axolotl_clo.translate.spans import SENTINEL

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

# What a line may begin with: quotes, list markers (also `•`, `a)`, `(1)`, `B.`), task boxes, headings, footnotes.
_PREFIX = re.compile(
    r"\s*(?:(?:>|(?:[-+*•‣◦▪·–—]|\(?(?:\d{1,9}|[A-Za-z]|[ivxIVX]{1,5})\)|(?:\d{1,9}|[A-Za-z])\.)(?=\s))\s*)*"
    r"(?:\[[ xX]\]\s+)?(?:(?P<heading>#{1,6})\s+)?(?:\[\^[^\[\]\s]{1,60}\]:\s+)?"
)
_HEADING_END = re.compile(r"\s+#+$")
_CELL_BORDER = re.compile(r"(\s*\|\s*)")
# What still belongs to a sentence that has ended: closing emphasis, brackets, quotes, a footnote.
_CLOSING = re.compile(rf"""[*_~\])"'”’»{SENTINEL}]*(?=\s|$)\s*""")
_LABEL = re.compile(r"(\*\*|__)(?=\S)(?:(?!\1).)+?(?:[:：]\1|\1\s?[:：–—-])\s+")  # **Term:** explanation
_EDGE = re.compile(r"[*_~\[]")
_WHOLE_LINK = re.compile(rf"(!?\[\s*)([^\[\]]*?)(\s*\]{SENTINEL})")
_STOPS = frozenset(".,;:!?")
_CLAUSE_END = re.compile(r"""[,;:，；：、،؛–—][*_~"'”’)\]]*\s*""")
_SPACE = re.compile(r"\s+")


Node = str | Segment | Gap


def parse(text: str, language: str, by_line: bool, max_chars: int) -> list[Node]:
    """The text taken apart; no string in it is empty, and a gap stands between two other nodes."""
    parser = _Parser(language, by_line, max_chars)
    for is_code, region in regions(text):
        if is_code:
            parser.nodes.append(region)
        else:
            parser.region(region)
    return parser.nodes


def regions(text: str) -> Iterator[tuple[bool, str]]:
    """The text cut into code blocks (True) and the rest."""
    if "    " not in text and "\t" not in text and "```" not in text and "~~~" not in text:
        yield False, text
        return
    lines = text.splitlines(keepends=True)
    start = 0
    for token in _markdown().parse("\n".join(text.splitlines())):
        if token.type in ("fence", "code_block") and token.map:
            begin, end = token.map
            yield False, "".join(lines[start:begin])
            yield True, "".join(lines[begin:end])
            start = end
    yield False, "".join(lines[start:])


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").disable(["inline", "text_join"])  # blocks only


class _Parser:
    """Takes text without code blocks apart into `nodes`."""

    def __init__(self, language: str, by_line: bool, max_chars: int) -> None:
        self.nodes: list[Node] = []
        self._language, self._by_line, self._max_chars = language.split("-")[0], by_line, max_chars
        self._hard: Iterator[str] = iter(())  # spans not yet met
        self._plain = False

    def region(self, text: str) -> None:
        self._plain = spans.is_plain(text)
        if self._plain:
            self._lines(text, [])
            return
        masked, hard = spans.mask(text)
        first, *rest = masked.split(SENTINEL)
        texts: list[str] = [first]
        held: list[str] = []
        for span, piece in zip(hard, rest, strict=True):
            if len(span.splitlines()) > 1:  # it parts the lines in which it begins and ends
                self._lines(SENTINEL.join(texts), held)
                self.nodes.append(span)
                texts, held = [piece], []
            else:
                texts.append(piece)
                held.append(span)
        self._lines(SENTINEL.join(texts), held)

    def _lines(self, masked: str, hard: list[str]) -> None:
        self._hard = iter(hard)
        for line in masked.splitlines(keepends=True):
            prefix = _PREFIX.match(line)
            if not prefix or not spans.has_letters(line):
                self._keep(line)
                continue
            start = prefix.end()
            core = line[start:].rstrip().rstrip("\\").rstrip()
            if prefix["heading"]:
                core = _HEADING_END.sub("", core)
            self._keep(line[:start])
            cells = _CELL_BORDER.split(core) if "|" in core else [core]
            for i, cell in enumerate(cells):
                self._inline(cell, starts_line=i == 0)
            self._keep(line[start + len(core) :])

    def _inline(self, text: str, starts_line: bool) -> None:
        """The text of a line or of a cell."""
        if not spans.has_letters(text):
            self._keep(text)
            return
        before, text, behind = _without_edges(text)
        self._keep(before)
        *sentences, last = self._sentences(text)
        starts_line = starts_line and not before
        for sentence in sentences:
            body = sentence.rstrip()
            if not body:
                self._keep(sentence)
                continue
            self._sentence(body, starts_line)
            self.nodes.append(Gap(sentence[len(body) :]))
            starts_line = False
        self._sentence(last, starts_line)
        self._keep(behind)

    def _sentence(self, text: str, starts_line: bool) -> None:
        before, core, behind = _without_edges(text)
        self._keep(before)
        if spans.has_letters(core):
            self.nodes.append(Segment(core, self._take(core), starts_line and not before, self._plain))
        else:
            self._keep(core)
        self._keep(behind)

    def _keep(self, masked: str) -> None:
        if masked:
            self.nodes.append(spans.restore(masked, self._take(masked)))

    def _take(self, masked: str) -> list[str]:
        """The spans of the next piece of text."""
        return list(islice(self._hard, masked.count(SENTINEL))) if SENTINEL in masked else []

    def _sentences(self, text: str) -> list[str]:
        if self._by_line and _size(text) <= self._max_chars:
            return [text]
        pieces = [piece for sentence in _sentences(text, self._language) for piece in _cut(sentence, self._max_chars)]
        if not self._by_line:
            return pieces
        lines = pieces[:1]
        for piece in pieces[1:]:
            if _size(lines[-1] + piece) <= self._max_chars:
                lines[-1] += piece
            else:
                lines.append(piece)
        return lines


def _without_edges(text: str) -> tuple[str, str, str]:
    """What stands before a text, the text, and what stands behind it, if either may be left out.

    That is a link around the whole, emphasis around the whole, or emphasis that only begins or only ends in it.
    """
    if not _EDGE.search(text):
        return "", text, ""
    if link := _WHOLE_LINK.fullmatch(text):
        return link[1], link[2], link[3]
    body = text[:-1] if text[-1:] in _STOPS else text
    opening, closing = text[: len(text) - len(text.lstrip("*_~"))], body[len(body.rstrip("*_~")) :]
    if not (opening or closing) or not spans.has_letters(text):
        return "", text, ""
    around = opening == closing and text.count(opening) == 2
    start = len(opening) if around or text.count(opening) == 1 else 0
    end = len(body) - len(closing) if closing and (around or text.count(closing) == 1) else len(text)
    before, core, behind = stripped(text[start:end])
    return text[:start] + before, core, behind + text[end:]


def _sentences(text: str, language: str) -> list[str]:
    """Sentences with the space behind them, not parted within emphasis, the text of a link, or a number."""
    parts = split_sentences(language, text)
    label = _LABEL.match(text)
    if len(parts) < 2 and not label:
        return [text]
    ends = {_behind_closing(text, end) for end in accumulate(map(len, parts))}
    if label:
        ends.add(label.end())
    kept = spans.unbroken(text, pairs=True)
    cuts = [0, *sorted(end for end in ends if not any(start < end < stop for start, stop in kept)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if start < end]


def _behind_closing(text: str, end: int) -> int:
    closing = None if text[end - 1].isspace() else _CLOSING.match(text, end)
    return closing.end() if closing else end


def _size(masked: str) -> int:
    """The most characters an engine may be shown of this text; a sentinel is at worst `{1234}`."""
    return len(masked) + 5 * masked.count(SENTINEL)


def _cut(text: str, limit: int) -> list[str]:
    """A sentence in pieces of at most `limit` characters."""
    pieces = []
    while _size(text) > limit:
        window = limit
        while window > 1 and (excess := _size(text[:window]) - limit) > 0:
            window = max(1, window - (excess + 5) // 6)
        kept = spans.unbroken(text[: window + 100], pairs=False)
        end = _last_end(_CLAUSE_END, text, window // 3, window, kept) or _last_end(_SPACE, text, 0, window, kept)
        if not end:  # within a word, but not within a number, which alone would not be sent
            end = next((start or stop for start, stop in kept if start < window < stop), window)
        if space := _SPACE.match(text, end):
            end = space.end()
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]


def _last_end(pattern: re.Pattern[str], text: str, start: int, window: int, kept: list[tuple[int, int]]) -> int:
    ends = [match.end() for match in pattern.finditer(text, start, window)]
    return next((end for end in reversed(ends) if not any(first < end < last for first, last in kept)), 0)
