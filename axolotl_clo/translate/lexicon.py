"""Which words of two languages stand for each other, learned from the pairs of texts that are to be judged.

The model is IBM Model 1 (Brown et al. 1993, "The Mathematics of Statistical Machine Translation"): each word of a
target comes from one word of its source or from none, with probability t(f|e), learned by expectation maximisation.
A pair would speak for itself if it had a part in the table that judges it. So the pairs are divided into folds, with
a table for each that has not seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped, unused-ignore]

_ROUNDS = 5  # of expectation maximisation
_UNSEEN = 1.0  # count of a source word that is kept for target words it was not seen with
_LEAST_UNSEEN = 0.01  # share of them at least
_COPY = 0.3  # probability that a word of the source stands in the target as it is
_MOST = 6.0  # nats that one word can add

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Words:
    """The words of some texts, one after another.

    Attributes:
        lists: the words of each text.
        counts: how many they are.
        owner: the text each word stands in.
    """

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        self.lists = lists
        self.counts: Ints = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        self.owner: Ints = np.repeat(np.arange(len(lists)), self.counts)

    def ids(self, vocabulary: dict[str, int], stem: int) -> Ints:
        """The place of each word's stem in a vocabulary, -1 where it is not there."""
        found = (vocabulary.get(word[:stem], -1) for word in chain.from_iterable(self.lists))
        return np.fromiter(found, dtype=np.int64, count=len(self.owner))

    def in_texts(self, other: Words) -> NDArray[np.bool_]:
        """Whether each word also stands in the other's text of the same place."""
        found = (word in theirs for own, theirs in zip(self.lists, map(set, other.lists), strict=True) for word in own)
        return np.fromiter(found, dtype=np.bool_, count=len(self.owner))


class Lexicon:
    """Translation tables from one language into the other, one for each fold.

    Args:
        source: texts to learn from.
        target: their translations.
        fold: which of the folds each pair belongs to.
        folds: how many there are.
        stem: letters of a word that count.
    """

    def __init__(self, source: Words, target: Words, fold: Ints, folds: int, stem: int) -> None:
        self._stem = stem
        self._sources, self._targets = _vocabulary(source, stem), _vocabulary(target, stem)
        rows, columns = len(self._sources) + 1, len(self._targets)  # the last row is "from no word"
        e = _distinct(source.owner, source.ids(self._sources, stem), len(source.counts), rows, always=rows - 1)
        f = _distinct(target.owner, target.ids(self._targets, stem), len(target.counts), columns)
        tables, seen = [], []
        for k in range(folds):
            learn = fold != k
            seen.append(np.bincount(f[learn].indices, minlength=columns))
            tables.append(_model_1(e[learn], f[learn]))
        self._seen = np.array(seen)
        self._usual = (self._seen + 0.5) / (self._seen.sum(axis=1, keepdims=True) + 0.5 * columns)
        lifts, backoffs = zip(
            *(_lift(table, usual) for table, usual in zip(tables, self._usual, strict=True)), strict=True
        )
        self._lift = sparse.vstack(lifts, format="csr")
        self._backoff = np.concatenate(backoffs)

    def __len__(self) -> int:
        """Word pairs that are held, over all folds."""
        return int(self._lift.nnz)

    def gains(self, source: Words, target: Words, fold: Ints) -> Floats:
        """How much more likely each word of the targets is for its source, in nats.

        That is log p(f|S) / p(f), where p(f|S) is the mean over the words e of the source, and "none", of t(f|e), and
        p(f) is how usual the word is. 0 for a word never seen, unless the source has it too.
        """
        rows = len(self._sources) + 1
        found = source.ids(self._sources, self._stem)
        known = _distinct(
            source.owner, np.where(found >= 0, found + rows * fold[source.owner], -1), len(fold), len(self._backoff)
        )
        words = np.array([len(set(text)) for text in source.lists])
        unknown = words - np.diff(known.indptr)
        backoff = (known @ self._backoff + unknown + 1) / (words + 1)

        ids = target.ids(self._targets, self._stem)
        of = fold[target.owner]
        seen = (ids >= 0) & (self._seen[of, ids] > 0)
        lift = np.zeros(len(ids))
        lift[seen] = np.asarray((known @ self._lift)[target.owner[seen], ids[seen]]).ravel()
        usual = np.where(seen, self._usual[of, ids], self._usual.min(axis=1)[of])
        copied = target.in_texts(source) * _COPY / usual
        ratio = backoff[target.owner] + (lift + copied) / (words + 1)[target.owner]
        return np.where(seen | (copied > 0), np.minimum(np.log(ratio), _MOST), 0.0)


def _vocabulary(words: Words, stem: int) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(word[:stem] for word in chain.from_iterable(words.lists)))}


def _distinct(owner: Ints, ids: Ints, texts: int, columns: int, always: int | None = None) -> sparse.csr_array:
    """One where a text (row) has a word (column); ``always`` is a word that all have."""
    keys = (owner * columns + ids)[ids >= 0]
    if always is not None:
        keys = np.concatenate([keys, np.arange(texts) * columns + always])
    row, column = np.divmod(np.unique(keys), columns)
    starts = np.searchsorted(row, np.arange(texts + 1))
    return sparse.csr_array((np.ones(len(column)), column, starts), shape=(texts, columns))


def _model_1(source: sparse.csr_array, target: sparse.csr_array) -> sparse.csr_array:
    """Expected counts of the word pairs of IBM Model 1: `[source words, target words]`.

    Args:
        source: which words the sources have, `[texts, source words]`.
        target: which words the targets have, `[texts, target words]`.
    """
    of_source, of_target = np.diff(source.indptr), np.diff(target.indptr)
    pairs = of_source * of_target  # of words, in each text
    text = np.repeat(np.arange(len(pairs)), pairs)
    place = np.arange(len(text)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    token = target.indptr[text] + place // of_source[text]
    e = source.indices[source.indptr[text] + place % of_source[text]]
    columns = target.shape[1]
    keys, which = np.unique(e.astype(np.int64) * columns + target.indices[token], return_inverse=True)
    e, f = np.divmod(keys, columns)
    t: Floats = np.ones(len(keys))
    counts = t
    for _ in range(_ROUNDS):
        likely = t[which]
        likely /= np.bincount(token, likely, minlength=target.nnz)[token]
        counts = np.bincount(which, likely, minlength=len(keys))  # type: ignore[assignment]
        t = counts / np.bincount(e, counts, minlength=source.shape[1])[e]
    return sparse.csr_array((counts, (e, f)), shape=(source.shape[1], columns))


def _lift(counts: sparse.csr_array, usual: Floats) -> tuple[sparse.csr_array, Floats]:
    """t(f|e) / p(f) where it is above one, and for each e the probability that is left for all other words."""
    table = counts.tocoo()
    e, f = table.coords
    totals = np.bincount(e, table.data, minlength=table.shape[0])
    t = table.data / (totals[e] + _UNSEEN)
    keep = t > usual[f]
    e, f, t = e[keep], f[keep], t[keep]
    backoff = np.maximum(1 - np.bincount(e, t, minlength=table.shape[0]), _LEAST_UNSEEN)
    return sparse.csr_array((t / usual[f], (e, f)), shape=table.shape), backoff
