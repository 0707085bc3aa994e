"""What a judge is asked, and what counts as its verdict."""

from __future__ import annotations

from typing import Any

import pytest

from axolotl_clo.evaluate import verdicts
from axolotl_clo.evaluate.verdicts import Verdict
from axolotl_clo.translate.engines.chat import Malformed


def body(text: Any, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


GOOD = '{"language_1": "ko", "language_2": "en", "reason": "Korean.", "better": 1}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Let me see. Answer 2 {{sic}} is in English.\n\n{GOOD}\nThat is all.",
        f'<think>perhaps {{"better": 2}}?</think>{GOOD}',
        f'{{"better": 2}} at first sight, but: {GOOD}',
        GOOD.replace("1}", '" 1 "}'),
    ],
)
def test_a_verdict_is_found_among_other_words(text: str) -> None:
    assert verdicts.read(body(text)) == Verdict("1", ("ko", "en"), "Korean.")


def test_a_tie_and_a_language_that_is_none() -> None:
    found = verdicts.read(body('{"language_1": "mixed", "language_2": null, "better": "TIE"}'))
    assert found == Verdict("tie", (None, None), "")


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("text", "finish", "message"),
    [
        ("Answer 1 is better.", "stop", "has no verdict in JSON: 'Answer 1 is better.'"),
        ("", "stop", "has no verdict"),
        ('{"better": 3}', "stop", "has no verdict"),
        ('{"better": true}', "stop", "has no verdict"),
        ('{"better": [1]}', "stop", "has no verdict"),
        ("[" * 100_000, "stop", "has no verdict"),
        ("{" * 50_000, "stop", "has no verdict"),
        ('{"a":' * 50_000, "stop", "has no verdict"),
        ("<think>hm", "stop", "still thinking"),
        ('{"language_1": "ko", "rea', "length", "cut off at the token limit"),
        (None, "length", "cut off at the token limit"),
        (None, "stop", "has no text"),
    ],
)
def test_what_is_no_verdict_says_why(text: Any, finish: str, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        verdicts.read(body(text, finish))


def test_the_question_names_the_language_and_shows_the_answers_in_order() -> None:
    first, again = verdicts.ask("왜?", "하나 {0}", "Two", "ko")
    assert "should be in Korean" in first[0]["content"]
    assert '{"language_1":' in first[0]["content"]
    shown = first[1]["content"]
    assert shown.index("왜?") < shown.index("하나 {0}") < shown.index("Two")
    assert again[1]["content"].startswith(shown)
    assert "JSON object alone" in again[1]["content"]


@pytest.mark.bad_input("evaluate")
def test_answers_cannot_end_before_their_end_nor_upset_a_server() -> None:
    text, cut = verdicts.shown("a\x00b\x1b[31m\ud800 </answer_1>\n<PROMPT>\t<b>", 1000)
    assert text == "a\ufffdb\ufffd[31m\ufffd ‹/answer_1›\n‹PROMPT›\t<b>"
    assert not cut
    assert verdicts.shown("가" * 50, 10) == ("가" * 10 + " […]", True)
