"""The page and the tables: what models said cannot do anything there, and what is shown can be read."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from report_runs import (
    ENGLISH,
    GERMAN,
    write_answers,
    write_config,
    write_judgement,
    write_results,
    write_starter_run,
    write_trainer_state,
    write_whole_run,
    written,
)

from axolotl_clo.evaluate.report import labels, svg, write_report
from axolotl_clo.evaluate.report.texts import shown


class Page(HTMLParser):
    """The elements of a page, its attributes and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("ten")
    runs = [write_whole_run(folder / "base", "base", 0, 10)]
    for i, (method, rows) in enumerate((m, r) for m in ("sft", "orpo", "clo") for r in (400, 1600, 6400)):
        runs.append(write_whole_run(folder / f"{method}-{rows}", method, rows, 12 + 2 * i, judged=i == 8))
    return written(folder / "out", *runs)


def test_ten_runs_make_a_small_page_with_every_section(ten: tuple[str, str]) -> None:
    html, markdown = ten
    assert len(html.encode()) < 3_000_000
    sections = {value for name, value in Page(html).attributes if name == "id"}
    assert sections == {
        "glance",
        "trade-off",
        "efficiency",
        "scores",
        "judge",
        "training",
        "answers",
        "method",
        "commands",
    }
    assert "German: " in markdown
    assert "57.1 / 28.6 / 14.3" in markdown


def test_the_page_asks_for_nothing_and_runs_nothing(ten: tuple[str, str]) -> None:
    page = Page(ten[0])
    assert not {"script", "iframe", "object", "embed", "img", "form", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    targets = [value for name, value in page.attributes if name in ("href", "src", "action", "xlink:href")]
    assert all(target.startswith("#") or target == "data:," for target in targets)
    assert "url(" not in ten[0]
    assert "@import" not in ten[0]
    (policy,) = (value for name, value in page.attributes if name == "content" and "default-src" in value)
    css = ten[0].partition("<style>")[2].partition("</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")


def test_charts_and_tables_have_names(ten: tuple[str, str]) -> None:
    page = Page(ten[0])
    charts = re.findall(r'<svg class="chart"[^>]*>', ten[0])
    assert charts
    assert all('role="img"' in chart and re.search(r'aria-label="[^"]{20,}"', chart) for chart in charts)
    assert all(
        "higher is better →" in text or "lower is better" in text
        for text in re.findall(r'class="title".*?</svg>', ten[0])
    )
    assert page.text.count("within noise") > 3


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    run = write_whole_run(tmp_path / "clo", "clo", 400, 20)
    assert written(tmp_path / "a", run) == written(tmp_path / "b", run)


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</p></details></style><iframe src='http://evil.example'>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }} {% raw %}",
    "javascript:alert(1) &lt;b&gt;",
    "[link](http://evil.example) | cell | `code`",
]


