"""`axolotl-clo judge` against a scripted judge, and its figures for recorded verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import starter_rows, write_rows
from servers import GUARD, KEY, Reply, Script, Serve, Server, completion, error, kill_9
from typer.testing import CliRunner

from axolotl_clo.cli import app
from axolotl_clo.evaluate import verdicts
from axolotl_clo.evaluate.judge import NO_VERDICT, REFUSED, Judgement
from axolotl_clo.evaluate.statistics import mean_interval
from axolotl_clo.translate.engines import EngineError, EngineOptions
from axolotl_clo.translate.store import OutputError

KO = [row["response"]["ko"] for row in starter_rows("test")]
EN = [row["response"]["en"] for row in starter_rows("test")]

pytestmark = pytest.mark.usefixtures("openai_key")


def verdict(better: Any, languages: tuple[str, str] = ("ko", "ko")) -> Reply:
    return completion(
        json.dumps({"language_1": languages[0], "language_2": languages[1], "reason": "So.", "better": better})
    )


def shown(question: str) -> tuple[str, str]:
    """The two answers of a question, in the order shown."""
    first, _, rest = question.partition("<answer_1>\n")[2].partition("\n</answer_1>")
    return first, rest.partition("<answer_2>\n")[2].partition("\n</answer_2>")[0]


def prefers(wanted: Callable[[str], float]) -> Script:
    """A judge that names the answer it likes better."""

    def script(question: str, nth: int) -> Reply:
        one, two = (wanted(answer) for answer in shown(question))
        return verdict("tie" if one == two else 1 if one > two else 2)

    return script


longest = prefers(len)


def answers(file: Path, texts: list[str | None], language: str = "ko", **row: Any) -> Path:
    rows = [
        {"id": f"p{i}", "language": language, "prompt": f"Frage {i}", "answer": text, "shots": 0, **row}
        for i, text in enumerate(texts)
    ]
    return write_rows(file, rows)


def behind(server: Server, **options: Any) -> EngineOptions:
    return EngineOptions(**{"model": "judge", "base_url": server.url, "timeout": GUARD, "retries": 1, **options})


def judged(
    folder: Path, server: Server, a: list[Any], b: list[Any], **options: Any
) -> tuple[dict[str, Any], list[Any]]:
    """`judge.json` and the lines of `verdicts.jsonl`."""
    run = Judgement(answers(folder / "a.jsonl", a), answers(folder / "b.jsonl", b), behind(server), **options)
    about = run.run(folder / "out")
    assert about == json.loads((folder / "out" / "judge.json").read_text(encoding="utf-8"))
    lines = (folder / "out" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    return about, [json.loads(line) for line in lines]


def test_every_pair_is_judged_in_both_orders(serve: Serve, tmp_path: Path) -> None:
    server = serve(longest)
    about, lines = judged(tmp_path, server, ["aaa", "b", "cc"], ["a", "bb", "dd"])
    assert sorted(shown(question) for question in server.segments) == sorted(
        [("aaa", "a"), ("a", "aaa"), ("b", "bb"), ("bb", "b"), ("cc", "dd"), ("dd", "cc")]
    )
    assert [(line["id"], line["outcome"], line["score"]) for line in lines] == [
        ("p0", "win", 1.0),
        ("p1", "loss", 0.0),
        ("p2", "tie", 0.5),
    ]
    assert [(line["first"]["better"], line["second"]["better"]) for line in lines] == [
        ("a", "a"),
        ("b", "b"),
        ("tie",) * 2,
    ]
    found = about["languages"]["ko"]
    assert (found["n"], found["wins"], found["ties"], found["losses"]) == (3, 1, 1, 1)
    assert found["win_rate"] == 0.5
    assert found == about["languages"]["all"]
    assert (about["format"], about["prompt_version"]) == ("axolotl-clo judge 1", verdicts.PROMPT_VERSION)
    assert (about["a"], about["judge"]) == ({"model": "a", "answers": "a.jsonl", "shots": 0}, "judge")
    assert {body["temperature"] for body in server.bodies} == {0}


def test_a_judge_that_goes_by_place_gives_ties_and_is_found_out(serve: Serve, tmp_path: Path) -> None:
    about, lines = judged(tmp_path, serve(lambda question, nth: verdict(1)), KO[:8], EN[:8])
    found = about["languages"]["ko"]
    assert (found["wins"], found["ties"], found["losses"]) == (0, 8, 0)
    assert (found["win_rate"], found["consistent"], found["first_shown"]) == (0.5, 0.0, 1.0)
    assert {line["score"] for line in lines} == {0.5}


def test_one_win_and_one_tie_is_a_win_of_three_quarters(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda question, nth: verdict(1 if shown(question)[0] == "gut" else "tie"))
    _, (line,) = judged(tmp_path, server, ["gut"], ["schlecht"])
    assert (line["outcome"], line["score"]) == ("win", 0.75)


def test_languages_are_told_by_the_judge_and_by_the_identifier(serve: Serve, tmp_path: Path) -> None:
    def script(question: str, nth: int) -> Reply:
        languages = tuple("kor" if answer in KO else "EN" for answer in shown(question))
        return verdict(1 if languages[0] == "kor" else 2, languages)  # type: ignore[arg-type]

    about, lines = judged(tmp_path, serve(script), KO[:6], EN[:5] + KO[6:7])
    assert lines[0]["first"]["languages"] == ["ko", "en"] == lines[0]["second"]["languages"]
    right = about["languages"]["ko"]["right_language"]
    assert right == {"identified": [1.0, pytest.approx(1 / 6)], "judge": [1.0, pytest.approx(1 / 6)]}


def test_empty_and_equal_answers_are_decided_without_the_judge(serve: Serve, tmp_path: Path) -> None:
    server = serve(longest)
    about, lines = judged(tmp_path, server, ["", "a", " \n", "x", "aa"], ["b", None, "", "x ", "a"])
    assert [line["outcome"] for line in lines] == ["loss", "win", "tie", "tie", "win"]
    assert len(server.bodies) == 2
    assert about["by_rule"] == {
        "the first answer is empty": 1,
        "the second answer is empty": 1,
        "both answers are empty": 1,
        "both answers are the same": 1,
    }
    assert about["languages"]["ko"]["n"] == 5


@pytest.mark.bad_input("evaluate")
def test_prose_is_asked_again_for_json_and_counted_where_it_stays_prose(serve: Serve, tmp_path: Path) -> None:
    def script(question: str, nth: int) -> Reply:
        if "stubborn" in question or verdicts.REMINDER not in question:
            return completion("The first answer is better, I think.")
        return longest(question, nth)

    server = serve(script)
    about, lines = judged(tmp_path, server, ["aa", "stubborn"], ["a", "b"])
    assert [line["outcome"] for line in lines] == ["win", None]
    assert lines[1]["problem"] == NO_VERDICT
    assert "in 2 tries; the last has no verdict in JSON: 'The first answer" in lines[1]["first"]["detail"]
    assert about["unjudged"] == {NO_VERDICT: 1}
    assert about["languages"]["ko"]["n"] == 1
    assert len(server.bodies) == 8


@pytest.mark.bad_input("evaluate")
def test_a_pair_that_the_judges_server_refuses_is_counted_and_the_others_are_judged(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(lambda q, nth: error(400, "no", code="content_filter") if "bad" in q else longest(q, nth))
    about, lines = judged(tmp_path, server, ["aa", "bad"], ["a", "b"])
    assert about["unjudged"] == {REFUSED: 1}
    assert [line["outcome"] for line in lines] == ["win", None]


def test_nothing_judged_is_a_result_without_rates(serve: Serve, tmp_path: Path) -> None:
    about, _ = judged(tmp_path, serve(lambda q, nth: completion("No.")), ["aa"], ["a"])
    assert about["languages"] == {}
    assert about["unjudged"] == {NO_VERDICT: 1}


def test_long_answers_are_cut_and_control_characters_replaced_for_the_judge_alone(serve: Serve, tmp_path: Path) -> None:
    server = serve(longest)
    long, odd = "가" * 100_000, "a\x00\x1b[2J</answer_1>"
    about, lines = judged(tmp_path, server, [long, odd], ["b", "b"])
    assert max(len(question) for question in server.segments) < 21_000
    assert not any(character in question for question in server.segments for character in "\x00\x1b")
    assert all(question.count("</answer_1>") == 1 for question in server.segments)
    assert about["shown_otherwise"] == {
        "first model's answer cut at 20000 characters": 1,
        "first model's answer with control characters": 1,
    }
    assert [line["lengths"][0] for line in lines] == [100_000, len(odd)]


# What the two files must have in common


@pytest.mark.bad_input("evaluate")
def test_mismatched_prompts_are_refused_with_counts_unless_asked_for(serve: Serve, tmp_path: Path) -> None:
    server = serve(longest)
    with pytest.raises(ValueError, match=r"2 are in both, 1 only in .*a.jsonl \('p2' in 'ko'\)\. .*--common"):
        judged(tmp_path, server, ["aa", "b", "c"], ["a", "bb"])
    assert not server.bodies
    about, lines = judged(tmp_path, server, ["aa", "b", "c"], ["a", "bb"], common=True)
    assert len(lines) == 2
    assert about["unjudged"] == {"answered by the first model alone": 1}


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"language": "de"}, "answer no prompt in common: 'p0' in 'ko', 'p1' in 'ko' and 'p0' in 'de'"),
        ({"prompt": "Etwas anderes"}, "id 'p0' in 'ko' is another prompt in each: 'Frage 0' and 'Etwas anderes'"),
    ],
)
def test_other_prompts_are_refused(tmp_path: Path, other: dict[str, str], message: str) -> None:
    a, b = answers(tmp_path / "a.jsonl", ["a", "b"]), answers(tmp_path / "b.jsonl", ["a", "b"], **other)
    with pytest.raises(ValueError, match=message):
        Judgement(a, b, EngineOptions(model="m"))


# Going on


@pytest.mark.bad_input("evaluate")
def test_an_error_keeps_verdicts_and_the_same_run_goes_on(serve: Serve, tmp_path: Path) -> None:
    a, b = answers(tmp_path / "a.jsonl", KO[:5]), answers(tmp_path / "b.jsonl", EN[:5])
    broken = serve(lambda q, nth: error(401) if len(broken.bodies) > 4 else longest(q, nth))
    with pytest.raises(EngineError, match="the server refuses access"):
        Judgement(a, b, behind(broken, concurrency=1)).run(tmp_path / "out")
    with pytest.raises(OutputError, match="max_answer_chars: 20000 then, 5 now"):
        Judgement(a, b, behind(broken), max_answer_chars=5).run(tmp_path / "out")
    good, told = serve(longest), []
    about = Judgement(a, b, behind(good)).run(
        tmp_path / "out",
        lambda done, total: told.append((done, total)),
        lambda estimate: told.append(estimate.requests),
    )
    assert told[:2] == [6, (4, 10)]
    assert len(good.bodies) == 6
    assert about["languages"]["ko"]["n"] == 5
    again = serve(longest)
    assert Judgement(a, b, behind(again)).run(tmp_path / "out") == about
    assert not again.bodies


def test_a_token_budget_stops_the_run_and_more_goes_on(serve: Serve, tmp_path: Path) -> None:
    a, b = answers(tmp_path / "a.jsonl", KO[:5]), answers(tmp_path / "b.jsonl", EN[:5])
    server = serve(longest)  # which counts 15 tokens for each request
    with pytest.raises(EngineError, match=r"--token-budget: 45 tokens are used .* raise --token-budget"):
        Judgement(a, b, behind(server, token_budget=40, concurrency=1)).run(tmp_path / "out")
    assert Judgement(a, b, behind(server)).run(tmp_path / "out")["languages"]["ko"]["n"] == 5
    assert len(server.bodies) == 10


def test_kill_9_costs_no_verdict_and_doubles_none(serve: Serve, tmp_path: Path) -> None:
    a, b = answers(tmp_path / "a.jsonl", KO[:6]), answers(tmp_path / "b.jsonl", EN[:6])
    partial = tmp_path / "out" / "verdicts.jsonl.partial"
    arguments = ["judge", str(a), str(b), "--model", "judge", "--yes", "--out", str(tmp_path / "out")]
    answered = kill_9(serve, longest, 5, [*arguments, "--concurrency", "1"], partial, lines=6)  # one says what it is
    second = serve(longest)
    Judgement(a, b, behind(second, max_new_tokens=1024)).run(tmp_path / "out")
    assert len(second.segments) == 7
    assert not set(second.segments) & set(answered)
    lines = (tmp_path / "out" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"p{i}" for i in range(6)]
    assert not partial.exists()


# The figures


def test_figures_of_recorded_verdicts(serve: Serve, tmp_path: Path) -> None:
    """Sixty prompts in two languages, of which the judge likes a's answers by a known plan."""
    plan = {f"p{i}": ("a", "b", "tie", "a", "place")[i % 5] for i in range(30)}
    files = []
    for name in "ab":
        rows = [
            {
                "id": key,
                "language": language,
                "prompt": f"{key} {language}",
                "answer": f"{name} {key} {language}{'!' * (i % 7)}",
            }
            for i, key in enumerate(plan)
            for language in ("ko", "sw")
        ]
        files.append(write_rows(tmp_path / f"{name}.jsonl", rows))

    def script(question: str, nth: int) -> Reply:
        first, _ = shown(question)
        wanted = plan[first.split()[1]]
        better = 1 if wanted in ("place", first[0]) else "tie" if wanted == "tie" else 2
        return verdict(better)

    about = Judgement(*files, behind(serve(script))).run(tmp_path / "out")
    assert list(about["languages"]) == ["ko", "sw", "all"]
    scores = [{"a": 1.0, "b": 0.0, "tie": 0.5, "place": 0.5}[wanted] for wanted in plan.values()]
    for language, n in (("ko", 30), ("sw", 30), ("all", 60)):
        found = about["languages"][language]
        assert (found["n"], found["wins"], found["ties"], found["losses"]) == (n, 0.4 * n, 0.4 * n, 0.2 * n)
        assert found["win_rate"] == pytest.approx(0.6)
        assert found["length_controlled"] == pytest.approx(0.6)  # a's answers are as long as b's
        assert found["interval"] == pytest.approx(list(mean_interval(scores)), abs=0.01)  # languages of a prompt agree
        assert found["consistent"] == pytest.approx(0.8)
        assert found["first_shown"] == pytest.approx(5 / 8)


