"""The report as one HTML page that asks for nothing outside itself, and as Markdown tables."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from axolotl_clo.evaluate.report import figures, svg
from axolotl_clo.evaluate.report.analysis import Analysis, Entry, Language, SideBySide, Table
from axolotl_clo.evaluate.report.names import language_name, score_name
from axolotl_clo.evaluate.report.noise import RESAMPLES, Verdict
from axolotl_clo.evaluate.report.runs import METHODS, SOURCE, Score, seed_spread
from axolotl_clo.evaluate.report.texts import MAX_CHARACTERS, languages_of, one_line, shown
from axolotl_clo.evaluate.statistics import Interval

_TEMPLATES = Path(__file__).parent / "templates"
_SIGNS = {"better": "▲", "worse": "▼", "differs": "◆", "noise": "≈", "untested": "?"}
_WORDS = {
    "better": "better",
    "worse": "worse",
    "differs": "differs",
    "noise": "within noise",
    "untested": "not tested",
}


class Cell(NamedTuple):
    """An answer as it is shown."""

    run: str
    text: str
    cut: int
    language: str | None
    right: bool


def html(analysis: Analysis, command: str = "", version: str = "") -> str:
    """The page."""
    return _render("page.html.jinja", analysis, command, version)


def markdown(analysis: Analysis, command: str = "", version: str = "") -> str:
    """The tables."""
    return _render("report.md.jinja", analysis, command, version)


def _render(template: str, analysis: Analysis, command: str, version: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(("html.jinja",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": value_text,
        "interval": interval_text,
        "difference": difference_text,
        "sign": lambda verdict: _SIGNS[verdict.kind],
        "word": lambda verdict: _WORDS[verdict.kind],
        "p": p_text,
        "language": language_name,
        "score_name": score_name,
        "line": one_line,
        "cell": _markdown_cell,
        "names": _run_names,
        "swatch": svg.swatch,
        "spread": seed_spread,
        "tested": _tested,
    }
    css = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    style = figures.styles(analysis.runs)
    return environment.get_template(template).render(
        css=Markup(css),  # nosec B704 # part of the package
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        a=analysis,
        command=command,
        version=version,
        summary=summary(analysis),
        style=style,
        methods=METHODS,
        glance=glance(analysis),
        trade_off=figures.trade_off(analysis, style),
        efficiency=figures.data_efficiency(analysis, style),
        curves=figures.training_curves(analysis.runs, style),
        last_values=figures.last_values(analysis.runs),
        bars=lambda table: _bars(table, style),
        shares=svg.shares,
        answers={
            language: [_cells(row) for row in analysis.answers[language]]
            for language in sorted(analysis.answers, key=lambda language: (language == SOURCE, language))
        },
        matrix=_matrix,
        judgements=[judgement for run in analysis.runs for judgement in run.judgements],
        resamples=RESAMPLES,
        max_characters=MAX_CHARACTERS,
        curve_points=figures.MAX_POINTS,
    )


class Row(NamedTuple):
    """One run at a glance."""

    entry: Entry
    english: Entry | None


def glance(analysis: Analysis) -> list[tuple[Language, list[Row]]]:
    """For each target language the number of every run in it, with what it kept of English."""
    source = analysis.source.entries if analysis.source else {}
    found = [
        (language, [Row(entry, source.get(name)) for name, entry in language.entries.items()])
        for language in analysis.targets
        if language.entries
    ]
    if not found and source and analysis.source:
        found = [(analysis.source, [Row(entry, None) for entry in source.values()])]
    return found


def summary(analysis: Analysis) -> list[str]:
    """What a reader should take away, with what is within noise said so."""
    if analysis.reference is None:
        return []
    reference, said = analysis.reference.name, []
    for language in analysis.targets:
        others = [entry for entry in language.entries.values() if entry.verdict]
        if not others or reference not in language.entries:
            continue
        better, worse = (
            sum(entry.verdict.kind == kind for entry in others if entry.verdict) for kind in ("better", "worse")
        )
        base = value_text(language.entries[reference].score)
        top, *rest = sorted(language.entries.values(), key=lambda entry: -entry.score.value)
        lead = f"highest is {top.run.name} with {value_text(top.score)} ({reference}: {base})"
        if rest and top.run.name != reference and rest[0].run.name != reference:
            pair = _pair(language, top.run.name, rest[0].run.name)
            noise = "" if pair.kind in ("better", "worse") else ", which is within noise"
            lead += f", ahead of {rest[0].run.name} with {value_text(rest[0].score)}{noise}"
        said.append(
            f"{language.name}: {_count(better, len(others))} above {reference} beyond noise"
            + (f", {worse} below" if worse else "")
            + f"; {lead}."
        )
    if analysis.source and reference in analysis.source.entries:
        kinds = [entry.verdict.kind for entry in analysis.source.entries.values() if entry.verdict]
        if kinds:
            lost, gained = kinds.count("worse"), kinds.count("better")
            if not lost and not gained:
                said.append(f"English: no run differs from {reference} beyond noise.")
            else:
                said.append(
                    f"English: {_count(lost, len(kinds))} below {reference} beyond noise, {gained or 'none'} above."
                )
    return said


def _count(part: int, whole: int) -> str:
    return f"{part or 'none'} of {whole} {'run' if whole == 1 else 'runs'} {'are' if part != 1 else 'is'}"


def _pair(language: Language, first: str, second: str) -> Verdict:
    """The test of two runs, as seen from the first."""
    if (first, second) in language.pairs:
        return language.pairs[first, second]
    found = language.pairs[second, first]
    kind = {"better": "worse", "worse": "better"}.get(found.kind, found.kind)
    interval = Interval(-found.interval.high, -found.interval.low) if found.interval else None
    return Verdict(kind, -found.difference, interval, found.p_value, found.test, found.common)  # type: ignore[arg-type]


def _matrix(language: Language) -> list[tuple[str, list[Verdict | None]]]:
    names = list(language.entries)
    return [(a, [None if a == b else _pair(language, a, b) for b in names]) for a in names]


def _bars(table: Table, style: Mapping[str, int]) -> list[tuple[Entry, Markup]]:
    values = [v for e in table.entries for v in (e.score.value, *(e.interval or ()))]
    domain = figures.bar_domain(values, table.entries[0].score.is_share)
    return [(e, svg.bar(e.score.value, e.interval, domain, style[e.run.name])) for e in table.entries]


def _cells(row: SideBySide) -> tuple[SideBySide, str, list[Cell | str]]:
    """The prompt and the cells of a row; the name alone stands for a run that was not asked."""
    given = [answer.text for answer in row.answers.values() if answer]
    found = iter(languages_of(given, row.language))
    cells: list[Cell | str] = []
    for name, answer in row.answers.items():
        if answer is None:
            cells.append(name)
            continue
        text, language = shown(answer.text), next(found)
        cells.append(Cell(name, text.text, text.cut, language, language == row.language))
    return row, shown(row.prompt, MAX_CHARACTERS).text, cells


def value_text(score: Score) -> str:
    """A score with its unit."""
    if score.is_share:
        return f"{100 * score.value:.1f}\u00a0%"
    return f"{score.value:.3f}" if abs(score.value) < 100 else f"{score.value:,.0f}"


def interval_text(interval: Interval | None, score: Score) -> str:
    """A 95 % interval, in the unit of its score."""
    if interval is None:
        return ""
    low, high = interval
    if low != low:  # not a number: one document
        return ""
    if score.is_share:
        return f"{100 * low:.0f}–{100 * high:.0f}"
    return f"{low:.2f}–{high:.2f}" if abs(high) < 100 else f"{low:,.0f}–{high:,.0f}"


def difference_text(verdict: Verdict, score: Score) -> str:
    """A difference; of shares in points."""
    if score.is_share:
        return _signed(100 * verdict.difference, 1)
    return _signed(verdict.difference, 3 if abs(verdict.difference) < 10 else 0)


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else f"{'−' if value < 0 else '+'}{text}"


def p_text(value: float | None) -> str:
    """A p-value with two digits."""
    return "" if value is None else "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _tested(verdict: Verdict, score: Score) -> str:
    """What a verdict rests on, for a tooltip and the table of tests."""
    if not verdict.test:
        return "not tested: the files do not tell how sure the scores are"
    low, high = verdict.interval or Interval(0.0, 0.0)
    scale = 100 if score.is_share else 1
    on = f" on {verdict.common} documents" if verdict.common else ", without results by document"
    return f"{verdict.test}{on}; 95 % interval {scale * low:+.3g} to {scale * high:+.3g}; {p_text(verdict.p_value)}"


def _markdown_cell(text: Any, limit: int = 120) -> str:
    """Text that can neither break a Markdown table nor hold markup."""
    line = one_line(str(text), limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", line)


def _run_names(language: Language) -> list[str]:
    """Runs with a score in a language, in their order."""
    return list(dict.fromkeys(entry.run.name for table in language.tables for entry in table.entries))