@pytest.mark.bad_input("evaluate")
def test_what_models_and_names_hold_is_text(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_starter_run(run, 10, 5, model=ATTACKS[1])
    write_answers(run / "answers.jsonl", [("de", attack, attack) for attack in ATTACKS[:6]])
    write_config(run / "clo.yml", "clo", 8, base_model="<script>x</script>")
    write_judgement(run, 5, 2, 1)
    file = run / "judge.json"
    file.write_text(
        file.read_text().replace("judge-8b", ATTACKS[0]).replace('"model": "clo"', f'"model": "{ATTACKS[1]}"')
    )
    html, markdown = written(tmp_path / "out", run, names=("".join(ATTACKS),))
    page = Page(html)
    assert not {"script", "iframe", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for attack in ATTACKS[:6]:
        assert attack in page.text
    assert "<script" not in markdown
    assert "<img" not in markdown
    assert not re.search(r"(?<!\\)\]\(http", markdown)


def test_the_tables_in_markdown_are_whole(tmp_path: Path) -> None:
    runs = [write_whole_run(tmp_path / name, "clo", 8, right, judged=True) for name, right in (("a|b", 10), ("c", 30))]
    _, markdown = written(tmp_path / "out", *runs)
    widths = []
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        rows = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(rows) == 1, block
        widths.append(rows.pop())
    assert len(widths) >= 3


def test_long_empty_and_controlled_answers(tmp_path: Path) -> None:
    control = "bell \x07 null \x00 escape \x1b[31m right-to-left \u202e end \x9f"
    rows = [("de", "lang", "a" * 100_000), ("de", "leer", ""), ("de", "steuer", control), ("de", "halb", "x\ud800y")]
    write_answers(tmp_path / "run" / "answers.jsonl", rows)
    html, _ = written(tmp_path / "out", tmp_path / "run")
    text = Page(html).text
    assert "cut after 600 of 100,000 characters" in text
    assert "a" * 601 not in text
    assert "empty answer" in text
    assert "bell ␇ null ␀ escape ␛[31m right-to-left ⟨U+202E⟩ end ⟨U+009F⟩" in text
    assert "x⟨U+D800⟩y" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", html)


def test_a_text_is_cut_by_characters_it_had() -> None:
    assert shown("\x00" * 3, limit=2) == ("␀␀", 3)
    assert shown("가나다", limit=3) == ("가나다", 0)


def test_answers_are_tagged_with_the_language_they_are_in(tmp_path: Path) -> None:
    for name, answer in (("right", GERMAN), ("wrong", ENGLISH)):
        write_answers(tmp_path / name / "answers.jsonl", [("de", "Welcher Planet ist der größte?", answer)])
    html, _ = written(tmp_path / "out", tmp_path / "right", tmp_path / "wrong")
    assert re.findall(r'class="tag (\w+)">([^<]+)<', html) == [("right", "✓ German"), ("wrong", "✗ English")]


def test_a_run_without_a_task_is_named_beside_it(tmp_path: Path) -> None:
    documents = {f"d{i}": float(i % 2) for i in range(10)}
    write_results(tmp_path / "base", {"clo_de_belebele": {"acc": documents}, "clo_de_mmmlu": {"acc": documents}})
    write_results(tmp_path / "clo", {"clo_de_belebele": {"acc": documents}})
    html, markdown = written(tmp_path / "out", tmp_path / "base", tmp_path / "clo")
    assert "Not scored: clo." in Page(html).text
    assert "score with \\`--tasks clo\\_de\\_mmmlu\\` to let it in" in markdown


def test_runs_with_curves_alone_make_a_page(tmp_path: Path) -> None:
    write_trainer_state(tmp_path / "run", 5)
    html, _ = written(tmp_path / "out", tmp_path / "run")
    text = Page(html).text
    assert "None of the runs has accuracy-like scores" in text
    assert "Last values as a table" in text


@pytest.mark.bad_input("evaluate")
def test_nothing_is_written_where_something_cannot_be_read(tmp_path: Path) -> None:
    write_starter_run(tmp_path / "run", 10, 5, version="0.4.1")
    with pytest.raises(ValueError, match=r"0\.4\.11 and later"):
        write_report([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_starter_run(tmp_path / "good", 10, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out: .*file is a file; give a folder"):
        write_report([tmp_path / "good"], tmp_path / "file")


def test_the_command_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "axolotl_clo.cli", "report", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: RUN: no runs are given; give one or more folders" in done.stderr
    assert "Traceback" not in done.stderr


# ---- charts ----


def test_labels_at_the_ends_of_lines_stand_apart() -> None:
    places = labels.apart([10.0, 11.0, 12.0, 90.0], 0, 100)
    assert places == sorted(places)
    assert all(b - a >= labels.FONT + 1.9 for a, b in pairwise(places))


def test_labels_of_crowded_marks_do_not_lie_on_each_other() -> None:
    centres = [(200.0 + 3 * i, 150.0 + 2 * (i % 3)) for i in range(9)]
    places = [place for place, _ in labels.beside_marks([f"SFT {i}" for i in range(9)], centres, (50, 0, 420, 320))]
    assert not [(a, b) for a, b in combinations(places, 2) if labels._overlap(a, b) > 1]
    assert all(place[0] >= 50 and place[2] <= 420 for place in places)


def test_ticks_are_round_and_inside() -> None:
    assert svg.nice_ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(0.873 <= tick <= 0.992 for tick in svg.nice_ticks(0.873, 0.992))


def test_charts_of_one_point_and_of_equal_values_are_finite() -> None:
    mark = svg.Mark(1.0, 1.0, "one", 1, (1.0, 1.0), (1.0, 1.0))
    line = svg.Series("one", 1, [(1.0, 0.0)])
    drawn = [svg.scatter([mark, mark], (400, 300), ("x", "y"), str), svg.lines([line], (400, 300), ("x", "y"), str)]
    drawn.append(svg.bar(0.0, None, (0.0, 1.0), 1))
    assert not re.search(r"nan|inf", "".join(drawn))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: int) -> None:
    css = (Path(svg.__file__).parent / "templates" / "page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", block))

    def contrast(a: str, b: str) -> float:
        bright, dark = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    for ground in ("paper", "raised"):
        for text in ("ink", "soft", "link", "good", "bad"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for mark in ("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "wins", "losses"):
        assert contrast(mark, "paper") >= 3, mark


def test_the_page_s_data_are_those_of_the_files(tmp_path: Path) -> None:
    write_starter_run(tmp_path / "run", 24, 8)
    html, _ = written(tmp_path / "out", tmp_path / "run")
    file = next((tmp_path / "run").glob("results_*"))
    value = json.loads(file.read_text())["results"]["axolotl_clo_de_fidelity"]["fidelity_no_echo,none"]
    assert f"{100 * value:.1f}\u00a0%" in html