def test_a_judge_that_likes_length_alone_is_seen_through(serve: Serve, tmp_path: Path) -> None:
    a = ["word " * (20 + 7 * i % 40) for i in range(40)]
    b = ["word " * (5 + 11 * i % 40) + "." for i in range(40)]
    about, _ = judged(tmp_path, serve(longest), a, b)
    found = about["languages"]["ko"]
    assert found["length_effect"] > 1
    assert abs(found["length_controlled"] - 0.5) < abs(found["win_rate"] - 0.5) / 2


# The command


def command(tmp_path: Path, server: Server, *more: str) -> list[str]:
    a, b = answers(tmp_path / "a.jsonl", KO[:4], shots=5), answers(tmp_path / "b[1].jsonl", EN[:4])
    return [
        "judge",
        str(a),
        str(b),
        "--model",
        "judge",
        "--base-url",
        server.url,
        "--out",
        str(tmp_path / "out"),
        *more,
    ]


def test_the_table_shows_wins_ties_and_losses_in_per_cent(serve: Serve, tmp_path: Path) -> None:
    server = serve(prefers(lambda answer: float(answer in KO)))
    result = CliRunner().invoke(app, command(tmp_path, server, "--yes"), catch_exceptions=False, env={"COLUMNS": "150"})
    assert result.exit_code == 0
    assert "a (k = 5) against b[1], judged by judge" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "ko" in line and "100.0" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][:5] == ["ko", "4", "100.0", "0.0", "0.0"]
    assert "Estimate: 8 requests for 4 pairs" in result.stderr


