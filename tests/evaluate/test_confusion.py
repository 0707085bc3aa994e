"""Line-level and word-level pass rates: those of the published definition, and silence scores nothing."""

from __future__ import annotations

import random
import string
import subprocess
import sys
from collections import Counter

import pytest
from conftest import LANGUAGES, starter_rows
from english_words import get_english_words_set

from axolotl_clo.evaluate.confusion import AnswerScore, LanguageConfusion, has_word_rate, pass_rates
from axolotl_clo.evaluate.language import LanguageIdentifier

KOREAN = "오늘은 날씨가 아주 좋아서 우리는 숲으로 산책을 갑니다."
CHINESE = "今天天气很好，我们去森林里散步。"
GERMAN = "Das Wetter ist heute sehr schön und wir gehen spazieren."
ENGLISH = "The weather is very nice today and we are going for a walk."
CODE = ["```python", "for i in range(10): print(i, i * i)", "return [x for x in numbers if x > 0]", "```", "x = 1"]
OUTSIDE = ["Il fait très beau aujourd'hui et nous allons nous promener.", "xkqzv wjrtp qqzzx vbnmk lkjhg"]


# The definition, as the paper and its code state it: one answer at a time, nothing shared with the implementation.


def published(answers: list[str], language: str) -> tuple[list[str], float, float]:
    """What becomes of each answer, and the counts as line-level and word-level pass rates."""
    import jieba

    words = {word for word in get_english_words_set(["web2"]) if word.islower() and len(word) > 3}
    identifier = LanguageIdentifier()
    outcomes = []
    for answer in answers:
        answer = answer.split("\nQ:")[0].strip()
        answer = "".join(character for character in answer if character not in string.punctuation)
        answer = answer.replace("—", " ").replace("،", "")
        kept = []
        for line in answer.split("\n"):
            tokens = list(jieba.cut(line)) if language == "zh" else line.split()
            if len(tokens) >= 5:
                kept.append((line, tokens))
        if not kept:
            outcomes.append("skipped")
        elif any(identifier.identify(line) != language for line, _ in kept):
            outcomes.append("wrong line")
        elif language in ("ko", "zh") and any(token.strip() in words for _, tokens in kept for token in tokens):
            outcomes.append("English word")
        else:
            outcomes.append("passed")
    count = Counter(outcomes)
    line_level = 1 - count["wrong line"] / (len(answers) - count["skipped"])
    word_level = 1 - count["English word"] / (len(answers) - count["skipped"] - count["wrong line"])
    return outcomes, line_level, word_level


