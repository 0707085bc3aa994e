"""What only the whole set of rows can tell: usual lengths, which words stand for each other, how translations end.

Two questions are put to each row: do the two sides belong together rather than come from two rows, and is the
translation whole rather than cut? Both are answered by logistic regression on a few figures. It learns from the rows
themselves against rows made from them: sources with the translation of another row, and translations cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped, unused-ignore]
from scipy.special import expit  # type: ignore[import-untyped, unused-ignore]
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped, unused-ignore]

from axolotl_clo.translate.bitext import FOLDS, Bitext, Lengths, Pair, checksum
from axolotl_clo.translate.lexicon import Floats, Lexicon, Words
from axolotl_clo.translate.measures import STEM

MIN_ROWS = 500
"""Rows from which on the lexicon, and with it the alignment score, has a basis."""

MAX_ROWS = 3000
"""Rows that are learned from."""

_WORD_PAIRS = 3_000_000  # that the lexicon learns from: about 3 s and 400 MB
_LONGEST = 64  # words of a text that the lexicon learns from
_FEWEST_WORDS = 3  # of a side that can be aligned
_MIN_SEPARATION = 0.75  # AUC below which the lexicon says nothing
_ROUNDS = 3
_UNLIKE, _CUT = -0.5, 0.0  # log-odds below which a row has no part in the next round

# What is expected before any is seen, fitted to LAFAND-MT's dev sets; in the order of `_of_texts`.
_COMPLETENESS = np.array([4.5, 1.2, -6.0, 0.0, -4.0, 0.0, 0.0])
_RIDGE = 1.0
_EM_ROUNDS = 50
_MOST_BAD = 0.5  # share of the rows


class Corpus:
    """Scores of rows that need other rows to compare with; made by `fit`.

    The same rows in any order give the same scores.
    """

    def __init__(self, rows: int, lengths: Lengths, lexica: tuple[Lexicon, Lexicon] | None) -> None:
        self._rows, self._lengths, self._lexica = rows, lengths, lexica
        self._alignment: Floats | None = None
        self._completeness: Floats = _COMPLETENESS
        self._separation: float | None = None

    @classmethod
    def fit(cls, pairs: Sequence[Pair], scores: Sequence[dict[str, Any]]) -> Corpus:
        """Learn from rows, most of which should be good; a sample of a few thousand is enough.

        Args:
            pairs: the texts of each row in source and target.
            scores: what `Scorer` found for them; rows in another language or left untranslated are not learned from.
        """
        usual = [pairs[i] for i in _usual(scores) if pairs[i][0]]
        rows = Bitext.of(sorted(usual, key=lambda pair: (checksum(pair[0]), *pair))[:MAX_ROWS])
        if not len(rows):
            return cls(0, Lengths.fit(rows.source.sizes, rows.target.sizes), None)
        aligned = whole = np.ones(len(rows), dtype=np.bool_)
        for _ in range(_ROUNDS):
            corpus = cls._learn(rows, aligned, whole)
            alignment, completeness = corpus._log_odds(rows)
            whole = completeness > _CUT
            aligned = np.ones_like(whole) if alignment is None else alignment > _UNLIKE
            if (aligned & whole).mean() < 1 - _MOST_BAD:
                break
        return corpus

    @classmethod
    def _learn(cls, rows: Bitext, aligned: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Corpus:
        """Learn from rows of which those that are not aligned or whole are known."""
        random = np.random.default_rng(0)
        good, paired = rows.take(np.flatnonzero(aligned & whole)), rows.take(np.flatnonzero(aligned))
        lengths = Lengths.fit(good.source.sizes, good.target.sizes)
        corpus = cls(len(good), lengths, _lexica(good) if len(rows) >= MIN_ROWS else None)
        if len(paired):
            corpus._completeness = _regression(
                corpus._figures(paired)[1], corpus._figures(paired.cut(random))[1], _COMPLETENESS
            )
        mixed_rows = rows.mixed(random)
        if corpus._lexica and len(mixed_rows) >= MIN_ROWS / 2:
            of_rows, mixed = corpus._figures(rows)[0], corpus._figures(mixed_rows)[0]
            weights = _regression(of_rows, mixed, np.zeros(of_rows.shape[1]))
            ranks = mannwhitneyu(of_rows @ weights, mixed @ weights)
            corpus._separation = float(ranks.statistic / len(of_rows) / len(mixed))
            corpus._alignment = weights if corpus._separation >= _MIN_SEPARATION else None
        return corpus

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """For each row, the keys

        - `length_deviation`: how far the text with the most unusual length is from the usual, in spreads of the log
          ratio; negative where it is short,
        - `completeness`: log-odds that its translations are whole rather than cut off, the worst of its texts,
        - `alignment`: log-odds that the sides belong together rather than come from two rows; None for fewer than
          `MIN_ROWS` rows, for a row with hardly a word, or where these rows cannot be told from mixed ones.
        """
        rows = Bitext.of(pairs)
        deviations = self._lengths.deviation(rows.source.sizes, rows.target.sizes)
        alignment, completeness = self._log_odds(rows)
        fewest = np.minimum(*(rows.per_row(side.words.counts) for side in (rows.source, rows.target)))
        return [
            {
                "length_deviation": round(float(max(deviations[start:stop], key=abs)), 2) if stop > start else None,
                "completeness": round(float(completeness[i]), 2) if stop > start else None,
                "alignment": round(float(alignment[i]), 2)
                if alignment is not None and fewest[i] >= _FEWEST_WORDS
                else None,
            }
            for i, (start, stop) in enumerate(zip(rows.starts[:-1], rows.starts[1:], strict=True))
        ]

    def describe(self) -> dict[str, Any]:
        """What was learned and from how much, as JSON types."""
        if self._lexica is None:
            alignment = f"off: fewer than {MIN_ROWS} rows to learn from"
        elif self._alignment is None:
            alignment = "off: rows cannot be told from mixed ones"
        else:
            alignment = "on"
        return {
            "rows_learned_from": self._rows,
            "usual_length_ratio": round(float(np.exp(self._lengths.centre)), 3),
            "length_spread": round(self._lengths.spread, 3),
            "alignment": alignment,
            "alignment_auc": None if self._separation is None else round(self._separation, 3),
        }

    def _log_odds(self, rows: Bitext) -> tuple[Floats | None, Floats]:
        """Of each row: log-odds that its sides belong together, and that its translations are whole."""
        of_rows, of_texts = self._figures(rows)
        whole = np.full(len(rows), np.inf)
        np.minimum.at(whole, rows.owner, of_texts @ self._completeness)
        return None if self._alignment is None else of_rows @ self._alignment, whole

    def _figures(self, rows: Bitext) -> tuple[Floats, Floats]:
        """What the two regressions see: `[rows, figures]` and `[texts, figures]`."""
        source, target = rows.source.words, rows.target.words
        forward, backward = np.zeros(len(target.owner)), np.zeros(len(source.owner))
        if self._lexica:
            fold = rows.fold[rows.owner]
            forward = self._lexica[0].gains(source, target, fold)
            backward = self._lexica[1].gains(target, source, fold)
        return self._of_rows(rows, forward, backward), self._of_texts(rows, backward)

    def _of_rows(self, rows: Bitext, forward: Floats, backward: Floats) -> Floats:
        source, target = rows.source, rows.target
        of_source, of_target = rows.per_row(source.words.counts), rows.per_row(target.words.counts)
        gain = rows.per_row(np.bincount(target.words.owner, forward, minlength=len(rows.owner)))
        gain_back = rows.per_row(np.bincount(source.words.owner, backward, minlength=len(rows.owner)))
        differ = np.array([len(own ^ other) for own, other in zip(source.numbers, target.numbers, strict=True)])
        z = self._lengths.deviation(rows.per_row(source.sizes), rows.per_row(target.sizes)).clip(-6, 6)
        return np.column_stack(
            [
                np.ones(len(rows)),
                gain / np.sqrt(of_target + 1),
                gain_back / np.sqrt(of_source + 1),
                np.sqrt(of_source + of_target),
                abs(z),
                z**2,
                np.minimum(rows.per_row(differ), 3),
            ]
        )

    def _of_texts(self, rows: Bitext, backward: Floats) -> Floats:
        source, target = rows.source, rows.target
        counts, owner = source.words.counts, source.words.owner
        position = (np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner] + 0.5) / counts[owner]
        late = backward * (2 * position - 1)  # of a cut translation, the end of the source has no counterpart
        return np.column_stack(
            [
                np.ones(len(counts)),
                self._lengths.deviation(source.sizes, target.sizes).clip(-4, 3),
                source.ends & ~target.ends,
                ~source.ends & target.ends,
                ~source.ends & ~target.ends,
                np.bincount(owner, backward, minlength=len(counts)) / np.sqrt(counts + 1),
                np.bincount(owner, late, minlength=len(counts)) / np.sqrt(counts + 1),
            ]
        )


def _usual(scores: Sequence[dict[str, Any]]) -> list[int]:
    """The rows that are in the languages of most and are not copies of their source."""
    usual = [Counter(filter(None, (row[side] for row in scores))).most_common(1) for side in _LANGUAGES]
    expected = [{None, *(language for language, _ in found)} for found in usual]
    return [
        i
        for i, row in enumerate(scores)
        if all(row[side] in known for side, known in zip(_LANGUAGES, expected, strict=True))
        and row["untranslated"] < _COPIED
        and not row["empty_texts"]
    ]


_LANGUAGES = ("source_language", "target_language")
_COPIED = 0.5


def _lexica(rows: Bitext) -> tuple[Lexicon, Lexicon] | None:
    """Both directions, from as many of the texts as `_WORD_PAIRS` allows."""
    source, target = (Words([text[:_LONGEST] for text in side.words.lists]) for side in (rows.source, rows.target))
    within = int(np.searchsorted(np.cumsum(source.counts * target.counts), _WORD_PAIRS, side="right"))
    fold = rows.fold[rows.owner][:within]
    source, target = Words(source.lists[:within]), Words(target.lists[:within])
    return Lexicon(source, target, fold, FOLDS, STEM), Lexicon(target, source, fold, FOLDS, STEM)


def _regression(rows: Floats, bad: Floats, prior: Floats) -> Floats:
    """Weights that give the log-odds of being good rather than like ``bad``, by logistic regression drawn to ``prior``.

    Some of the rows are bad themselves. How many, and which, is estimated along with the weights (expectation
    maximisation, as for learning from positive and unlabelled examples), so that the log-odds do not depend on it.
    """
    figures = np.concatenate([rows, bad])
    weights, share = prior, _MOST_BAD
    labels = np.zeros(len(figures))

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores, off = figures @ weights, weights - prior
        value = np.logaddexp(0, scores).sum() - labels @ scores + _RIDGE / 2 * off @ off
        return float(value), figures.T @ (expit(scores) - labels) + _RIDGE * off

    for _ in range(_EM_ROUNDS):
        labels[: len(rows)] = expit(rows @ weights + np.log((1 - share) / share))
        weights = np.asarray(minimize(loss, weights, jac=True, method="BFGS").x)
        weights[0] -= np.log(labels.sum() / (1 - labels).sum())  # as if good and bad were equally many
        before, share = share, float(np.clip(1 - labels[: len(rows)].mean(), 0.001, _MOST_BAD))
        if abs(share - before) < 1e-4 and share < _MOST_BAD:
            break
    return weights