def test_a_judge_that_only_talks_is_named_for_what_it_is(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda question, nth: completion("Both are fine."))
    result = CliRunner().invoke(app, command(tmp_path, server, "--yes", "--retries", "0"), catch_exceptions=False)
    assert result.stdout == ""
    assert "Nothing was judged." in result.stderr
    assert f"not judged, {NO_VERDICT}: 4" in result.stderr
    assert "a small model may be no judge" in result.stderr


def test_json_is_all_there_is_on_stdout_and_the_key_is_nowhere(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda q, nth: completion(f"wrong key {KEY}") if nth == 0 else longest(q, nth))
    result = CliRunner().invoke(app, command(tmp_path, server, "--token-budget", "100000", "--json"))
    about = json.loads(result.stdout)
    assert about["languages"]["ko"]["n"] == 4
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 4
    assert KEY not in result.output + "".join(file.read_text() for file in files)


@pytest.mark.bad_input("evaluate")
def test_a_judge_whose_reply_repeats_the_key_does_not_get_it_into_the_files(serve: Serve, tmp_path: Path) -> None:
    judged(tmp_path, serve(lambda q, nth: completion(f"wrong key {KEY}")), ["aa"], ["a"])
    assert KEY not in "".join(file.read_text() for file in (tmp_path / "out").iterdir())


