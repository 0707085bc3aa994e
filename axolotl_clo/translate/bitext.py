"""Rows in two languages laid out text by text, in the form in which texts are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from axolotl_clo.translate.lexicon import Floats, Ints, Words
from axolotl_clo.translate.measures import ends, numbers, plain, prose, size, words

FOLDS = 5

Pair = tuple[list[str], list[str]]
"""The texts of a row (prompt and response, or all turns) in source and in target, equally many."""

_KEPT = (0.3, 0.7)  # shares of its letters that a cut translation keeps

# What is expected of lengths before any is seen, and how many texts that is worth.
_CENTRE, _SPREAD, _TEXTS = float(np.log(1.1)), 0.3, 10
_LEAST_SPREAD = 0.1
_SOFTEN = 10  # characters added to both lengths, so that short texts do not stand out


class Side:
    """The texts of all rows in one language, one after another.

    Attributes:
        texts: as they are compared.
        words: their words.
        sizes: their lengths in characters of an alphabet.
        ends: whether each ends as a sentence does.
        numbers: the numbers in each.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.words = Words([words(text) for text in texts])
        self.sizes = np.array([size(text) for text in texts], dtype=np.float64)
        self.ends = np.array([ends(text) for text in texts], dtype=np.bool_)
        self.numbers = [numbers(text) for text in texts]

    def take(self, places: Ints) -> Side:
        taken = Side(())
        taken.texts = [self.texts[i] for i in places]
        taken.words = Words([self.words.lists[i] for i in places])
        taken.sizes, taken.ends = self.sizes[places], self.ends[places]
        taken.numbers = [self.numbers[i] for i in places]
        return taken


@dataclass(frozen=True)
class Bitext:
    """Rows in source and target.

    Attributes:
        starts: where the texts of each row start, and at last their number.
        fold: the fold of each row, by its source alone.
        source: the texts.
        target: their translations.
    """

    starts: Ints
    fold: Ints
    source: Side
    target: Side

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Bitext:
        source, target = ([plain(prose(text)) for pair in pairs for text in pair[side]] for side in (0, 1))
        starts = np.cumsum([0, *(len(texts) for texts, _ in pairs)])
        fold = np.array([checksum(texts) % FOLDS for texts, _ in pairs], dtype=np.int64)
        return cls(starts, fold, Side(source), Side(target))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def owner(self) -> Ints:
        """The row of each text."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def per_row(self, values: Floats | Ints) -> Floats:
        """Sums over the texts of each row."""
        return np.bincount(self.owner, values, minlength=len(self)).astype(np.float64)

    def take(self, rows: Ints, targets: Ints | None = None) -> Bitext:
        """Some of the rows, with the translations of others that have as many texts."""
        starts = np.concatenate(([0], np.cumsum(np.diff(self.starts)[rows])))
        source, target = (self._places(chosen, starts) for chosen in (rows, rows if targets is None else targets))
        return Bitext(starts, self.fold[rows], self.source.take(source), self.target.take(target))

    def _places(self, rows: Ints, starts: Ints) -> Ints:
        return np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], np.diff(starts))

    def mixed(self, random: np.random.Generator) -> Bitext:
        """Rows with the translations of other rows of the same fold that have as many texts."""
        texts = np.diff(self.starts)
        kinds = self.fold * (texts.max(initial=0) + 1) + texts
        rows = [random.permutation(np.flatnonzero(kinds == kind)) for kind in np.unique(kinds)]
        rows = [np.zeros(0, dtype=np.int64), *(group for group in rows if len(group) > 1)]
        return self.take(np.concatenate(rows), np.concatenate([np.roll(group, 1) for group in rows]))

    def cut(self, random: np.random.Generator) -> Bitext:
        """The same rows with translations that break off."""
        shares = random.uniform(*_KEPT, size=len(self.target.texts))  # nosec B311 # no secret: reproducible draws
        pieces = [text[: int(len(text) * share)] for text, share in zip(self.target.texts, shares, strict=True)]
        return replace(self, target=Side(pieces))


@dataclass(frozen=True)
class Lengths:
    """Usual length of a translation by that of its source (Gale and Church 1993), as log ratio: centre and spread."""

    centre: float
    spread: float

    @classmethod
    def fit(cls, source: Floats, target: Floats) -> Lengths:
        ratios = _log_ratio(source, target)
        weight = len(ratios) / (len(ratios) + _TEXTS)
        median = float(np.median(ratios)) if len(ratios) else 0.0
        usual = 1.4826 * float(np.median(abs(ratios - median))) if len(ratios) else 0.0
        centre = weight * median + (1 - weight) * _CENTRE
        spread = float(np.sqrt(weight * usual**2 + (1 - weight) * _SPREAD**2))
        return cls(centre, max(spread, _LEAST_SPREAD))

    def deviation(self, source: Floats, target: Floats) -> Floats:
        """How far translations are from the usual length, in spreads; negative where they are short."""
        return (_log_ratio(source, target) - self.centre) / self.spread


def _log_ratio(source: Floats, target: Floats) -> Floats:
    return np.log((target + _SOFTEN) / (source + _SOFTEN))


def checksum(texts: Sequence[str]) -> int:
    return crc32("\n".join(texts).encode("utf-8", errors="surrogatepass"))
