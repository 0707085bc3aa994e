"""What is drawn from the usable examples: nested sizes, balanced languages, the ratio of directions."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from axolotl_clo.draw import draw_examples
from axolotl_clo.schema import CLOConfig

# 6 rows in language 0 and all 30 in language 1; rows 7 and 8 are unusable.
ROWS = np.array([row for row in range(1, 31) for _ in range(2 if row <= 6 else 1) if row not in (7, 8)])
LANGUAGES = np.array([i for row in range(1, 31) for i in ((0, 1) if row <= 6 else (1,)) if row not in (7, 8)])


def draw(seed: int = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    return draw_examples(CLOConfig(target_lang=["ko", "sw"], **options), ROWS, LANGUAGES, 30, seed)


def test_nothing_is_drawn_by_default() -> None:
    drawn, kept = draw()
    assert drawn.tolist() == list(range(len(ROWS)))
    assert kept.all()


def test_sizes_are_nested_and_seeded() -> None:
    sizes = [set(ROWS[draw(max_examples=size)[0]]) for size in (1, 2, 5, 11, 28)]
    assert [len(rows) for rows in sizes] == [1, 2, 5, 11, 28]
    assert all(small < large for small, large in pairwise(sizes))
    assert set(ROWS[draw(1, max_examples=11)[0]]) != sizes[3]
    assert (draw(max_examples=11)[0] == draw(max_examples=11)[0]).all()


def test_a_row_comes_with_all_its_languages() -> None:
    drawn, _ = draw(max_examples=20)
    for row in set(ROWS[drawn]):
        assert Counter(ROWS[drawn])[row] == Counter(ROWS)[row]


@pytest.mark.bad_input("data")
def test_more_than_there_is_names_what_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"clo\.max_examples: 29 rows are asked for, but 28 are usable; .* 1 to 28"):
        draw(max_examples=29)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, (6, 28)), (2.0, (11, 23)), (1e9, (17, 17))])
def test_temperature_evens_out_languages(temperature: float, expected: tuple[int, int]) -> None:
    """n^(1/T) over 6 and 28 examples: √6 : √28 of 34 is 10.8 : 23.2."""
    drawn, _ = draw(sampling_temperature=temperature)
    counts = Counter(LANGUAGES[drawn])
    assert [counts[0], counts[1]] == list(expected)
    # A language that is short repeats each of its examples as often as the others, give or take one.
    repeats = Counter(drawn[LANGUAGES[drawn] == 0]).values()
    assert max(repeats) - min(repeats) <= 1
    assert max(Counter(drawn[LANGUAGES[drawn] == 1]).values()) == 1


@pytest.mark.parametrize(
    ("ratio", "source", "target"), [(1.0, 34, 34), (2.0, 17, 34), (4.0, 9, 34), (0.5, 34, 17), (0.25, 34, 9)]
)
def test_ratio_of_target_to_source_pairs(ratio: float, source: int, target: int) -> None:
    drawn, kept = draw(target_source_ratio=ratio)
    assert len(drawn) == 34
    assert kept.sum(0).tolist() == [source, target]
    assert kept.any(1).all()


def test_ratio_holds_in_each_language_and_is_nested() -> None:
    _, half = draw(target_source_ratio=2.0)
    _, quarter = draw(target_source_ratio=4.0)
    assert [half[i == LANGUAGES, 0].sum() for i in (0, 1)] == [3, 14]
    assert (quarter <= half).all()