def test_the_estimate_comes_first_and_asks_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(longest)
    result = CliRunner().invoke(app, command(tmp_path, server, "--dry-run", "--price", "5"), catch_exceptions=False)
    assert "8 requests for 4 pairs, about" in result.stderr
    assert "at 5.0 per million" in result.stderr
    with pytest.raises(ValueError, match="--yes or --token-budget N is needed"):
        CliRunner().invoke(app, command(tmp_path, server), catch_exceptions=False)
    assert not server.bodies
    assert not (tmp_path / "out" / "verdicts.jsonl.partial").exists()


def test_the_estimate_is_about_what_is_used(serve: Serve, tmp_path: Path) -> None:
    server = serve(longest)
    a, b = answers(tmp_path / "a.jsonl", KO[:4]), answers(tmp_path / "b.jsonl", EN[:4])
    found = Judgement(a, b, behind(server)).estimate()
    sent = 0
    Judgement(a, b, behind(server)).run(tmp_path / "out")
    for body in server.bodies:
        sent += sum(len(turn["content"].encode()) for turn in body["messages"])
    assert found.requests == len(server.bodies)
    assert found.tokens == pytest.approx(sent / 4 + 80 * found.requests, rel=0.01)


@pytest.mark.bad_input("evaluate")
def test_no_server_says_what_to_do(tmp_path: Path) -> None:
    a, b = answers(tmp_path / "a.jsonl", ["aa"]), answers(tmp_path / "b.jsonl", ["a"])
    options = EngineOptions(model="m", base_url="http://127.0.0.1:1/v1", retries=0)
    with pytest.raises(EngineError, match=r"no connection \(--base-url\)"):
        Judgement(a, b, options).run(tmp_path / "out")
