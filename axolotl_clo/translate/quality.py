"""What tells a bad translation of a row from a good one, and which rows are dropped for it.

`Scorer` measures each row by itself, `Corpus` against the other rows, and `reason` compares both with thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import log
from typing import Any

from axolotl_clo.evaluate.language import LANGUAGES, LanguageIdentifier, supported
from axolotl_clo.translate import measures
from axolotl_clo.translate.bitext import Pair
from axolotl_clo.translate.corpus import Corpus

__all__ = ["Corpus", "Pair", "Scorer", "Thresholds", "reason", "round_trip_chrf"]

_IDENTIFY = 1000  # characters that tell the language
_IDENTIFY_FROM = 24  # bytes of UTF-8: four or five words, or eight ideograms
_LENGTH = {"zh": 0.3, "yue": 0.3, "wuu": 0.3, "ja": 0.45, "ko": 0.5}  # of texts, where an alphabet's is about 1
_SOFTEN = 10  # characters added to both lengths, so that short texts do not stand out


@dataclass(frozen=True)
class Thresholds:
    """What a row must not go beyond; None switches a check off.

    The defaults are fitted to the dev sets of LAFAND-MT in Swahili and Yoruba together.

    Attributes:
        check_language: drop a row one of whose sides is surely in another language. Unknown is no reason.
        max_untranslated: share of a translation's ordinary words (0 to 1) that are copied from the source in runs.
        max_repetition: share of n-grams (0 to 1) that a translation repeats beyond what the source does.
        max_loop: words, or characters of scripts without spaces, that say the same over and over beyond the source.
        min_length_ratio: characters of a translation by those of its source. Off, as it depends on the languages.
        max_length_ratio: likewise.
        max_length_deviation: distance from the usual length ratio, in spreads of its logarithm.
        min_completeness: log-odds that a translation is whole rather than cut off.
        min_alignment: log-odds that the sides belong together rather than come from two rows.
        max_numbers_missing: share of the source's numbers (0 to 1) that its translation lacks. Off, as many languages
            write numbers in words.
        min_round_trip_chrf: chrF (0 to 100) of the translation back; only where a round trip is asked for.
    """

    check_language: bool = True
    max_untranslated: float | None = 0.4
    max_repetition: float | None = 0.3
    max_loop: int | None = 20
    min_length_ratio: float | None = None
    max_length_ratio: float | None = None
    max_length_deviation: float | None = 8.0
    min_completeness: float | None = -2.0
    min_alignment: float | None = -1.25
    max_numbers_missing: float | None = None
    min_round_trip_chrf: float | None = 20.0


def no_checks() -> dict[str, bool | None]:
    """Values of the fields of `Thresholds` that drop nothing."""
    return {field.name: False if field.name == "check_language" else None for field in fields(Thresholds)}


class Scorer:
    """Scores of rows by themselves.

    Args:
        source: language key of the source.
        target: language key of the target.
    """

    def __init__(self, source: str, target: str) -> None:
        self._codes = (_primary(source), _primary(target))
        self._spaced = tuple(code not in measures.UNSPACED for code in self._codes)
        self._usual_ratio = _LENGTH.get(self._codes[1], 1.0) / _LENGTH.get(self._codes[0], 1.0)
        self._identified = tuple(supported(code) for code in self._codes)
        known = [code for code, is_known in zip(self._codes, self._identified, strict=True) if is_known]
        # Further languages could be mistaken for one that was not measured together with them, as Indonesian for Malay.
        further = LANGUAGES if set(known) <= set(LANGUAGES) else ()
        self._identifier = LanguageIdentifier([*known, *further]) if known else None

    def describe(self) -> dict[str, Any]:
        """Whether the language of each side can be identified: there is no check of one that cannot."""
        return {"identified": dict(zip(self._codes, self._identified, strict=True))}

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """For each row, the keys

        - `source_language`, `target_language`: a language other than the expected one where a text is surely in one;
          else the expected one where a text is in it; else None, also for a language that cannot be identified,
        - `wrong_language`: what is wrong with them, such as `target is en, not ko`, or None,
        - `empty_texts`: texts without a translation,
        - `length_ratio`: characters of the translation by those of its source, of the text where it is most unusual,
        - `untranslated`: share of the translation's ordinary words (0 to 1) that are copied from the source in runs,
        - `repetition`: share of the translation's n-grams (0 to 1) that are repeated, less that of the source,
        - `loop`: words, or characters in scripts without spaces, of the longest passage that only says again what
          stands right before it, less that of the source,
        - `numbers_missing`: share of the source's numbers (0 to 1) that the translation lacks, None if it has none,
        - `cut_off`: texts whose source ends as a sentence does while the translation does not,
        - `round_trip_chrf`: None, for `round_trip_chrf` to fill in.

        Code, addresses, handles and tags are left out of account. Where texts of a row differ, the worst counts.
        """
        sides = [[[measures.prose(text) for text in pair[side]] for pair in pairs] for side in (0, 1)]
        languages = [self._languages(side, rows) for side, rows in enumerate(sides)]
        return [
            {
                "source_language": spoken[0],
                "target_language": spoken[1],
                "wrong_language": self._wrong(spoken),
                "empty_texts": sum(
                    bool(before.strip()) and not after.strip() for before, after in zip(*pair, strict=True)
                ),
                **self._row(*texts),
            }
            for pair, spoken, texts in zip(pairs, zip(*languages, strict=True), zip(*sides, strict=True), strict=True)
        ]

    def _wrong(self, languages: tuple[str | None, ...]) -> str | None:
        found = zip(("source", "target"), languages, self._codes, strict=True)
        wrong = [f"{side} is {language}, not {code}" for side, language, code in found if language not in (None, code)]
        return ", ".join(wrong) or None

    def _languages(self, side: int, rows: list[list[str]]) -> list[str | None]:
        """The language of each row on one side."""
        if self._identifier is None or not self._identified[side]:
            return [None] * len(rows)
        long = [(i, text[:_IDENTIFY]) for i, texts in enumerate(rows) for text in texts if _is_long(text)]
        found: list[set[str | None]] = [set() for _ in rows]
        for (i, _), language in zip(long, self._identifier.identify_many([text for _, text in long]), strict=True):
            found[i].add(language)
        expected = self._codes[side]
        return [
            min(filter(None, languages - {expected}), default=expected if expected in languages else None)
            for languages in found
        ]

    def _row(self, source: list[str], target: list[str]) -> dict[str, Any]:
        texts = list(zip(source, target, strict=True))
        numbers = set().union(*map(measures.numbers, source))
        loops = [self._repeats(*text) for text in texts]
        return {
            "length_ratio": self._length_ratio(texts),
            "untranslated": self._untranslated(texts),
            "repetition": round(max((share for share, _ in loops), default=0.0), 3),
            "loop": max((loop for _, loop in loops), default=0),
            "numbers_missing": _share(numbers - set().union(*map(measures.numbers, target)), numbers),
            "cut_off": sum(measures.ends(before) and not measures.ends(after) for before, after in texts),
            "round_trip_chrf": None,
        }

    def _untranslated(self, texts: list[tuple[str, str]]) -> float:
        # A short text that stays as it is may be a command or a label; a whole row of them was not translated.
        if all(before == after for before, after in texts) and any(measures.is_copy(*text) for text in texts):
            return 1.0
        return round(max((measures.copied_share(*text, self._spaced[0]) for text in texts), default=0.0), 3)

    def _length_ratio(self, texts: list[tuple[str, str]]) -> float | None:
        def unusual(text: tuple[str, str]) -> float:
            return abs(log((len(text[1]) + _SOFTEN) / (len(text[0]) * self._usual_ratio + _SOFTEN)))

        source, target = max((text for text in texts if text[0]), key=unusual, default=("", ""))
        return round(len(target) / len(source), 3) if source else None

    def _repeats(self, source: str, target: str) -> tuple[float, int]:
        """How much more a translation repeats itself than its source: share of n-grams, and length of a loop."""
        said = measures.tokens(target, self._spaced[1])
        share = measures.repeated_share(said)
        if not share:
            return 0.0, 0
        before = measures.tokens(source, self._spaced[0])
        loop = measures.loop_length(said) - measures.loop_length(before)
        return max(share - measures.repeated_share(before), 0.0), max(loop, 0)


def reason(scores: dict[str, Any], thresholds: Thresholds) -> tuple[str, str] | None:
    """Why a row is dropped: a short key to count by, and the figures; None keeps it.

    Scores that are missing or None drop nothing, so that a row can be judged before there is a `Corpus`.
    """
    if scores.get("empty_texts"):
        return "empty", f"{scores['empty_texts']} without a translation"
    if thresholds.check_language and scores.get("wrong_language"):
        return "language", scores["wrong_language"]
    for name, score, sign, threshold in _CHECKS:
        value, limit = scores.get(score), getattr(thresholds, threshold)
        if value is None or limit is None:
            continue
        if value < limit if sign == "<" else abs(value) > limit:
            return name, f"{score.replace('_', ' ')} {value:g} {sign} {limit:g}"
    return None


# Name of the reason, score, what is wrong if it stands between score and threshold, threshold.
_CHECKS = (
    ("untranslated", "untranslated", ">", "max_untranslated"),
    ("repetition", "repetition", ">", "max_repetition"),
    ("repetition", "loop", ">", "max_loop"),
    ("length", "length_ratio", "<", "min_length_ratio"),
    ("length", "length_ratio", ">", "max_length_ratio"),
    ("length", "length_deviation", ">", "max_length_deviation"),
    ("cut off", "completeness", "<", "min_completeness"),
    ("alignment", "alignment", "<", "min_alignment"),
    ("numbers", "numbers_missing", ">", "max_numbers_missing"),
    ("round trip", "round_trip_chrf", "<", "min_round_trip_chrf"),
)


def round_trip_chrf(originals: list[str], back: list[str]) -> float:
    """chrF (0 to 100, Popović 2015) of the texts of a row with what came back from their translations.

    The n-grams of all texts are counted together, so that a long text weighs more than a short one.
    """
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(back, [originals]).score)


def _primary(key: str) -> str:
    """The language of a key without its script."""
    return key.partition("-")[0]


def _is_long(text: str) -> bool:
    return len(text) >= _IDENTIFY_FROM or len(text.encode(errors="surrogatepass")) >= _IDENTIFY_FROM


def _share(part: set[int], whole: set[int]) -> float | None:
    return round(len(part) / len(whole), 3) if whole else None
