"""Everything a report says of its runs, before it is drawn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from axolotl_clo.evaluate.report.names import language_name
from axolotl_clo.evaluate.report.noise import Verdict, compare, judge, score_interval
from axolotl_clo.evaluate.report.proficiency import OFFLINE, Proficiency, proficiency, retention
from axolotl_clo.evaluate.report.runs import BASE, SHARES, SOURCE, Answer, Run, Score, ScoreKey
from axolotl_clo.evaluate.statistics import Interval

SHOWN_PROMPTS = 6  # of each language, side by side


@dataclass(frozen=True)
class Entry:
    """One score of one run; `verdict` is None for the reference itself."""

    run: Run
    score: Score
    interval: Interval | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Table:
    """One score of all runs that have it."""

    key: ScoreKey
    higher_is_better: bool | None
    entries: list[Entry]
    lacking: list[str]

    @property
    def is_main(self) -> bool:
        """Whether it is shown at once, not on demand."""
        return self.key.metric.partition(",")[0] in (*SHARES, "bits_per_byte")


@dataclass(frozen=True)
class Language:
    """What is known of one language.

    Attributes:
        number: target proficiency, or English retention.
        pairs: of the number, every pair of runs, by their names.
    """

    code: str | None
    name: str
    number: Proficiency | None
    entries: dict[str, Entry]
    pairs: dict[tuple[str, str], Verdict]
    tables: list[Table]


@dataclass(frozen=True)
class SideBySide:
    """The answers of runs to one prompt, by run; None where a run was not asked it."""

    language: str
    prompt: str
    shots: int
    answers: dict[str, Answer | None]


@dataclass(frozen=True)
class Analysis:
    """All of it.

    Attributes:
        reference: the run all others are compared with.
        targets: languages other than English, and tasks whose language is unknown last.
        notes: what a reader has to know, with the run it concerns first.
    """

    runs: list[Run]
    reference: Run | None
    targets: list[Language]
    source: Language | None
    answers: dict[str, list[SideBySide]]
    asked: dict[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def languages(self) -> list[Language]:
        return [*self.targets, *([self.source] if self.source else [])]


def analyse(runs: Sequence[Run], reference: str | None = None) -> Analysis:
    """Compare runs with a reference, the base model unless another is named.

    Raises:
        ValueError: no run has the name of the reference.
    """
    scored = [run for run in runs if run.scores]
    base = _reference(scored, reference)
    codes = {code for run in scored for code in run.languages}
    languages = {code: _language(code, scored, base) for code in codes}
    targets = [languages[code] for code in sorted(codes - {SOURCE}, key=lambda code: (code is None, code))]
    answers = {language: list(_side_by_side(runs, language)) for language in sorted(_answered(runs))}
    analysis = Analysis(
        list(runs),
        base,
        targets,
        languages.get(SOURCE),
        {language: _spread(found) for language, found in answers.items()},
        {language: len(found) for language, found in answers.items()},
    )
    analysis.notes.extend(_notes(analysis, runs))
    return analysis


def _reference(runs: Sequence[Run], name: str | None) -> Run | None:
    if name is not None:
        names = [run.name for run in runs]
        if name not in names:
            raise ValueError(
                f"--reference: no run with scores is called {name!r}; there are {', '.join(names) or 'none'}"
            )
        return runs[names.index(name)]
    return next((run for run in runs if run.method == BASE), runs[0] if runs else None)


def _language(code: str | None, runs: Sequence[Run], reference: Run | None) -> Language:
    own = [run for run in runs if code in run.languages]
    number = proficiency(runs, code) if code else None
    if number and code == SOURCE and reference:
        number = retention(number, reference.name)
    entries, pairs = {}, {}
    if number and number.scores:
        with_number = [run for run in own if run.name in number.scores]
        entries = {e.run.name: e for e in _entries(with_number, dict(number.scores), reference, True)}
        if number.base and reference:  # 100 % by definition
            entries[reference.name] = replace(entries[reference.name], interval=None)
        pairs = {
            (a.name, b.name): compare(number.scores[a.name], number.scores[b.name])
            for a, b in combinations(with_number, 2)
        }
    keys = sorted({key for run in own for key in run.scores if key.language == code}, key=_order)
    tables = [_table(key, own, reference) for key in keys]
    return Language(code, language_name(code), number, entries, judge(pairs, True), tables)


def _order(key: ScoreKey) -> tuple[int, str, int, int, str]:
    metric = key.metric.partition(",")[0]
    place = SHARES.index(metric) if metric in SHARES else len(SHARES)
    return (
        int(bool(OFFLINE.match(key.task))),
        key.task if place < len(SHARES) else f"~{key.task}",
        key.shots,
        place,
        key.metric,
    )


def _table(key: ScoreKey, runs: Sequence[Run], reference: Run | None) -> Table:
    scores = {run.name: run.scores[key] for run in runs if key in run.scores}
    better = next(iter(scores.values())).higher_is_better
    entries = _entries([run for run in runs if run.name in scores], scores, reference, better)
    return Table(key, better, entries, [run.name for run in runs if run.name not in scores])


def _entries(runs: Sequence[Run], scores: dict[str, Score], reference: Run | None, better: bool | None) -> list[Entry]:
    against = scores.get(reference.name) if reference else None
    verdicts = {
        run.name: compare(scores[run.name], against) for run in runs if against is not None and run is not reference
    }
    judged = judge(verdicts, better)
    return [Entry(run, scores[run.name], score_interval(scores[run.name]), judged.get(run.name)) for run in runs]


def _answered(runs: Sequence[Run]) -> set[str]:
    return {answer.language for run in runs for answer in run.answers}


def _side_by_side(runs: Sequence[Run], language: str) -> Iterator[SideBySide]:
    """Prompts that most runs answered, in the order they were first asked."""
    asked: dict[tuple[str, int], dict[str, Answer]] = defaultdict(dict)
    for run in runs:
        for answer in run.answers:
            if answer.language == language:
                asked[answer.prompt, answer.shots].setdefault(run.name, answer)
    names = [run.name for run in runs if any(answer.language == language for answer in run.answers)]
    most = max(map(len, asked.values()), default=0)
    for (prompt, shots), answers in asked.items():
        if len(answers) == most:
            yield SideBySide(language, prompt, shots, {name: answers.get(name) for name in names})


def _spread(found: list[SideBySide]) -> list[SideBySide]:
    """A few, spread evenly."""
    count = min(SHOWN_PROMPTS, len(found))
    return [found[len(found) * i // count] for i in range(count)]


def _notes(analysis: Analysis, runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        for note in run.notes:
            yield f"{run.name}: {note}"
    templates = {run.chat_template for run in runs} - {None}
    if len(templates) > 1:
        without = ", ".join(run.name for run in runs if run.chat_template is False)
        yield f"{without}: scored without a chat template, others with one; score all alike with --apply_chat_template"
    for language in analysis.languages:
        if language.number:
            yield from language.number.notes
        for table in language.tables:
            yield from _documents_that_differ(table)
    for code, shown in analysis.answers.items():
        answered = [run for run in runs if any(answer.language == code for answer in run.answers)]
        lacking = [run.name for run in answered if shown and all(row.answers[run.name] is None for row in shown)]
        if lacking:
            yield (
                f"{', '.join(lacking)}: answered other prompts in {code} than the runs shown side by side; "
                "generate the answers of all runs with the same --prompts"
            )
        empty = {run.name: sum(not a.text.strip() for a in run.answers if a.language == code) for run in answered}
        for name, count in empty.items():
            if count:
                yield f"{name}: {count} answers in {code} are empty; they count as wrong"


def _documents_that_differ(table: Table) -> Iterator[str]:
    """Runs whose documents are not those of the reference."""
    if not any(entry.verdict for entry in table.entries):
        return
    reference = next((entry.score for entry in table.entries if entry.verdict is None), None)
    if reference is None or not reference.documents:
        return
    for entry in table.entries:
        own = entry.score.documents
        if own and own.keys() != reference.documents.keys():
            common = len(own.keys() & reference.documents.keys())
            told = f"compared on the {common} in common" if common > 1 else "so they are not compared"
            yield (
                f"{entry.run.name}: {table.key.task} was scored on other documents than the reference "
                f"({len(own)} and {len(reference.documents)}), {told}; score both on the same task version and --limit"
            )
