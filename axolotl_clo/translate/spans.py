r"""Which spans of a text must not be translated, and the text with them masked.

Hard spans are code, addresses, LaTeX, HTML and placeholders. Soft spans, which help to word a sentence, are numbers
with their unit, emphasis markers and brackets.

Masked, a hard span is one `SENTINEL` character, so that slicing a text slices its spans with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SENTINEL = "\ufffc"  # OBJECT REPLACEMENT CHARACTER

_TO = "(?s:.){0,20000}?"  # up to the nearest end; bounds keep many stray opening delimiters from taking minutes
_NEAR = "(?s:.){0,4000}?"
_EOL = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"  # what ends a line for `str.splitlines`
_NEW_BLOCK = r"[ \t]*(?:[\r\n]|\Z|[-+*>#]|\d+[.)])"
_TITLE = rf"""(?:"[^"{_EOL}]*"|'[^'{_EOL}]*'|\([^(){_EOL}]*\))"""
_DEFINED = r"<?[^\s<>]*(?:[/#]|\.[a-z])[^\s<>]*>?"  # an address, not the one word of `[Ann]: Hello`

# A span stands as the class of characters it may begin with, and the rest: the search can then skip to such characters,
# several times faster than trying every alternative everywhere. For one class, earlier rows win.
_HARD = [
    # Inline code; it may go over a line end, but not into the next block.
    ("`", rf"(?<!``)(?P<ticks>`*+)(?:[^`\n]|\n(?!{_NEW_BLOCK})|(?!`(?P=ticks)(?!`))`++)++`(?P=ticks)(?!`)"),
    # LaTeX: display, inline (as Pandoc tells it from prices), environments, commands. Before it, ${NAME} and $NAME.
    ("$", rf"\{{[^{{}}`{_EOL}]{{0,60}}\}}"),
    ("$", rf"\${_TO}\$\$"),
    ("$", rf"(?![\s$])(?:\\.|[^$\\{_EOL}])+(?<!\s)\$(?!\d)"),
    ("$", r"[A-Z][A-Z0-9_]+(?![A-Za-z0-9$])"),
    (r"\\", rf"\({_NEAR}\\\)"),
    (r"\\", rf"\[{_NEAR}\\\]"),
    (r"\\", rf"begin\{{(?P<env>[A-Za-z]+\*?)\}}{_TO}\\end\{{(?P=env)\}}"),
    (r"\\", rf"[A-Za-z]+\*?(?:\[[^\]{_EOL}]*\])?(?:\{{(?:[^{{}}{_EOL}]|\{{[^{{}}{_EOL}]*\}})*\}})*"),
    (r"\\", r"[!-/:-@\[-`{-~]"),  # a backslash escape of Markdown
    # HTML: comments, elements that hold code, instructions, declarations, special tokens, tags, <addresses>, entities.
    ("<", rf"!--{_TO}-->"),
    ("<", rf"(?P<raw>(?i:script|style|pre|textarea|code|kbd|samp|var|math|svg))\b[^<>]{{0,1000}}>{_TO}</(?P=raw)\s*>"),
    ("<", rf"\?{_TO}\?>"),
    ("<", r"![A-Za-z][^<>]{0,1000}>"),
    ("<", rf"\|[^<>|{_EOL}]{{1,60}}\|>"),
    ("<", r"/?[A-Za-z][\w:.-]{0,60}(?:\s[^<>]{0,1000})?/?>"),
    ("<", r"[^\s<>]{1,1000}[@:][^\s<>]{0,1000}>"),
    ("&", r"(?:[A-Za-z][A-Za-z0-9]{1,31}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});"),
    # Placeholders: {{name}}, {name}, {0}, {% if %}, %s, %(name)s, %.2f, [NAME].
    ("{", rf"\{{[^{{}}`{_EOL}]{{0,80}}\}}\}}"),
    ("{", rf"[^{{}}`{_EOL}]{{0,60}}\}}"),
    ("｛", rf"[^{{}}｛｝`{_EOL}]{{0,60}}｝"),
    ("%", r"(?<![\d%].)(?:\([A-Za-z_]\w*\))?[#0+-]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa](?![A-Za-z])"),
    # Link definition, then what stands behind the text of a link: its target or its label.
    (r"\[", rf"(?<=^.)[^\[\]{_EOL}]{{1,200}}\]:[ \t]*{_DEFINED}(?:[ \t]+{_TITLE})?(?=[ \t]*\r?$)"),
    ("(", rf"(?<=\].)[ \t]*(?:<[^<>{_EOL}]*>|(?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*)(?:[ \t]+{_TITLE})?[ \t]*\)"),
    (r"\[", rf"(?<=\].)[^\[\]{_EOL}]*\]"),
    (r"\[", rf"[^\[\]{_EOL}]{{1,200}}\]\[\]"),
    (r"\[", r"/?[A-Z][A-Z0-9_ /-]{1,60}\](?![(\[])"),
    (r"\[", r"\^[^\[\]\s]{1,60}\](?!:)"),  # footnote
    (r"\[", r"\d+(?:[,–-]\s?\d+)*\]"),  # citation
    (SENTINEL, ""),  # one that stands in the text already
]

