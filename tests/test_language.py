"""Language identification: the seven languages are told apart, and doubt is said to be doubt."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from conftest import LANGUAGES, starter_rows
from py3langid import langid

from axolotl_clo.evaluate.language import LANGUAGES as DEFAULT
from axolotl_clo.evaluate.language import (
    MIN_CONFIDENCE,
    MIN_HALF_CONFIDENCE,
    MIN_SHARE_OF_BEST,
    LanguageIdentifier,
    supported,
)

GERMAN = "Das Wetter ist heute sehr schön und wir gehen im Wald spazieren."
ENGLISH = "The weather is very nice today and we are going for a walk."
FRENCH = "Bonjour, comment allez-vous aujourd'hui ? Il fait très beau."


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier()


def test_the_default_set_is_the_languages_of_the_starter_rows(identifier: LanguageIdentifier) -> None:
    assert identifier.languages == DEFAULT
    assert set(DEFAULT) == set(LANGUAGES) == set(starter_rows("test")[0]["response"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_starter_text_is_taken_for_another_language(identifier: LanguageIdentifier, language: str) -> None:
    rows = starter_rows("train") + starter_rows("test")
    found = [identifier.identify(row[side][language]) for row in rows for side in ("prompt", "response")]
    assert set(found) <= {language, None}
    assert found.count(language) / len(found) >= 0.99


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "123 456 - 7.8 %",
        "?!… 🙂",
        "xkqzv wjrtp qqzzx vbnmk lkjhg",
        "def f(x):\n    return x + 1",
        f"```python\n# {ENGLISH}\n```",
        f"```\n{ENGLISH}",  # a fence that generation cut off
        FRENCH,
        "これは日本語の文章です。",
        f"{GERMAN} {ENGLISH}",
        f"{ENGLISH} 오늘은 날씨가 아주 좋아서 우리는 숲으로 산책을 갑니다.",
    ],
)
def test_a_text_in_no_one_language_of_the_set_is_unknown(identifier: LanguageIdentifier, text: str) -> None:
    assert identifier.identify(text) is None


def test_code_between_fences_is_left_out_of_account(identifier: LanguageIdentifier) -> None:
    assert identifier.identify(f"{GERMAN}\n```python\n# {ENGLISH} {ENGLISH}\nprint('hello world')\n```") == "de"


def test_the_set_decides_what_can_be_found() -> None:
    assert LanguageIdentifier(["de", "fr"]).identify(FRENCH) == "fr"
    assert LanguageIdentifier(["de", "en"]).identify(FRENCH) is None


def test_a_code_given_twice_counts_once() -> None:
    assert LanguageIdentifier(["de", "en", "de"]).languages == ("de", "en")


@pytest.mark.bad_input("data")
@pytest.mark.parametrize("code", ["xx", "EN", "eng", "zxx", ""])
def test_an_unsupported_code_is_named_with_what_is_accepted(code: str) -> None:
    assert not supported(code)
    with pytest.raises(ValueError, match=rf"unsupported language '{code}': expected one of .*\bde\b.*\byo\b"):
        LanguageIdentifier(["en", code])


@pytest.mark.bad_input("data")
def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one ISO 639-1 code"):
        LanguageIdentifier([])


def texts_of_all_kinds() -> list[str]:
    """Whole, joined, cut, capital and random texts: some thousand."""
    draw = random.Random(0)
    rows = starter_rows("train")[::3]
    whole = [text for row in rows for side in ("prompt", "response") for text in row[side].values()]
    odd = [
        "",
        " ",
        "12 3",
        "A",
        "é",
        "한",
        "你好",
        "\ud800 abc def",
        "```x",
        "ＡＢＣ",
        "e\u0301a",
        "İSTANBUL",
        "\x00\x00",
    ]
    odd += [" ".join(whole[:80]), f"{'好' * 700} {ENGLISH * 9}", "a" * 5000]
    for _ in range(700):
        first, second = draw.choices(whole, k=2)
        odd.append(first[: draw.randrange(90)] + draw.choice(["", " ", "\n"]) + second[draw.randrange(90) :][:90])
    ranges = [(32, 127), (0x80, 0x600), (0x600, 0x3000), (0x3000, 0xD7FF), (0x10000, 0x1FFFF)]
    for _ in range(300):
        odd.append("".join(chr(draw.randrange(*draw.choice(ranges[: 1 + draw.randrange(5)]))) for _ in range(40)))
    return whole + odd + [text.upper() for text in whole[::5]]


def one_by_one(text: str, languages: tuple[str, ...]) -> str | None:
    """The rule, on the probabilities that the library itself gives for one text."""

    def best(text: str) -> tuple[str, float, float]:
        ranked = _library().rank(text)
        probability = dict(ranked)
        found = max(languages, key=lambda code: probability[code])
        total = probability["zxx"] + sum(probability[code] for code in languages)
        return found, probability[found] / total if total else 0.0, probability[found] / ranked[0][1]

    text = re.sub(r"```.*?(?:```|\Z)", " ", text, flags=re.DOTALL).strip()
    if not any(character.isalpha() for character in text):
        return None
    language, confidence, share = best(text)
    if confidence < MIN_CONFIDENCE or share < MIN_SHARE_OF_BEST:
        return None
    spaces = [i for i, character in enumerate(text) if character.isspace()]
    cut = min(spaces, key=lambda i: abs(i - len(text) // 2), default=len(text) // 2)
    cut = cut if abs(cut - len(text) // 2) <= len(text) / 4 else len(text) // 2
    (first, sure, _), (second, sure_too, _) = best(text[:cut]), best(text[cut:])
    return None if first != second and min(sure, sure_too) >= MIN_HALF_CONFIDENCE else language


def _library() -> langid.LanguageIdentifier:
    if not hasattr(_library, "model"):
        _library.model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)  # type: ignore[attr-defined]
    return _library.model  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("languages", [DEFAULT, ("sw", "en"), ("fr", "ja", "ru")], ids=" ".join)
def test_many_texts_at_once_are_identified_as_the_library_does_one_by_one(languages: tuple[str, ...]) -> None:
    texts = texts_of_all_kinds()
    texts = texts if languages == DEFAULT else texts[::4]
    found = LanguageIdentifier(languages).identify_many(texts)
    assert found == [one_by_one(text, languages) for text in texts]
    assert len(set(found)) > len(languages) / 2


def test_a_text_is_identified_alike_alone_and_among_others(identifier: LanguageIdentifier) -> None:
    texts = texts_of_all_kinds()[::7]
    assert [identifier.identify(text) for text in texts] == identifier.identify_many(texts)
    assert identifier.identify_many([]) == []


def test_texts_of_any_number_and_length_are_identified(identifier: LanguageIdentifier) -> None:
    texts = [GERMAN * 2000, ENGLISH, "", *[GERMAN, ENGLISH] * 3000]
    assert identifier.identify_many(texts) == ["de", "en", None, *["de", "en"] * 3000]


def test_the_librarys_automaton_remembers_no_more_than_six_bytes_and_nothing_beyond_a_separator() -> None:
    """What lets a text be cut into pieces: each step is one down the tree of n-grams, or that of the longest suffix."""
    model = _library()
    step = np.frombuffer(model.tk_nextmove, dtype=np.uint32).reshape(-1, 256)[np.array(model.tk_row)].astype(np.int64)
    depth, suffix = np.full(len(step), -1), np.zeros(len(step), dtype=np.int64)
    depth[0] = 0
    for level in range(1, 8):
        parents = np.flatnonzero(depth == level - 1)
        children = step[parents]
        new = depth[children] < 0
        depth[children[new]] = level
        if level > 1:
            suffix[children[new]] = step[suffix[parents]][new]
    assert depth.min() == 0
    assert depth.max() == 6
    down = depth[step] == depth[:, None] + 1
    assert np.array_equal(np.bincount(step[down], minlength=len(step))[1:], np.ones(len(step) - 1))
    assert (down | (step == step[suffix])).all()
    assert not step[:, 0xFF].any()
