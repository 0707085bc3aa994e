"""Charts as inline SVG: axes, scatter, lines and bars.

Colours and strokes are the page's (classes `s0`, `s1`, … of its style sheet), so that light and dark follow it. A run
has a marker shape beside its colour, and labels stand at the marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from axolotl_clo.evaluate.report.labels import Box, apart, beside_marks, fitted, text_width

_STYLES = 8  # colours and shapes; s0 is the base model's
_DASHES = 4


class Mark(NamedTuple):
    """A point of a chart: values, their intervals if known, the label beside it, and the number of its style."""

    x: float
    y: float
    label: str
    style: int
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    title: str = ""


@dataclass(frozen=True)
class Series:
    """A line through `points`, with an interval at each, if known, and single dots, such as those of seeds.

    `dash` tells apart lines of one style; 0 is unbroken.
    """

    label: str
    style: int
    points: Sequence[tuple[float, float]]
    dots: Sequence[tuple[float, float]] = ()
    intervals: Sequence[tuple[float, float] | None] = ()
    marked: bool = True
    dash: int = 0


@dataclass(frozen=True)
class Axis:
    """Values on a length in user units, from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], least: float, within: tuple[float, float] | None = None) -> tuple[float, float]:
    """A range that holds the values with some room, at least `least` wide."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), (least - (high - low)) / 2)
    low, high = low - room, high + room
    if within:
        low, high = max(low, within[0]), min(high, within[1])
    return low, high


def scatter(
    marks: Sequence[Mark],
    size: tuple[int, int],
    titles: tuple[str, str],
    form: Callable[[float], str],
    paths: Sequence[tuple[int, Sequence[int]]] = (),
    description: str = "",
) -> Markup:
    """Marks with intervals both ways.

    Args:
        marks: at least one.
        size: width and height in user units.
        titles: of the horizontal and the vertical axis.
        form: text of a tick.
        paths: style, and places of the marks a thin line joins.
        description: for those who cannot see it.
    """
    width, height = size
    box = (58.0, 14.0, width - 56.0, height - 46.0)  # room for labels on the right, where most marks are
    xs = [v for m in marks for v in (m.x, *(m.x_interval or ()))]
    ys = [v for m in marks for v in (m.y, *(m.y_interval or ()))]
    x = Axis(*padded(xs, 0.1, (-0.02, max(1.02, *xs))), box[0], box[2])
    y = Axis(*padded(ys, 0.1, (-0.02, max(1.02, *ys))), box[3], box[1])
    parts = [_frame(x, y, box, nice_ticks(x.low, x.high), nice_ticks(y.low, y.high), form, form, titles)]
    for mark in marks:
        if mark.x_interval:
            parts.append(
                _line((x(mark.x_interval[0]), y(mark.y)), (x(mark.x_interval[1]), y(mark.y)), mark.style, "ci")
            )
        if mark.y_interval:
            parts.append(
                _line((x(mark.x), y(mark.y_interval[0])), (x(mark.x), y(mark.y_interval[1])), mark.style, "ci")
            )
    for style, joined in paths:
        parts.append(_path([(x(marks[i].x), y(marks[i].y)) for i in joined], style, "join"))
    centres = [(x(mark.x), y(mark.y)) for mark in marks]
    for mark, centre in zip(marks, centres, strict=True):
        parts.append(_marker(*centre, mark.style, title=mark.title or mark.label))
    places = beside_marks([mark.label for mark in marks], centres, (box[0], 0.0, float(width), box[3]))
    for mark, (x_mark, y_mark), (place, near) in zip(marks, centres, places, strict=True):
        if near:
            parts.append(f'<path class="lead" d="M{x_mark:.1f} {y_mark:.1f}L{near[0]:.1f} {near[1]:.1f}"/>')
        parts.append(_text("name", place[0], place[3] - 4, mark.label))
    return _svg(size, parts, description)


def lines(
    series: Sequence[Series],
    size: tuple[int, int],
    titles: tuple[str, str],
    form: Callable[[float], str],
    log_x: bool = False,
    level: tuple[str, float] | None = None,
    description: str = "",
) -> Markup:
    """Lines with a label at the end of each; `level` is a dashed one across, such as the base model's score."""
    width, height = size
    longest = max([text_width(s.label) for s in series] + ([text_width(level[0])] if level else []))
    box = (58.0, 14.0, width - min(longest + 16, width * 0.36), height - 46.0)
    xs = [x for s in series for x, _ in (*s.points, *s.dots)]
    ys = [y for s in series for _, y in (*s.points, *s.dots)] + ([level[1]] if level else [])
    ys += [y for s in series for interval in s.intervals for y in interval or ()]
    low, high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) * 0.5, max(xs) * 2 or 1.0)
    x = Axis(low, high, box[0] + 8, box[2], log_x)
    y = Axis(*padded(ys, 0.02 * (max(map(abs, ys)) or 1.0)), box[3], box[1])
    ticks = sorted({point for s in series for point, _ in s.points}) if log_x else nice_ticks(low, high, 4)
    parts = [_frame(x, y, box, ticks, nice_ticks(y.low, y.high), lambda v: f"{v:,.0f}", form, titles)]
    ends, labels = [], []
    if level:
        parts.append(_line((box[0], y(level[1])), (box[2], y(level[1])), 0, "level"))
        ends.append(y(level[1]))
        labels.append(level[0])
    for s in series:
        points = [(x(px), y(py)) for px, py in s.points]
        for (px, _), interval in zip(s.points, s.intervals, strict=False):
            if interval:
                parts.append(_line((x(px), y(interval[0])), (x(px), y(interval[1])), s.style, "ci"))
        parts.append(_path(points, s.style, f"line dash{s.dash % _DASHES}" if s.dash else "line"))
        parts += [_dot(x(px), y(py), s.style) for px, py in s.dots]
        if s.marked:
            parts += [_marker(*point, s.style, 4.5) for point in points]
        ends.append(points[-1][1])
        labels.append(s.label)
    for label, wanted, place in zip(labels, ends, apart(ends, box[1] + 4, box[3]), strict=True):
        text = fitted(label, width - box[2] - 14)
        parts.append(f'<path class="lead" d="M{box[2] + 2:.1f} {wanted:.1f}L{box[2] + 9:.1f} {place:.1f}"/>')
        parts.append(_text("name", box[2] + 11, place + 4, text))
    return _svg(size, parts, description)