def written_answers(language: str, number: int) -> list[str]:
    """Short answers of one to six lines: most lines in the language, some odd, some in another."""
    draw = random.Random(language)
    texts = {code: [row["response"][code] for row in starter_rows()] for code in LANGUAGES}
    english = sorted({word.strip(string.punctuation) for text in texts["en"] for word in text.split()})

    def line(kind: str) -> str:
        own = draw.choice(texts[language])
        space = "" if language == "zh" else " "
        return {
            "own": own,
            "joined": own + space + draw.choice(texts[language]),
            "word": own.split()[0][:6],
            "few": " ".join(own.split()[: draw.randint(2, 6)]),
            "empty": draw.choice(["", "   ", "\t", "---", "**", "1. 2. 3. 4. 5. 6."]),
            "switched": own[: len(own) // 2] + f" {draw.choice(english)} " + own[len(own) // 2 :],
            "other": draw.choice(texts[draw.choice(LANGUAGES)]),
            "outside": draw.choice(OUTSIDE),
            "code": draw.choice(CODE),
            "question": "Q: " + own,
            "marked": f"* **{own}**\u2014`{own}`",
            "odd": own + draw.choice(["\x00", "\u200b", "\x1b[0m", "🙂 🙂 🙂 🙂 🙂", "،،،", "\u2028"]),
        }[kind]

    often = ["own"] * 8 + ["joined", "few", "few", "word", "empty", "empty", "switched", "marked", "odd"]
    seldom = ["other", "outside", "code", "question"]
    answers = []
    for _ in range(number):
        kinds = often + seldom * draw.choice([0, 0, 1])
        length = draw.randint(0, 5) if draw.random() > 0.1 else 0
        lines = [line(draw.choice(kinds)) for _ in range(length)] or [line(draw.choice(["word", "empty", "own"]))]
        answers.append(draw.choice(["\n", "\n", "\n\n", "\r\n"]).join(lines))
    return answers


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_rates_are_those_of_the_published_definition(language: str) -> None:
    answers = written_answers(language, 80)  # 560 in all
    outcomes, line_level, word_level = published(answers, language)
    expected = {"skipped": (None, None), "wrong line": (False, None), "English word": (True, False)}
    confusion = LanguageConfusion(language)
    scores = confusion.score(answers)
    assert [(s.line_pass, s.word_pass) for s in scores] == [expected.get(o, (True, True)) for o in outcomes]

    rates = confusion.rates(scores)
    assert rates.line == pytest.approx(line_level)
    assert (rates.skipped, rates.answers) == (outcomes.count("skipped"), 80)
    seen = {"skipped", "wrong line", "passed"}
    if language in ("ko", "zh"):
        seen |= {"English word"}
        assert rates.word == pytest.approx(word_level)
        assert rates.both == pytest.approx(2 / (1 / line_level + 1 / word_level))
    else:
        assert rates.word is rates.both is None
    assert set(outcomes) == seen  # so that each kind of answer was compared


def test_an_answer_scores_the_same_alone_and_among_others() -> None:
    answers = written_answers("ko", 40)
    confusion = LanguageConfusion("ko")
    assert [confusion.score([answer])[0] for answer in answers] == confusion.score(answers)


@pytest.mark.parametrize(
    ("answer", "language", "lines", "wrong_lines", "english_word"),
    [
        (KOREAN, "ko", 1, 0, False),
        (f"{KOREAN}\n\n{ENGLISH}\n{KOREAN}", "ko", 3, 1, False),  # what the whole hides, the lines show
        (f"{KOREAN[:-1]} actually.", "ko", 1, 0, True),
        (f"{KOREAN} Actually", "ko", 1, 0, False),  # a name is written like this
        (f"{KOREAN} the fox", "ko", 1, 0, False),  # three letters are too few
        (f"{KOREAN} API는 JSON으로", "ko", 1, 0, False),
        ("네, 좋아요.", "ko", 0, 0, False),
        (f"{KOREAN}\nQ: {KOREAN}\nA: {KOREAN}", "ko", 1, 0, False),
        ("xkqzv wjrtp qqzzx vbnmk lkjhg", None, 1, 1, False),  # in no language at all
        ("", None, 0, 0, False),
        (" \n\x00\x1b\n\r\n\u2028 ", None, 0, 0, False),
    ],
)
def test_what_is_found_in_an_answer(
    answer: str, language: str | None, lines: int, wrong_lines: int, english_word: bool
) -> None:
    assert LanguageConfusion("ko").score([answer]) == [AnswerScore(language, lines, wrong_lines, english_word)]


def test_code_between_fences_is_no_language_but_its_lines_are_wrong() -> None:
    """The benchmark knows no fences; the answer as a whole is still in its language."""
    answer = f"{KOREAN}\n```python\nfor i in range(10): print(i, i * i)\nreturn [x for x in numbers if x]\n```"
    assert LanguageConfusion("ko").score([answer]) == [AnswerScore("ko", 3, 2, False)]


def test_chinese_is_segmented() -> None:
    confusion = LanguageConfusion("zh")
    assert confusion.score([CHINESE, "你好。", f"{CHINESE}这是weather预报。", GERMAN]) == [
        AnswerScore("zh", 1, 0, False),
        AnswerScore("zh", 0, 0, False),
        AnswerScore("zh", 1, 0, True),
        AnswerScore("de", 1, 1, False),
    ]


@pytest.mark.parametrize("language", ["ko", "zh", "de"])
def test_answers_of_100_kb_are_scored(language: str) -> None:
    own = {"ko": KOREAN, "zh": CHINESE, "de": GERMAN}[language] + " "
    long = own * (100_000 // len(own.encode()))
    many = (own + "\n") * (100_000 // len(own.encode()))
    one_token = "ü字" * 20_000
    scores = LanguageConfusion(language).score([long, many, one_token])
    assert [score.line_pass for score in scores[:2]] == [True, True]
    assert scores[2].line_pass is (False if language == "zh" else None)


def test_silence_scores_nothing_and_is_counted() -> None:
    confusion = LanguageConfusion("ko")
    silent = confusion.rates(confusion.score(["", "네.", "```"]))
    assert silent == (0.0, 0.0, 0.0, 3, 3)
    partly = confusion.rates(confusion.score(["", KOREAN, "", ""]))
    assert partly == (1.0, 1.0, 1.0, 3, 4)
    assert confusion.rates(confusion.score([])) == (0.0, 0.0, 0.0, 0, 0)


def test_the_word_rate_is_of_the_answers_without_a_wrong_line() -> None:
    rates = pass_rates([True, True, True, False, None], [True, False, True, None, None])
    assert rates == (3 / 4, 2 / 3, pytest.approx(2 * (3 / 4) * (2 / 3) / (3 / 4 + 2 / 3)), 1, 5)
    assert pass_rates([False, False], [None, None]) == (0.0, 0.0, 0.0, 0, 2)
    assert pass_rates([True, False]) == (0.5, None, None, 0, 2)


def test_only_languages_not_in_latin_letters_have_a_word_rate() -> None:
    assert {code for code in (*LANGUAGES, "ar", "hi", "ru", "fr", "vi") if has_word_rate(code)} == {
        *("zh", "ko", "ar", "hi", "ru")
    }


def test_a_language_outside_the_default_set_joins_it() -> None:
    french = "Il fait très beau aujourd'hui et nous allons nous promener."
    assert LanguageConfusion("fr").score([french, GERMAN]) == [
        AnswerScore("fr", 1, 0, False),
        AnswerScore("de", 1, 1, False),
    ]


@pytest.mark.bad_input("tasks")
@pytest.mark.parametrize("language", ["ja", "th"])
def test_a_language_whose_words_cannot_be_counted_is_refused(language: str) -> None:
    with pytest.raises(ValueError, match=f"pass rates need words, and '{language}' is written without spaces"):
        LanguageConfusion(language)


def test_neither_the_segmenter_nor_the_word_list_is_loaded_where_it_is_not_needed() -> None:
    code = (
        "import sys; from axolotl_clo.evaluate.confusion import LanguageConfusion as C; "
        f"C('de').score([{GERMAN!r}]); C('ko').score([{KOREAN!r}]); "
        "print(sys.modules.keys() & {'jieba', 'english_words', 'torch'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
