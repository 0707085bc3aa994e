"""`python -m tests.bad_inputs`: bad inputs tried over the whole project, and how many were refused with nothing lost.

A test that gives bad input and asserts what becomes of it has the mark `@pytest.mark.bad_input(AREA)`; each of its
parametrised cases is one input. It is refused where the test passes: with a message that names the fault, or, where one
row of many is at fault, with that row set aside and counted. What was there before is asserted to be there still.

    python -m tests.bad_inputs              # runs them, with an `-n 4` or another option of pytest where one is given
    python -m tests.bad_inputs --collect    # counts them
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import Any

import pytest

AREAS = {
    "config": "options and their combinations",
    "data": "rows, files and sources",
    "translate": "engines, servers, commands, models",
    "evaluate": "prompts, answers, verdicts, results",
    "tasks": "the harness's tasks",
    "long runs": "kills, full disks, other runs' folders, broken state",
    "distributed": "several processes",
}
TRIED, REFUSED, NOT_REFUSED, SKIPPED = "tried", "refused", "not refused", "skipped"
_ORDER = {"passed": 0, "skipped": 1, "failed": 2}  # of a test's three phases the worst counts
_OUTCOMES = {"passed": REFUSED, "skipped": SKIPPED, "failed": NOT_REFUSED}

_collected: Counter[str] = Counter()
_outcomes: dict[str, tuple[str, str]] = {}  # by test: area, worst outcome


def main(arguments: list[str]) -> int:
    """Run pytest on the marked tests; returns its exit code."""
    rest = [argument for argument in arguments if argument != "--collect"]
    collect = len(rest) < len(arguments)
    how = ["--collect-only", "-qq"] if collect else ["-q", "--durations=0", "--durations-min=60"]
    return int(pytest.main(["-p", "tests.bad_inputs", "-m", "bad_input", "--disable-warnings", *how, *rest]))


def table(collected: Counter[str], outcomes: dict[str, tuple[str, str]], ran: bool) -> str:
    """Markdown, by area."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for area, outcome in outcomes.values():
        counts[area][TRIED] += 1
        counts[area][_OUTCOMES[outcome]] += 1
    for area, number in () if ran else collected.items():
        counts[area][TRIED] = number
    columns = [TRIED, REFUSED, NOT_REFUSED, SKIPPED] if ran else [TRIED]
    rows = [(f"{area}: {what}", counts[area]) for area, what in AREAS.items()]
    rows.append(("all", sum(counts.values(), Counter())))
    lines = [f"| bad inputs | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return "\n".join(lines + [f"| {name} | {' | '.join(str(row[c]) for c in columns)} |" for name, row in rows])


# Hooks of pytest, in the process that the user started and, with pytest-xdist, in each worker.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("bad_input")
        if mark is None:
            continue
        if len(mark.args) != 1 or mark.args[0] not in AREAS:
            raise pytest.UsageError(f"{item.nodeid}: bad_input{mark.args}; one of {', '.join(AREAS)} is accepted")
        item.user_properties.append(("bad_input", mark.args[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    for item in session.items:
        _collected.update(area for name, area in item.user_properties if name == "bad_input")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for area in (str(area) for name, area in report.user_properties if name == "bad_input"):
        _, before = _outcomes.get(report.nodeid, (area, "passed"))
        _outcomes[report.nodeid] = (area, max(before, report.outcome, key=_ORDER.__getitem__))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    terminalreporter.write_line("")
    terminalreporter.write_line(table(_collected, _outcomes, ran=not config.option.collectonly))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
