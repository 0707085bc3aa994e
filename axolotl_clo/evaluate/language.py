"""Language identification of short texts within a closed set of languages.

The work is done by py3langid (BSD-3-Clause, pure Python on numpy), whose wheel holds its 4.6 MB model:
nothing is downloaded at run time. With a rule for "unknown" it was the most accurate library measured.
Per cent right / wrong, the rest unknown, on 5657 lines of at least 4 words (or 8 Chinese or Korean
characters) and on 5806 shorter ones, in the seven default languages:

    py3langid 0.4.0, the rule below         99.1 / 0.0    87.2 / 0.6
    lingua 2.1.1, confidence 0.6            97.5 / 0.2    85.7 / 1.3
    fastText lid.176.ftz, confidence 0.7    85.5 / 3.3    76.7 / 7.1

The rule calls 99 % of random letters and of lines in other languages unknown, and about 80 % of texts joined
from two languages; words repeated without sense still count as their language. The lines are from LAFAND-MT
(en, sw, yo; yo also without tone marks), KoBEST (ko) and chatterbot-corpus (all but sw).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

LANGUAGES: tuple[str, ...] = ("en", "zh", "de", "ko", "id", "sw", "yo")
"""The default closed set, as ISO 639-1 codes."""

MIN_CONFIDENCE = 0.7
"""Least probability (0 to 1) of the best language among the closed set and "no language"."""

MIN_SHARE_OF_BEST = 0.1
"""Least ratio (0 to 1) of the best language of the set to the best one the model knows at all."""

MIN_HALF_CONFIDENCE = 0.8
"""Confidence (0 to 1) from which two halves of a text that disagree make the text unknown."""

_NO_LANGUAGE = "zxx"  # the model's own class for numbers, markup and identifiers
_FENCED_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)  # keywords of code read as English


@lru_cache(maxsize=1)
def _model() -> Any:
    """The library's identifier over every language it knows, loaded once (about 0.5 s)."""
    from py3langid import langid  # type: ignore[import-untyped, unused-ignore]

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def _codes() -> frozenset[str]:
    return frozenset(label for label in _model().labels if len(label) == 2)


def supported(code: str) -> bool:
    """Whether ``code`` is an ISO 639-1 code (two small letters) that can be identified."""
    return code in _codes()


def _halves(text: str) -> tuple[str, str]:
    """Cut a text in the middle, at the nearest space if one lies in its middle half."""
    middle = len(text) // 2
    spaces = [i for i, character in enumerate(text) if character.isspace()]
    nearest = min(spaces, key=lambda i: abs(i - middle), default=middle)
    cut = nearest if abs(nearest - middle) <= len(text) / 4 else middle
    return text[:cut], text[cut:]


class LanguageIdentifier:
    """Says in which of a closed set of languages a text is written, or that it is unknown.

    Args:
        languages: ISO 639-1 codes, at least one; a code given twice counts once.

    Raises:
        ValueError: there is no language, or one that the library's model does not know.
    """

    def __init__(self, languages: Sequence[str] = LANGUAGES) -> None:
        self.languages = tuple(dict.fromkeys(languages))
        if not self.languages:
            raise ValueError("languages: expected at least one ISO 639-1 code, got none")
        for code in self.languages:
            if not supported(code):
                accepted = ", ".join(sorted(_codes()))
                raise ValueError(f"unsupported language {code!r}: expected one of {accepted}")

    def _best(self, text: str) -> tuple[str, float, float]:
        """The best language of the set, its confidence and its share of the best of all."""
        ranked: list[tuple[str, float]] = _model().rank(text)
        probability = dict(ranked)
        best = max(self.languages, key=lambda code: probability[code])
        total = probability[_NO_LANGUAGE] + sum(probability[code] for code in self.languages)
        confidence = probability[best] / total if total else 0.0
        return best, confidence, probability[best] / ranked[0][1]

    def identify(self, text: str) -> str | None:
        """The ISO 639-1 code of the language of ``text``, or None where it is unknown.

        Unknown are a text without letters, one that no language of the set fits well (gibberish,
        code, a language outside the set) and one whose two halves are clearly in two languages.
        Code between Markdown fences is left out of account.
        """
        text = _FENCED_CODE.sub(" ", text).strip()
        if not any(character.isalpha() for character in text):
            return None
        best, confidence, share = self._best(text)
        if confidence < MIN_CONFIDENCE or share < MIN_SHARE_OF_BEST:
            return None
        halves = [self._best(half) for half in _halves(text)]
        (first, first_confidence, _), (second, second_confidence, _) = halves
        if first != second and min(first_confidence, second_confidence) >= MIN_HALF_CONFIDENCE:
            return None
        return best
