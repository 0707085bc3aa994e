"""Language identification: the seven languages are told apart, and doubt is said to be doubt."""

from __future__ import annotations

import pytest
from conftest import LANGUAGES, starter_rows

from axolotl_clo.evaluate.language import LANGUAGES as DEFAULT
from axolotl_clo.evaluate.language import LanguageIdentifier, supported

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


@pytest.mark.parametrize("code", ["xx", "EN", "eng", "zxx", ""])
def test_an_unsupported_code_is_named_with_what_is_accepted(code: str) -> None:
    assert not supported(code)
    with pytest.raises(ValueError, match=rf"unsupported language '{code}': expected one of .*\bde\b.*\byo\b"):
        LanguageIdentifier(["en", code])


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one ISO 639-1 code"):
        LanguageIdentifier([])
