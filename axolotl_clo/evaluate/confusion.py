"""Line-level and word-level pass rates of the Language Confusion Benchmark (Marchisio et al. 2024, arXiv 2406.20052).

An answer passes at line level if every line of it is in the language it was asked in, and at word level if no line
of it holds an English word. The two are shares of different answers:

    LPR  = |answers without a wrong line| / |answers that are not skipped|
    WPR  = |answers without a wrong line or an English word| / |answers without a wrong line|
    LCPR = 2 · LPR · WPR / (LPR + WPR)

as in the paper and in its code (github.com/for-ai/language-confusion, `compute_metrics.py`), which settles the
details:

* Before anything else an answer is cut at a line that begins with `Q:`, where a base model goes on with a question
  of its own; ASCII punctuation and the Arabic comma are removed, and an em dash becomes a space.
* Lines of under five tokens are left out, and an answer without any other line is skipped. Tokens are what lies between
  spaces; Chinese is segmented by jieba.
* A line is wrong if it is identified as another language, or as none with enough confidence.
* An English word is a token of four letters or more that stands in a word list in lower case.
* WPR and LCPR exist only for languages not written in Latin letters: in the others an English word may be one of
  their own.

Two things differ. The identifier is the one this package uses throughout (`evaluate.language`: a closed set, with
floors of confidence of its own) instead of fastText's lid.176 with a floor of 0.3; and a rate of no answers at all is
0, where the benchmark's code gives 1. A model that says nothing is thus not perfect; still, LPR says nothing of the
answers it skipped, so their number stands beside it.

The word list is `web2`, the words of Webster's Second International of 1934, whose copyright has lapsed, as FreeBSD
ships them; it comes with the package english-words (MIT). It has few inflected and no recent words. jieba (MIT) is the
segmenter that the benchmark uses.
"""

from __future__ import annotations

import re
import string
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, NamedTuple

from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier

MIN_TOKENS = 5
"""Tokens from which a line is looked at."""

MIN_LETTERS = 4
"""Letters from which a token can be an English word."""

_NORMAL = str.maketrans({**dict.fromkeys(string.punctuation + "،", ""), "—": " "})
_SMALL_LETTERS = re.compile(rf"[a-z]{{{MIN_LETTERS}}}")
# jieba makes at least one token of each.
_CHINESE_PIECE = re.compile(r"[\u4e00-\u9fd5a-zA-Z0-9+#&._%-]+|\S")
_CHINESE = frozenset({"Hans", "Hant"})
_WITHOUT_SPACES = frozenset({"Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt"})  # and no segmenter here


class AnswerScore(NamedTuple):
    """What was found in one answer."""

    language: str | None
    """ISO 639-1 code of the answer as a whole, None where it is unknown; code between fences is left out of account."""
    lines: int
    """Lines of at least `MIN_TOKENS` tokens; an answer without any is skipped."""
    wrong_lines: int
    """How many of them are not in the language asked for."""
    english_word: bool
    """Whether one of them holds an English word; looked for only where no line is wrong and the script is not Latin."""

    @property
    def skipped(self) -> bool:
        return self.lines == 0

    @property
    def line_pass(self) -> bool | None:
        """Whether the answer passes at line level; None where it is skipped."""
        return None if self.skipped else self.wrong_lines == 0

    @property
    def word_pass(self) -> bool | None:
        """Whether the answer passes at word level; None where it does not pass at line level."""
        return not self.english_word if self.line_pass else None


class PassRates(NamedTuple):
    """The rates of several answers, 0 to 1; a rate of no answers is 0."""

    line: float
    """LPR, of the answers that are not skipped."""
    word: float | None
    """WPR, of the answers that pass at line level; None for a language in Latin letters."""
    both: float | None
    """LCPR, their harmonic mean; None for a language in Latin letters."""
    skipped: int
    """Answers that no rate speaks of."""
    answers: int