_PREFIXED = "[kKMGTPmcdnµμ]?(?:m|g|W|Wh|Hz|J|N|Pa|eV|B|L|l|mol|cal|Ω)|[kMGTmµμ](?:V|A|Ah|b|bit|bps)|[KMGT]iB|[mnµμ]s|V"
_UNIT = rf"(?:{_PREFIXED}|ha|min|hr?|lbs?|oz|ft|mi|yd|mph|rpm|dpi|px|pt|dB|fps|ppm|ppb|psi)"
_POWER = r"(?:[²³]|\^[23])?"
_NUMBER_REST = (
    r"[0-9]*+(?:[.,:/][0-9]++)*+(?:[eE][-+]?[0-9]++)?+"
    rf"(?:[ \u00a0\u202f]?(?:%|‰|°(?:[ ]?[CFK])?|{_UNIT}{_POWER}(?:/(?:{_UNIT}|s){_POWER})?)(?![A-Za-z0-9])"
    r"|[kKMBx×](?![A-Za-z0-9]))?+(?![A-Za-z0-9])"
)
# A digit inside a word (H2O, v2) is part of the word; a sign stands behind a space.
_NUMBERS = [
    ("0-9", rf"(?<![A-Za-z0-9].){_NUMBER_REST}"),
    (r"\-+−±", rf"(?<![^\s(].)[$€£¥₩₹]?[0-9]{_NUMBER_REST}"),
    ("$€£¥₩₹₽฿₫₺₴₦", rf"[ \u00a0]?[0-9]{_NUMBER_REST}"),
]
_MARKERS = [("*", r"\**"), ("_", "_*"), ("~", "~+"), ("!", r"\["), ("`", "`*"), (r"\[\]|{}", ""), (SENTINEL, "")]

_DOMAIN = r"\.(?:com|org|net|edu|gov|io|dev|ai|app)(?![A-Za-z0-9])"
_URL = r"[^\s<>\"`|\\^\[\](){}，。、；：！？（）「」『』【】《》“”‘’…]"
_URL_GROUP = rf"\({_URL}{{0,500}}\)|\{{[^\s{{}}]{{0,100}}\}}"
_URL_REST = rf"(?:{_URL}|{_URL_GROUP})*(?:(?![.,;:!?'*_~]){_URL}|{_URL_GROUP})"
_WORDS = [
    rf"(?:[A-Za-z][A-Za-z0-9+.-]{{1,15}}://|www\.){_URL_REST}",
    r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,9}",
    rf"[A-Za-z0-9-]{{1,63}}(?:\.[A-Za-z0-9-]{{1,63}}){{0,9}}{_DOMAIN}(?:/(?:{_URL_REST})?)?",
    r"[A-Za-z0-9]++(?:_++[A-Za-z0-9]++)+",  # snake_case
]


def _any_of(rows: Iterable[tuple[str, str]]) -> str:
    rest: dict[str, list[str]] = {}
    for first, pattern in rows:
        rest.setdefault(first, []).append(pattern)
    choices = "|".join(f"(?<=[{first}])(?:{'|'.join(patterns)})" for first, patterns in rest.items())
    return f"[{''.join(rest)}](?:{choices})"


_HARD_SPAN = re.compile(_any_of(_HARD), re.MULTILINE)
_HARD_SPAN_OR_WORD = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_WORDS)})|{_any_of(_HARD)}", re.MULTILINE)
_NUMBER = re.compile(_any_of(_NUMBERS))
SOFT = re.compile(_any_of([*_MARKERS, *_NUMBERS]))
_HAS_DOMAIN = re.compile(_DOMAIN)
_SPECIAL = re.compile(rf"[`$\\<&{{}}｛%\[\]*_~|@{SENTINEL}]")
_DIGIT = re.compile("[0-9]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]{5}")  # longer than any unit


def is_plain(text: str) -> bool:
    """Whether the text surely holds no protected span but numbers."""
    return not _SPECIAL.search(text) and not _has_words(text)


def has_number(text: str) -> bool:
    return _DIGIT.search(text) is not None


def has_letters(text: str) -> bool:
    """Whether there is anything to translate: a letter that is no unit of a number."""
    if _WORD.search(text):
        return True
    return bool(_LETTER.search(text) and (not has_number(text) or _LETTER.search(_NUMBER.sub("", text))))


def _has_words(text: str) -> bool:
    return "://" in text or "@" in text or "_" in text or "www." in text or _HAS_DOMAIN.search(text) is not None


def mask(text: str) -> tuple[str, list[str]]:
    """The text with each hard span as one `SENTINEL`, and those spans in order."""
    if is_plain(text):
        return text, []
    spans: list[str] = []

    def take(match: re.Match[str]) -> str:
        spans.append(match.group())
        return SENTINEL

    pattern = _HARD_SPAN_OR_WORD if _has_words(text) else _HARD_SPAN
    return pattern.sub(take, text), spans


def restore(text: str, spans: Sequence[str]) -> str:
    """The reverse of `mask`."""
    if not spans:
        return text
    parts = text.split(SENTINEL)
    return "".join(part for pair in zip(parts, (*spans, ""), strict=True) for part in pair)


def spans_in_order(text: str) -> list[str]:
    """Every protected span of the text, hard and soft."""
    masked, hard = mask(text)
    spans = iter(hard)
    return [next(spans) if match.group() == SENTINEL else match.group() for match in SOFT.finditer(masked)]


def unbroken(text: str, pairs: bool) -> list[tuple[int, int]]:
    """Where a masked text is not to be cut: in numbers and markers, with `pairs` also within emphasis and brackets."""
    if not has_number(text) and is_plain(text):
        return []
    ranges: list[tuple[int, int]] = []
    opened: dict[str, int] = {}
    for match in SOFT.finditer(text):
        start, end = match.span()
        ranges.append((start, end))
        token = match.group().lstrip("!")
        if not pairs or token[0] not in "[]*_~":
            continue
        key = "[" if token == "]" else token  # nosec B105 # no password
        if key in opened and token != "[" and not text[start - 1].isspace():  # nosec B105 # no password
            ranges.append((opened.pop(key), end))
        elif token != "]" and not text[end : end + 1].isspace():  # nosec B105 # no password
            opened[key] = start
    return ranges
