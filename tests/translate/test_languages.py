"""Language codes: what a user may type, and what models call the same languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_clo.translate.engines.languages import by_key, english_name, model_code, normalise


@pytest.fixture(scope="module")
def m2m100() -> list[str]:
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    return list(FAIRSEQ_LANGUAGE_CODES["m2m100"])


@pytest.fixture(scope="module")
def nllb() -> list[str]:
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    return list(FAIRSEQ_LANGUAGE_CODES)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        *((typed, "ko") for typed in ("ko", "KO", "kor", "kor_Hang", "ko-KR", " ko ")),
        *((typed, "zh") for typed in ("zh", "zh-CN", "zho", "cmn", "zho_Hans", "zh-Hans-CN")),
        *((typed, "zh-Hant") for typed in ("zh-TW", "zh_HK", "zho_Hant", "zh-Hant")),
        ("pt_BR", "pt"),
        ("swh_Latn", "sw"),
        ("arb_Arab", "ar"),
        ("arz_Arab", "arz"),
        ("pes_Arab", "fa"),
        ("prs_Arab", "prs"),
        ("nob_Latn", "nb"),
        ("no", "no"),
        ("tgl_Latn", "tl"),
        ("fil", "tl"),
        ("twi_Latn", "tw"),
        ("aka_Latn", "ak"),
        ("pbt_Arab", "ps"),
        ("iw", "he"),
        ("jw", "jv"),
        ("sr-Latn", "sr-Latn"),
        ("srp_Cyrl", "sr"),
        ("en_XX", "en"),
        ("nso", "nso"),
    ],
)
def test_one_language_has_one_key(typed: str, key: str) -> None:
    assert normalise(typed) == key


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    "nonsense", ["", "english", "xx", "jp", "und", "mul", "zxx", "qqq", "2ko", "x-foo", "ko,de", "한국어", "root", "*"]
)
def test_nonsense_is_refused_with_what_is_accepted(nonsense: str) -> None:
    with pytest.raises(ValueError, match=r"is not the code of a language; accepted are ISO 639") as refused:
        normalise(nonsense)
    assert repr(nonsense) in str(refused.value)


@pytest.mark.bad_input("translate")
@given(st.text(max_size=12))
def test_any_text_has_a_key_that_stays_or_is_refused(text: str) -> None:
    try:
        key = normalise(text)
    except ValueError:
        return
    assert normalise(key) == key


def test_keys_of_models_codes_stay(m2m100: list[str], nllb: list[str]) -> None:
    for code in [*m2m100, *nllb]:
        assert normalise(normalise(code)) == normalise(code)


def test_no_two_codes_of_a_model_share_a_key(m2m100: list[str], nllb: list[str]) -> None:
    assert sorted(by_key(m2m100).values()) == sorted(m2m100)
    assert sorted(by_key(nllb).values()) == sorted(nllb)


def test_nllb_has_a_two_letter_key_wherever_m2m100_has(m2m100: list[str], nllb: list[str]) -> None:
    missing = set(by_key(m2m100)) - set(by_key(nllb))
    assert missing == {"br", "fy", "no"}  # NLLB has no Breton and no Frisian, and tells Bokmål and Nynorsk apart


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("ko", "kor_Hang"),
        ("sw", "swh_Latn"),
        ("yo", "yor_Latn"),
        ("id", "ind_Latn"),
        ("de", "deu_Latn"),
        ("zh", "zho_Hans"),
        ("zh-Hant", "zho_Hant"),
        ("ar", "arb_Arab"),
        ("fa", "pes_Arab"),
        ("no", "nob_Latn"),
        ("nn", "nno_Latn"),
        ("ms", "zsm_Latn"),
        ("sq", "als_Latn"),
        ("mg", "plt_Latn"),
        ("az", "azj_Latn"),
        ("azb", "azb_Arab"),
        ("et", "est_Latn"),
        ("lv", "lvs_Latn"),
        ("mn", "khk_Cyrl"),
        ("ne", "npi_Deva"),
        ("om", "gaz_Latn"),
        ("or", "ory_Orya"),
        ("ps", "pbt_Arab"),
        ("qu", "quy_Latn"),
        ("uz", "uzn_Latn"),
        ("yi", "ydd_Hebr"),
        ("tl", "tgl_Latn"),
        ("ku", "kmr_Latn"),
        ("ks", "kas_Arab"),
        ("ks-Deva", "kas_Deva"),
        ("kr", "knc_Latn"),
        ("tzm", "tzm_Tfng"),
        ("kor_Hang", "kor_Hang"),
    ],
)
def test_nllb_codes(nllb: list[str], key: str, code: str) -> None:
    assert model_code(key, nllb, "NLLB") == code


@pytest.mark.parametrize(
    ("key", "code"),
    [("ko", "ko"), ("zho_Hans", "zh"), ("nb", "no"), ("no", "no"), ("fil", "tl"), ("nso", "ns"), ("ns", "ns")],
)
def test_m2m100_codes(m2m100: list[str], key: str, code: str) -> None:
    assert model_code(key, m2m100, "M2M100") == code


def test_of_several_codes_for_one_language_the_plain_one_is_taken() -> None:
    codes = ["el_CY", "el", "zh_Latn", "zh", "translate", "zxx_xx_dtynoise"]
    assert by_key(codes) == {"el": "el", "zh": "zh", "zh-Latn": "zh_Latn"}


@pytest.mark.bad_input("translate")
def test_a_language_the_model_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="tiny does not know the language 'yo'; it knows de, ko, zh-Hant"):
        model_code("yo", ["ko", "zho_Hant", "deu_Latn"], "tiny")


@pytest.mark.bad_input("translate")
def test_one_script_is_not_taken_for_another() -> None:
    with pytest.raises(ValueError, match="does not know the language 'sr-Latn'"):
        model_code("sr-Latn", ["srp_Cyrl", "eng_Latn"], "tiny")


@pytest.mark.parametrize(
    ("code", "name"), [("ko", "Korean"), ("swh_Latn", "Swahili"), ("zh-TW", "Chinese (Traditional)"), ("yo", "Yoruba")]
)
def test_english_names(code: str, name: str) -> None:
    assert english_name(code) == name