def bar(value: float, interval: tuple[float, float] | None, domain: tuple[float, float], style: int) -> Markup:
    """A bar from 0 with its interval, as wide as its place: horizontal user units are per cent of it."""
    scale = Axis(*domain, 0.0, 100.0)
    start, end = sorted((scale(max(domain[0], min(0.0, domain[1]))), scale(value)))
    parts = [f'<rect class="s{style} fill" x="{start:.2f}" y="3" width="{max(end - start, 0.4):.2f}" height="14"/>']
    if interval:
        low, high = scale(interval[0]), scale(interval[1])
        parts.append(f'<path class="whisker" d="M{low:.2f} 10H{high:.2f}M{low:.2f} 6V14M{high:.2f} 6V14"/>')
    inside = "".join(parts)
    # The table says the same in numbers.
    return Markup(f'<svg class="bar" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{inside}</svg>')  # nosec B704 # numbers, and text escaped before


def shares(parts: Sequence[tuple[float, str]]) -> Markup:
    """Parts of a whole side by side: their sizes and classes."""
    whole = sum(size for size, _ in parts) or 1.0
    start, drawn = 0.0, ""
    for size, name in parts:
        width = 100 * size / whole
        drawn += f'<rect class="{escape(name)}" x="{start:.2f}" y="2" width="{width:.2f}" height="16"/>'
        start += width
    return Markup(f'<svg class="bar" viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>')  # nosec B704 # numbers, and text escaped before


