"""A text as segments to translate, and together again with everything else byte for byte as it was.

    document = Document(text, source="en")
    while segments := document.pending():
        document.accept(translate(segments))
    print(document.text(target="ko"), document.failures)

Code blocks and the structure of Markdown never leave the document (`layout.py`). A line's text goes out in sentences
whose protected spans (`spans.py`) stand as placeholders (`protect.py`), in up to three steps: with numbers and emphasis
in sight; where one of those did not come back, with it hidden too; where that fails as well, cut at the spans, so that
they cannot be lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from axolotl_clo.translate import layout, protect, spans
from axolotl_clo.translate.engines import Failure
from axolotl_clo.translate.segment import Gap, Segment

_NEWLINES = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class Document:
    """One text on its way through an engine.

    Attributes:
        failures: why segments could not be translated; their source stays. Complete once `pending` is empty.
    """

    def __init__(
        self, text: str, source: str = "en", unit: Literal["sentence", "line"] = "sentence", max_chars: int = 400
    ) -> None:
        """
        Args:
            text: plain text or Markdown.
            source: key of its language.
            unit: whether a segment is a sentence or a line.
            max_chars: longest segment in characters; longer ones are cut at clauses, else at spaces, else anywhere.

        Raises:
            ValueError: `unit` or `max_chars` is none of these.
        """
        if unit not in ("sentence", "line"):
            raise ValueError(f"unit: accepted are 'sentence' and 'line', got {unit!r}")
        if max_chars < 1:
            raise ValueError(f"max_chars: accepted is 1 or more, got {max_chars}")
        self.failures: list[str] = []
        self._max_chars = max_chars
        self._nodes: list[layout.Node]
        try:
            text.encode()
            self._nodes = layout.parse(text, source, by_line=unit == "line", max_chars=max_chars)
        except UnicodeEncodeError as error:
            self.failures.append(f"character {error.start} is no Unicode: {text[error.start]!a}")
            self._nodes = [text]
        self._open = [node for node in self._nodes if isinstance(node, Segment)]
        self._cut: list[tuple[Segment, list[str | Segment]]] = []

    def pending(self) -> list[str]:
        """What wants translating now; empty when all is done."""
        while self._cut and not self._open:  # those cut last are parts of those cut before
            self._join(*self._cut.pop())
        return [segment.request() for segment in self._open]

    def accept(self, translations: Sequence[str | Failure]) -> None:
        """Take the translations of what `pending` gave.

        Raises:
            ValueError: there are more or fewer of them than segments.
        """
        if len(translations) != len(self._open):
            raise ValueError(f"{len(translations)} translations for {len(self._open)} segments")
        waiting, self._open = self._open, []
        for segment, translation in zip(waiting, translations, strict=True):
            if isinstance(translation, Failure):
                self._fail(segment, translation.reason)
            elif one_line := _NEWLINES.sub(" ", translation).strip():
                self._take(segment, one_line)
            else:
                self._fail(segment, "empty translation")

    def text(self, target: str) -> str:
        """The text in the target language, whose key says what stands between two sentences."""
        texts: list[str] = []
        gaps: list[tuple[int, Gap, bool]] = []
        changed = False
        for node in self._nodes:
            if isinstance(node, Segment):
                changed = node.result != node.source and not node.source[-1].isalnum()
                texts.append(node.result)
            elif isinstance(node, Gap):
                gaps.append((len(texts), node, changed))
                texts.append(node.space)
            else:
                texts.append(node)
        for i, gap, changed in gaps:
            texts[i] = gap.between(texts[i - 1], texts[i + 1], changed, target)
        return "".join(texts)

    def _take(self, segment: Segment, translation: str) -> None:
        lost: set[str] | None = set()
        if pieces := protect.fragments(translation, segment.hidden):
            lost = segment.settle(pieces)
        if lost is None:
            return
        if lost and not segment.asked_again:
            segment.asked_again = True
            segment.hide(lost)
            if segment.has_letters() and len(segment.request()) <= self._max_chars:
                self._open.append(segment)
                return
        self._cut_at_spans(segment)

    def _cut_at_spans(self, segment: Segment) -> None:
        parts = segment.parts()
        if parts:
            self._cut.append((segment, parts))
            self._open += [part for part in parts if isinstance(part, Segment)]
        else:
            self._fail(segment, "the translation adds markup or a placeholder")

    def _join(self, segment: Segment, parts: list[str | Segment]) -> None:
        if segment.settle([part.result if isinstance(part, Segment) else part for part in parts]) is None:
            return
        if segment.hide():
            self._cut_at_spans(segment)
        else:
            self._fail(segment, "the translation breaks code, markup, a number or a placeholder")

    def _fail(self, segment: Segment, reason: str) -> None:
        segment.result = segment.source
        self.failures.append(reason)


def protected_spans(text: str) -> list[str]:
    """Everything in the text that must not be translated, in order.

    That is code blocks, inline code, addresses, LaTeX, HTML, placeholders, link targets, numbers with their units, and
    the markers of emphasis, links and tables. Their order inside a sentence may change in translation.
    """
    found: list[str] = []
    for is_code, region in layout.regions(text):
        found += [region] if is_code else spans.spans_in_order(region)
    return found