class LanguageConfusion:
    """Scores answers that should be in one language.

    Args:
        language: ISO 639-1 code of the language asked for.
        languages: the closed set to identify in; `language` joins it.

    Raises:
        ValueError: a language is not one that can be identified, or `language` is written without spaces and is not
            Chinese, so that its tokens cannot be counted.
    """

    def __init__(self, language: str, languages: Sequence[str] = LANGUAGES) -> None:
        self.language = language
        self._identifier = LanguageIdentifier((*languages, language))
        script = _script(language)
        if script in _WITHOUT_SPACES:
            raise ValueError(f"pass rates need words, and {language!r} is written without spaces between them")
        self.has_word_rate = has_word_rate(language)
        """Whether English words are looked for."""
        self._is_chinese = script in _CHINESE
        self._tokens: Callable[[str], Iterable[str]] = _segment if self._is_chinese else str.split

    def score(self, answers: Sequence[str]) -> list[AnswerScore]:
        """Score each answer; all of them and all their lines are identified together, which is what makes it fast."""
        lines = [self._long_lines(answer) for answer in answers]
        languages = self._identifier.identify_many([*answers, *(line for of_answer in lines for line in of_answer)])
        starts = list(accumulate(map(len, lines), initial=len(answers)))
        scores = []
        for language, of_answer, start in zip(languages, lines, starts, strict=False):
            wrong = sum(found != self.language for found in languages[start : start + len(of_answer)])
            english = self.has_word_rate and not wrong and any(map(self._holds_english, of_answer))
            scores.append(AnswerScore(language, len(of_answer), wrong, english))
        return scores

    def rates(self, scores: Sequence[AnswerScore]) -> PassRates:
        """The pass rates of scored answers."""
        return pass_rates(
            [score.line_pass for score in scores],
            [score.word_pass for score in scores] if self.has_word_rate else None,
        )

    def lines(self, answers: Sequence[str]) -> list[str]:
        """The lines that the rates look at, of all answers one after another, as they are identified."""
        return [line for answer in answers for line in self._long_lines(answer)]

    def _long_lines(self, answer: str) -> list[str]:
        normal = answer.split("\nQ:")[0].strip().translate(_NORMAL)
        return [line for line in normal.split("\n") if self._is_long(line)]

    def _is_long(self, line: str) -> bool:
        if self._is_chinese and sum(1 for _ in islice(_CHINESE_PIECE.finditer(line), MIN_TOKENS)) == MIN_TOKENS:
            return True
        # Of a line no more is segmented than it takes to know.
        return sum(1 for _ in islice(self._tokens(line), MIN_TOKENS)) == MIN_TOKENS

    def _holds_english(self, line: str) -> bool:
        return bool(_SMALL_LETTERS.search(line)) and any(
            token.strip() in english_words() for token in self._tokens(line)
        )


def pass_rates(line_passes: Sequence[float | None], word_passes: Sequence[float | None] | None = None) -> PassRates:
    """LPR, WPR and LCPR of answers that each pass (1, True), do not pass (0, False), or do not count (None).

    Args:
        line_passes: of each answer, as `AnswerScore.line_pass`.
        word_passes: of each answer, as `AnswerScore.word_pass`; None where the language has no such rate.
    """
    line = _share(line_passes)
    skipped = sum(passed is None for passed in line_passes)
    if word_passes is None:
        return PassRates(line, None, None, skipped, len(line_passes))
    word = _share(word_passes)
    both = 2 * line * word / (line + word) if line + word else 0.0
    return PassRates(line, word, both, skipped, len(line_passes))


def _share(passes: Sequence[float | None]) -> float:
    counted = [passed for passed in passes if passed is not None]
    return sum(counted) / len(counted) if counted else 0.0


@lru_cache
def has_word_rate(language: str) -> bool:
    """Whether WPR and LCPR exist for a language: it is not written in Latin letters."""
    return _script(language) != "Latn"


def _script(language: str) -> str:
    """The ISO 15924 code of the script a language is mostly written in."""
    from langcodes import Language

    return Language.get(language).maximize().script or ""


@lru_cache(maxsize=1)
def english_words() -> frozenset[str]:
    """The words of the list `web2` that are written small and have four letters or more, 209,479 in all."""
    from english_words import get_english_words_set

    return frozenset(word for word in get_english_words_set(["web2"]) if word.islower() and len(word) >= MIN_LETTERS)


def _segment(line: str) -> Iterable[str]:
    return _segmenter().cut(line)


@lru_cache(maxsize=1)
def _segmenter() -> Any:
    """jieba with its dictionary loaded (about 2 s), without the cache file it would leave in the temporary folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba is older than some of what Python now warns of
        import jieba

    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter
