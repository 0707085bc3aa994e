"""Language codes: what a user types, this package's keys, and the codes of a translation model.

A key is the ISO 639-1 code of a language, or its ISO 639-3 code where there is none, with a script (`zh-Hant`) only
where the language is not written in its likely one. Models spell languages in many ways (`ko`, `kor_Hang`). Their
codes are read from their vocabularies and normalised to keys like anything a user types, so no table of models is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from langcodes import Language, LanguageTagError, standardize_tag

# What the library joins or keeps apart otherwise than ISO 639-1 and the models' authors do.
_KEYS = {
    "fil": "tl",
    "fuv": "ff",  # NLLB's only Fula
    "ns": "nso",  # M2M100's own spelling
    "pbt": "ps",  # NLLB's only Pashto
    "prs": "prs",  # Dari, not Persian of Afghanistan
    "quy": "qu",  # NLLB's only Quechua
    "tgl": "tl",
    "tl": "tl",
    "tw": "tw",  # Twi, not Akan
    "twi": "tw",
}

# One language under two keys: a model that lacks the first serves by the second.
_STAND_INS = {"ak": "tw", "nb": "no", "no": "nb", "tw": "ak"}

# Scripts that the likely one of a language contains.
_PARTS = {"Jpan": {"Hira", "Hrkt", "Kana"}, "Kore": {"Hang"}}

# Several, unknown or no languages, codes for private use, and what is longer than ISO 639 codes are.
_NOT_A_LANGUAGE = re.compile(r"mis|mul|und|zxx|q[a-t][a-z]|.{4,}")


@lru_cache(maxsize=4096)
def normalise(code: str) -> str:
    """The key of a language.

    Args:
        code: ISO 639-1 or 639-3 code, BCP 47 tag or FLORES code, with `-` or `_`, in any case; a territory tells the
            script (`zh-TW` is `zh-Hant`) and is dropped.

    Raises:
        ValueError: it is no code of a language.
    """
    try:
        tag = Language.get(standardize_tag(code.strip(), macro=True))
        language = _KEYS.get(_primary(code), tag.language or "und")
        known = Language.make(language=language).is_valid() and not _NOT_A_LANGUAGE.fullmatch(language)
    except LanguageTagError:
        known = False
    if not known:
        raise ValueError(
            f"{code!r} is not the code of a language; accepted are ISO 639 codes and BCP 47 tags, such as 'ko', "
            "'kor', 'kor_Hang' or 'zh-Hant'"
        )
    likely = Language.get(language).maximize().script
    script = tag.script or (tag.maximize().script if tag.territory else likely)
    return language if script == likely or script in _PARTS.get(likely or "", ()) else f"{language}-{script}"


def english_name(code: str) -> str:
    """What a language is called in English (`Korean`), by the names of the Unicode CLDR.

    Raises:
        ValueError: `code` is no code of a language.
    """
    return Language.get(normalise(code)).display_name()


def by_key(codes: Iterable[str]) -> dict[str, str]:
    """A model's codes by their keys; of several for one language the shortest, and what is no language left out."""
    keys: dict[str, str] = {}
    for code in sorted(codes, key=lambda code: (len(code), code)):
        try:
            keys.setdefault(normalise(code), code)
        except ValueError:  # vocabularies hold things like <2translate> too
            continue
    return keys


def model_code(wanted: str, codes: Sequence[str], model: str) -> str:
    """The code under which a model knows a language.

    Args:
        wanted: a key, anything `normalise` takes, or the model's own code.
        codes: codes of the model.
        model: what to call the model in an error.

    Raises:
        ValueError: the model does not know the language; names those it knows.
    """
    if wanted in codes:
        return wanted
    known = by_key(codes)
    key = normalise(wanted)
    for candidate in (key, _STAND_INS.get(key, key)):
        if candidate in known:
            return known[candidate]
    # Without a likely script to go by (`azb`), the only script the model has is meant.
    scripts = [candidate for candidate in known if candidate.split("-")[0] == key]
    if len(scripts) == 1:
        return known[scripts[0]]
    raise ValueError(f"{model} does not know the language {wanted!r}; it knows {', '.join(sorted(known))}")


def _primary(code: str) -> str:
    return code.strip().replace("_", "-").split("-")[0].lower()
