"""Which of the usable examples a run trains on: data size, balance of languages, balance of directions.

All draws are prefixes of one seeded order of the rows, so a smaller draw is part of a larger one.
"""

from __future__ import annotations

import numpy as np

from axolotl_clo.schema import CLOConfig


def draw_examples(
    clo: CLOConfig, rows: np.ndarray, languages: np.ndarray, num_rows: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `max_examples`, `sampling_temperature` and `target_source_ratio`.

    Args:
        clo: the options.
        rows: `[examples]`, row number of each usable example, from 1; an example is a row in one target language.
        languages: `[examples]`, its target language, from 0.
        num_rows: rows in the dataset, usable or not.
        seed: of the order.

    Returns:
        `[drawn]` positions in `rows`, in the order of the dataset, repeated where a language is sampled more often
        than it has examples; and `[drawn, 2]` booleans: whether the source and the target pair of each are kept.

    Raises:
        ValueError: more rows are asked for than are usable.
    """
    rank = np.empty(num_rows + 1, dtype=np.int64)
    rank[np.random.default_rng(seed).permutation(num_rows) + 1] = np.arange(num_rows)
    drawn = np.arange(len(rows))
    if clo.max_examples is not None:
        usable = np.unique(rows)
        if clo.max_examples > len(usable):
            raise ValueError(
                f"clo.max_examples: {clo.max_examples} rows are asked for, but {len(usable)} are usable; accepted are "
                f"1 to {len(usable)}"
            )
        chosen = usable[np.argsort(rank[usable])][: clo.max_examples]
        drawn = drawn[np.isin(rows, chosen)]
    if clo.sampling_temperature > 1:
        drawn = _balance(drawn, rows, languages, rank, clo.sampling_temperature)
    kept = np.ones((len(drawn), 2), dtype=bool)
    ratio = clo.target_source_ratio
    less, share = (0, 1 / ratio) if ratio > 1 else (1, ratio)
    for language in np.unique(languages[drawn]):
        places = np.flatnonzero(languages[drawn] == language)
        places = places[np.argsort(rank[rows[drawn[places]]], kind="stable")]
        kept[places[round(share * len(places)) :], less] = False
    return drawn, kept


def _balance(
    drawn: np.ndarray, rows: np.ndarray, languages: np.ndarray, rank: np.ndarray, temperature: float
) -> np.ndarray:
    """As many examples as in `drawn`, a language with n of them having a share of n^(1/T) (arXiv 1907.05019)."""
    names, counts = np.unique(languages[drawn], return_counts=True)
    shares = counts ** (1 / temperature)
    exact = shares / shares.sum() * len(drawn)
    wanted = np.floor(exact).astype(int)
    wanted[np.argsort(wanted - exact, kind="stable")[: len(drawn) - wanted.sum()]] += 1
    parts = []
    for name, count in zip(names, wanted, strict=True):
        own = drawn[languages[drawn] == name]
        own = own[np.argsort(rank[rows[own]], kind="stable")]
        parts.append(np.resize(own, count))  # repeats from the start where there are too few
    return np.sort(np.concatenate(parts))
