"""Where the labels of a chart stand: near their marks, apart from each other, and inside."""

from __future__ import annotations

import math
from collections.abc import Sequence

FONT = 12.0  # height of a label in user units

Box = tuple[float, float, float, float]
Point = tuple[float, float]


def text_width(text: str) -> float:
    """About how wide a label is: characters beyond Latin are taken as square."""
    return sum(FONT if ord(c) > 0x2E7F else FONT * 0.6 for c in text)


def beside_marks(labels: Sequence[str], centres: Sequence[Point], area: Box) -> list[tuple[Box, Point | None]]:
    """The free place nearest to each label's mark.

    Args:
        labels: one for each mark.
        centres: of the marks.
        area: left, top, right and bottom of where labels may stand.

    Returns:
        In the order of the labels: the place, and its point nearest to the mark where a line has to join them.
    """
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    found: dict[int, tuple[Box, Point | None]] = {}
    for i in sorted(range(len(labels)), key=lambda i: (centres[i][1], centres[i][0])):
        x, y = centres[i]
        others = [centre for centre in centres if centre != centres[i]]
        options = _places(x, y, text_width(labels[i]))
        place = min((_cost(option, (x, y), others, taken, area), option[1]) for option in options)[1]
        taken.append(place)
        near = _nearest(place, (x, y))
        found[i] = place, near if math.dist(near, (x, y)) > 14 else None
    return [found[i] for i in range(len(labels))]


def _places(x: float, y: float, width: float) -> list[tuple[float, Box]]:
    """Places around a mark, each with what it costs to be so far away; to the right is dearest to readers."""
    places = []
    for reach in (9.0, 22.0, 36.0, 52.0, 70.0, 90.0):
        for step in range(16):
            angle = 2 * math.pi * step / 16
            cx, cy = x + reach * math.cos(angle), y + reach * math.sin(angle)
            left = cx if math.cos(angle) > 0.3 else cx - width if math.cos(angle) < -0.3 else cx - width / 2
            places.append((reach + step / 16, (left, cy - FONT / 2 - 1, left + width, cy + FONT / 2 + 1)))
    return places


def _cost(option: tuple[float, Box], own: Point, others: Sequence[Point], taken: Sequence[Box], area: Box) -> float:
    """A label should not cover anything, leave the chart, or lie nearer to another mark than to its own."""
    far, place = option
    distance = math.dist(_nearest(place, own), own)
    mistaken = sum(math.dist(_nearest(place, other), other) <= distance + 2 for other in others)
    return far + 40 * mistaken + 3 * sum(_overlap(place, other) for other in taken) + _outside(place, area)


def _nearest(box: Box, point: Point) -> Point:
    """The point of a box that is nearest to another."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(a: Box, area: Box) -> float:
    return (
        sum((max(0.0, area[0] - a[0]), max(0.0, area[1] - a[1]), max(0.0, a[2] - area[2]), max(0.0, a[3] - area[3])))
        * 100
    )


def apart(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Heights of labels, each near the one wanted and a line apart from the others."""
    gap = min(FONT + 2, (high - low) / max(len(wanted), 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    last = low - gap
    for i in order:
        places[i] = last = max(wanted[i], last + gap)
    last = high + gap
    for i in reversed(order):
        places[i] = last = min(places[i], last - gap)
    return places


def fitted(text: str, width: float) -> str:
    if text_width(text) <= width:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text + "…"
