"""Which charts a report shows, and what is in them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from axolotl_clo.evaluate.report import svg
from axolotl_clo.evaluate.report.analysis import Analysis, Entry, Language
from axolotl_clo.evaluate.report.runs import BASE, METHODS, Curves, Run
from axolotl_clo.evaluate.report.texts import one_line

WIDE, NARROW = (760, 440), (420, 360)
MAX_POINTS = 80  # of a curve; more are averaged
_STYLE_OF = {BASE: 0, "clo": 1, "sft": 2, "sft_dpo": 3, "orpo": 4, "dpo": 5, "simpo": 6, "kto": 7, "ipo": 6}
_LABEL = 26


class Figure(NamedTuple):
    """A chart and its caption; `narrow` is the same for a phone, where there is one."""

    title: str
    wide: Markup
    narrow: Markup | None = None


def styles(runs: Sequence[Run]) -> dict[str, int]:
    """A colour and shape for each run: those of its method, or its own where methods do not tell runs apart."""
    places = [(run.method, run.rows, frozenset(run.languages)) for run in runs if run.scores]
    by_method = len(set(places)) == len(places) and all(run.method for run in runs)
    found, free = {}, 1
    for run in runs:
        if run.method == BASE:
            found[run.name] = 0
        elif by_method and run.method:
            found[run.name] = _STYLE_OF.get(run.method, 7)
        else:
            found[run.name] = free
            free = free % 7 + 1
    return found


def per_cent(value: float) -> str:
    """A share as a tick."""
    return f"{100 * value:.0f} %"


def labels(runs: Sequence[Run]) -> dict[str, str]:
    """Short names for marks: method and rows where they tell the runs apart."""
    short = {run.name: _short(run) for run in runs}
    return short if len(set(short.values())) == len(short) else {run.name: one_line(run.name, _LABEL) for run in runs}


def _short(run: Run) -> str:
    if run.method == BASE or (run.method in METHODS and run.rows):
        name = METHODS[run.method].replace("SFT, then DPO", "SFT→DPO")
        return f"{name} {run.rows:,}" if run.rows else name
    return one_line(run.name, _LABEL)


def trade_off(analysis: Analysis, style: Mapping[str, int]) -> list[Figure]:
    """Target proficiency against English retention, one chart for each target language."""
    source = analysis.source.entries if analysis.source else {}
    found = []
    for language in analysis.targets:
        both = [(source[name], entry) for name, entry in language.entries.items() if name in source]
        if not both:
            continue
        short = labels([target.run for _, target in both])
        marks = [
            svg.Mark(
                english.score.value,
                target.score.value,
                short[target.run.name],
                style[target.run.name],
                english.interval,
                target.interval,
                f"{target.run.name}: {per_cent(target.score.value)} {language.name}, "
                f"{per_cent(english.score.value)} English",
            )
            for english, target in both
        ]
        by_method: dict[str, list[int]] = defaultdict(list)
        for place, (_, target) in enumerate(both):
            if target.run.rows and target.run.method:
                by_method[target.run.method].append(place)
        paths = [
            (style[both[places[0]][1].run.name], sorted(places, key=lambda place: both[place][1].run.rows or 0))
            for places in by_method.values()
            if len(places) > 1
        ]
        titles = ("English retention, higher is better →", f"{language.name} proficiency, higher is better →")
        said = f"Scatter of {len(marks)} runs: English retention against {language.name} proficiency; numbers below."
        drawn = [svg.scatter(marks, size, titles, per_cent, paths, said) for size in (WIDE, NARROW)]
        found.append(Figure(language.name, *drawn))
    return [Figure(f.title, f.narrow or f.wide) for f in found] if len(found) > 1 else found


def data_efficiency(analysis: Analysis, style: Mapping[str, int]) -> list[Figure]:
    """Scores against the number of examples by method; of methods that were trained on several."""
    found = []
    for language in analysis.targets:
        sized = [entry.run for entry in language.entries.values() if entry.run.rows]
        for scored in (language, analysis.source):
            if scored:
                figure = _by_rows(scored, language, sized, analysis.reference, style)
                found += [figure] if figure else []
    return found


def _by_rows(
    scored: Language, target: Language, runs: Sequence[Run], reference: Run | None, style: Mapping[str, int]
) -> Figure | None:
    by_method: dict[str, list[Entry]] = defaultdict(list)
    for run in runs:
        if run.name in scored.entries and run.method:
            by_method[run.method].append(scored.entries[run.name])
    series = []
    for method, entries in by_method.items():
        entries = sorted(entries, key=lambda entry: entry.run.rows or 0)
        rows = [float(entry.run.rows or 0) for entry in entries]
        if len(set(rows)) < 2 or len(set(rows)) < len(rows):
            continue
        points = list(zip(rows, (entry.score.value for entry in entries), strict=True))
        dots = [(x, seed) for x, entry in zip(rows, entries, strict=True) for seed in entry.score.by_seed]
        name = METHODS.get(method, method).replace("SFT, then DPO", "SFT→DPO")
        intervals = [None if entry.score.by_seed else entry.interval for entry in entries]
        series.append(svg.Series(name, style[entries[0].run.name], points, dots, intervals))
    if not series or scored.number is None:
        return None
    base = scored.entries.get(reference.name) if reference and not reference.rows else None
    level = (one_line(base.run.name, 18), base.score.value) if base else None
    title = scored.number.title if scored is target else f"{scored.number.title} of the same runs"
    titles = ("training examples (log scale)", f"{scored.number.title}, higher is better →")
    said = f"Lines of {scored.number.title} by training examples, one for each of {len(series)} methods; numbers above."
    drawn = svg.lines(series, NARROW, titles, per_cent, True, level, description=said)
    return Figure(f"{target.name}: {title}" if scored is not target else title, drawn)


_CURVE_TITLES = {
    "loss": ("Loss, as each method defines it", "loss, lower is better ←"),
    "clo/nll": ("Negative log-likelihood of the target responses", "nats per token, lower is better ←"),
    "clo/preference_target": ("Preference loss, prompts in the target language", "nats per pair, lower is better ←"),
    "clo/preference_source": ("Preference loss, prompts in English", "nats per pair, lower is better ←"),
    "clo/accuracy_target": ("Pairs won, prompts in the target language", "share of pairs, higher is better →"),
    "clo/accuracy_source": ("Pairs won, prompts in English", "share of pairs, higher is better →"),
    "clo/margin_target": ("Margin, prompts in the target language", "β × log-ratio, higher is better →"),
    "clo/margin_source": ("Margin, prompts in English", "β × log-ratio, higher is better →"),
    "clo/fidelity_target": ("Answers in the target language", "share, higher is better →"),
    "clo/fidelity_source": ("Answers in English to English prompts", "share, higher is better →"),
}


def training_curves(runs: Sequence[Run], style: Mapping[str, int]) -> list[Figure]:
    """What training logged by step: one chart for each number, training and held-out rows apart."""
    logged = [(run, curves) for run in runs for curves in run.curves]
    keys = {key for _, curves in logged for key in curves.points}
    found = []
    for known in (*_CURVE_TITLES, *sorted({key.removeprefix("eval_") for key in keys} - _CURVE_TITLES.keys())):
        for key, rows in ((known, "training rows"), (f"eval_{known}", "held-out rows")):
            shown = [(run, curves) for run, curves in logged if key in curves.points]
            lines_of: Counter[int] = Counter()
            series = []
            # Of a method's runs that with the most rows is the unbroken line.
            for run, curves in sorted(shown, key=lambda pair: -(pair[0].rows or 0)):
                line, number = style[run.name], lines_of[style[run.name]]
                lines_of[line] += 1
                points, marked = _averaged(curves.points[key]), rows != "training rows"
                label = one_line(curves.name, _LABEL)
                series.append(svg.Series(label, line, points, marked=marked, dash=number))
            if not series:
                continue
            title, axis = _CURVE_TITLES.get(known, (known, known))
            said = f"Lines of {title} by optimizer step on {rows}, one for each of {len(series)} runs."
            drawn = svg.lines(series, NARROW, ("optimizer step", axis), _number, description=said)
            found.append(Figure(f"{title}; {rows}", drawn))
    return found


def last_values(runs: Sequence[Run]) -> list[tuple[str, dict[str, float]]]:
    """The last value of each curve, for those who cannot see it."""
    logged: list[Curves] = [curves for run in runs for curves in run.curves]
    return [(curves.name, {key: points[-1][1] for key, points in curves.points.items()}) for curves in logged]


def _averaged(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: the means of as many stretches."""
    if len(points) <= MAX_POINTS:
        return list(points)
    cuts = [len(points) * i // MAX_POINTS for i in range(MAX_POINTS + 1)]
    stretches = [points[a:b] for a, b in pairwise(cuts)]
    return [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in stretches]


def _number(value: float) -> str:
    return f"{value:.3g}"


def bar_domain(values: Sequence[float], share: bool) -> tuple[float, float]:
    """From 0 to the end of the scale: 1 for shares, else a little beyond the largest."""
    return (0.0, 1.0) if share else (min(0.0, *values), 1.05 * max(0.0, *values) or 1.0)