def swatch(style: int) -> Markup:
    """The marker of a run, for legends and tables."""
    return Markup(f'<svg class="swatch" viewBox="-7 -7 14 14" aria-hidden="true">{_marker(0, 0, style)}</svg>')  # nosec B704 # numbers, and text escaped before


def _svg(size: tuple[int, int], parts: Sequence[str], description: str) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(description)}">'
    return Markup(head + "".join(parts) + "</svg>")  # nosec B704 # numbers, and text escaped before


def _frame(
    x: Axis,
    y: Axis,
    box: Box,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_form: Callable[[float], str],
    y_form: Callable[[float], str],
    titles: tuple[str, str],
) -> str:
    """Grid, ticks and titles; the vertical axis's title lies on top, where it reads without turning the head."""
    left, top, right, bottom = box
    drawn = ""
    for tick in y_ticks:
        drawn += f'<path class="grid" d="M{left:.1f} {y(tick):.1f}H{right:.1f}"/>'
        drawn += _text("tick", left - 6, y(tick) + 4, y_form(tick), "end")
    last = -math.inf
    for tick in x_ticks:
        drawn += f'<path class="grid" d="M{x(tick):.1f} {bottom:.1f}v5"/>'
        if x(tick) - last >= text_width(x_form(tick)) + 8:
            drawn += _text("tick", x(tick), bottom + 18, x_form(tick), "middle")
            last = x(tick)
    drawn += f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>'
    middle = (top + bottom) / 2
    drawn += _text("title", (left + right) / 2, bottom + 38, titles[0], "middle")
    drawn += (
        f'<text class="title" text-anchor="middle" transform="translate(13 {middle:.1f}) rotate(-90)">'
        f"{escape(titles[1])}</text>"
    )
    return drawn


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _line(start: tuple[float, float], end: tuple[float, float], style: int, kind: str) -> str:
    return f'<path class="s{style % _STYLES} {kind}" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>'


def _path(points: Sequence[tuple[float, float]], style: int, kind: str) -> str:
    moves = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="s{style % _STYLES} {kind}" d="M{moves}"/>'


def _dot(x: float, y: float, style: int) -> str:
    return f'<circle class="s{style % _STYLES} seed" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def _marker(x: float, y: float, style: int, r: float = 5.5, title: str = "") -> str:
    """A shape of its own for each style, told apart without colour."""
    shapes = (
        lambda: _polygon(x, y, r * 1.1, 4, 0),  # diamond: the base model
        lambda: f'cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"',
        lambda: _polygon(x, y, r * 1.25, 4, math.pi / 4),  # square
        lambda: _polygon(x, y, r * 1.3, 3, -math.pi / 2),  # triangle
        lambda: _star(x, y, r * 1.45),
        lambda: _polygon(x, y, r * 1.3, 3, math.pi / 2),  # triangle, upside down
        lambda: _polygon(x, y, r * 1.15, 5, -math.pi / 2),
        lambda: _polygon(x, y, r * 1.15, 6, 0),
    )
    style %= _STYLES
    element = "circle" if style == 1 else "polygon"
    told = f"<title>{escape(title)}</title>" if title else ""
    return f'<{element} class="s{style} mark" {shapes[style]()}>{told}</{element}>'


def _polygon(x: float, y: float, r: float, corners: int, turn: float) -> str:
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return 'points="' + " ".join(f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}" for a in angles) + '"'


def _star(x: float, y: float, r: float) -> str:
    corners = []
    for i in range(10):
        length, angle = r if i % 2 == 0 else r * 0.5, -math.pi / 2 + math.pi * i / 5
        corners.append(f"{x + length * math.cos(angle):.1f},{y + length * math.sin(angle):.1f}")
    return f'points="{" ".join(corners)}"'
