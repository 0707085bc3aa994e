"""What a document sends to an engine, and that everything else comes back byte for byte."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest
from benchmarks.protection import ENGINES, SPANS, changed, translate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axolotl_clo.translate.document import Document, protected_spans
from axolotl_clo.translate.engines import Failure

WORDS = ["the", "red", "house", "stands", "on", "Maria", "café", "naïve", "übung", "写真", "слово", "ندى"]


def requests(text: str, **options: object) -> list[str]:
    """What the engine is asked at first."""
    return Document(text, **options).pending()  # type: ignore[arg-type]


def rounds(text: str, engine: Callable[[str], str | Failure]) -> list[list[str]]:
    """What the engine is asked, time after time."""
    document, asked = Document(text), []
    while segments := document.pending():
        asked.append(segments)
        document.accept([engine(segment) for segment in segments])
    return asked


def structure(text: str) -> list[tuple[str, bool, str]]:
    """For each line what it begins with, whether it is blank, and what it ends with."""
    prefix = re.compile(r"[ \t]*(?:(?:>|[-+*]|\d{1,9}[.)]|#{1,6})[ \t]+)*")
    lines = text.splitlines(keepends=True)
    return [(prefix.match(line)[0], not line.strip(), line[len(line.rstrip()) :]) for line in lines]  # type: ignore[index]


# --- documents made of pieces ---


@st.composite
def sentences(draw: st.DrawFn) -> tuple[str, list[str]]:
    pieces = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
    spans = []
    for kind in draw(st.lists(st.sampled_from(SPANS), max_size=3)):
        spans.append(kind(draw(st.integers(1000, 9999))))
        pieces.insert(draw(st.integers(0, len(pieces))), spans[-1])
    wrap = draw(st.sampled_from([None, None, "**{}**", "_{}_", "[{}](http://a.b/c_(d) 'title')", "![{}](pic.png)"]))
    if wrap:
        at = draw(st.integers(0, len(pieces) - 1))
        pieces[at] = wrap.format(pieces[at])
    return " ".join(pieces) + draw(st.sampled_from([".", "!", "?", "", ". And more."])), spans


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    (one, spans), (two, more) = draw(sentences()), draw(sentences())
    code = f"x = 'the house' # {draw(st.integers(1000, 9999))}"
    lines, verbatim = draw(
        st.sampled_from(
            [
                ([one, two], []),
                ([f"{one}  ", f"{two} \\"], []),
                ([f"## {one}", "", two], []),
                ([one, "=====", two, "-----"], []),
                ([f"- {one}", f"  - {two}", "    * deep", "      1. deeper"], []),
                ([f"1. {one}", f"2) {two}", "   + inner", "- [ ] to do", "- [x] done"], []),
                ([f"> {one}", ">", f"> > - {two}"], []),
                ([f"| {one} | b |", "|:---|---:|", f"| c | {two} |"], []),
                (["---", one, "***", two], []),
                (["```python", code, "", code, "```", f"{one} {two}"], [code, "```python"]),
                ([one, "~~~", code, "``` {0}", "~~~", two], [code, "``` {0}"]),
                ([f"- {one}", "  ```", f"  {code}", "  ```", two], [code]),
                ([one, "", f"    {code}", f"\t{code}", "", two], [code]),
                (["$$", f"\\text{{{code}}}", "$$", f"{one} {two}"], [code]),
                (["\\begin{align}", code, "\\end{align}", one, two], [code]),
                ([f"<!-- {code}", f"{code} -->", one, two], [code]),
                ([f"[ref]: http://a.b/{one[:2].strip()} 'T'", "", one, two], []),
            ]
        )
    )
    return lines, [*spans, *more, *verbatim]


@st.composite
def markdown(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A document and spans in it."""
    parts = draw(st.lists(blocks(), min_size=1, max_size=4))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text = (end * 2).join(end.join(lines) for lines, _ in parts) + draw(st.sampled_from(["", end, end * 3]))
    return text, [span for _, spans in parts for span in spans]


ANY_TEXT = st.lists(
    st.sampled_from(
        [
            *(*WORDS, *" \n\t.!?,:;-*_~`#>|[](){}<>$%&\\/@'\"0123456789😀１", "\r\n", "\n\n", "    ", "```", "~~~"),
            *("$$", "**", "{0}", "{ 1 }", "｛2｝", "\ufffc", "\u2028", "\x85", "- ", "1. ", "http://a.b/c", "](x)"),
            *("<!--", "-->", "5 km"),
        ]
    ),
    max_size=40,
).map("".join)
OPTIONS = st.sampled_from([{}, {"unit": "line"}, {"max_chars": 30}, {"unit": "line", "max_chars": 60}])
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@given(ANY_TEXT | st.text() | markdown().map(lambda made: made[0]), OPTIONS)
@CALM
def test_an_engine_that_changes_nothing_gives_the_text_back(text: str, options: dict[str, object]) -> None:
    document = Document(text, **options)  # type: ignore[arg-type]
    while segments := document.pending():
        assert all(segment.strip() == segment and len(segment.splitlines()) == 1 for segment in segments)
        assert all(len(segment) <= options.get("max_chars", 400) for segment in segments)
        document.accept(segments)
    assert document.text("es") == text


@given(markdown())
@CALM
def test_spans_and_lines_survive_any_engine(made: tuple[str, list[str]]) -> None:
    source, spans = made
    for name, engine in ENGINES.items():
        translation, _ = translate(source, engine, "zh" if name == "no spaces, no words" else "es")
        assert changed(spans, source, translation) == [], name
        assert not Counter(protected_spans(source)) - Counter(protected_spans(translation)), name
        assert structure(translation) == structure(source), name


@given(ANY_TEXT)
@CALM
def test_line_ends_survive_any_engine_in_any_text(text: str) -> None:
    ends = [line[len(line.rstrip()) :] for line in text.splitlines(keepends=True)]
    for name, engine in ENGINES.items():
        translation, _ = translate(text, engine)
        assert [line[len(line.rstrip()) :] for line in translation.splitlines(keepends=True)] == ends, name


# --- what is sent ---


@pytest.mark.parametrize(
    "span",
    [
        "`the house`",
        "``the ` house``",
        "`` ` ``",
        "http://the.house/a_(b)",
        "https://example.com/{id}/x?y=1#z",
        "www.house.org",
        "example.com/the/house",
        "the.house@example.com",
        "<the.house@example.com>",
        "$the + house$",
        "$$the + house$$",
        r"\(the house\)",
        r"\[the house\]",
        r"\begin{align*}the &= house\end{align*}",
        r"\frac{the}{hou_{s}e}",
        "<a href='the house'>",
        "</div>",
        "<br/>",
        "<code>the house</code>",
        "<!-- the house -->",
        "&nbsp;",
        "<|im_start|>",
        "<NAME>",
        "<your name>",
        "[NAME]",
        "[/INST]",
        "{name}",
        "{{ the house }}",
        "{% if house %}",
        "${HOUSE}",
        "$HOUSE",
        "%s",
        "%(house)s",
        "%-10.2f",
        "{0}",
        "{ 12 }",
        "｛3｝",
        "[^1]",
        "[12]",
        "the_house",
        r"\*",
        "\ufffc",
    ],
)
def test_hidden_from_the_engine(span: str) -> None:
    text = f"Before {span} there is more."
    assert requests(text) == ["Before {0} there is more."]
    assert span in protected_spans(text)
    for engine in ENGINES.values():
        assert translate(text, engine)[0].count(span) == 1


@pytest.mark.parametrize(
    "number",
    [
        *("5 km", "3.5 %", "$20", "10:30", "2.5kg", "-5 °C", "1,000.50", "1/2", "20%", "5 m/s²", "€ 5", "1.5e-3"),
        *("64 GiB", "1.2.3", "10k", "99", "3\u00a0mm"),
    ],
)
def test_numbers_are_shown_and_keep_their_bytes(number: str) -> None:
    text = f"It was {number} then."
    assert protected_spans(text) == [number]
    assert requests(text) == [text]
    for engine in ENGINES.values():
        assert number in translate(text, engine)[0]


@pytest.mark.parametrize("word", ["H2O", "1st", "1990s", "MP3", "5th"])
def test_digits_inside_words_may_change(word: str) -> None:
    assert protected_spans(f"The {word} here") == []


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("# Title #", ["Title"]),
        ("   ###### Deep title", ["Deep title"]),
        ("Title\n=====\nText", ["Title", "Text"]),
        ("- one\n  * two\n    + three\n10. four\n2) five", ["one", "two", "three", "four", "five"]),
        ("A. one\nb) two\n(iv) three\n• four\n– five", ["one", "two", "three", "four", "five"]),
        ("- [ ] open\n- [x] done", ["open", "done"]),
        ("> one\n> > - two", ["one", "two"]),
        ("| a b | c |\n|:--|---|\n| d\\|e | 5 |", ["a b", "c", "d{0}e"]),
        ("one\n\n---\n\n* * *\ntwo", ["one", "two"]),
        ("one  \ntwo\\\nthree\t\r\n", ["one", "two", "three"]),
        ("**Term:** what it is.\n- **Other**: more", ["Term:", "what it is.", "Other", "more"]),
        ("**All bold. Two sentences.**", ["All bold.", "Two sentences."]),
        ("- [Whole link](http://a.b)", ["Whole link"]),
        ("See [the *text*](http://a.b 'T') and ![a picture](p.png).", ["See [the *text*]{0} and ![a picture]{1}."]),
        ("See [the text][ref] or [it][].", ["See [the text]{0} or {1}."]),
        ("[ref]: http://a.b 'A title'\n[^1]: A footnote.", ["A footnote."]),
        ("```py\nthe house\n```\nText\n~~~\nthe house", ["Text"]),
        ("Text\n\n    the house\n\n- item\n\n      the house", ["Text", "item"]),
        ("- item\n\n    the same item", ["item", "the same item"]),
        ("Let $$\nx = \\text{the house}\n$$ be.", ["Let", "be."]),
        ("<pre>\nthe house\n</pre> Text", ["Text"]),
        ("`the\nhouse` Text", ["Text"]),
        ("A ` stray\n\ntick ` here", ["A ` stray", "tick ` here"]),
        ("It costs $5 or $10, even $ 15.", ["It costs $5 or $10, even $ 15."]),
        (
            "One sentence. Two: http://a.b/c.d! Ask Dr. Smith. Yes?",
            ["One sentence.", "Two: {0}!", "Ask Dr. Smith.", "Yes?"],
        ),
        ("He said **no. Never** again. Then he left.", ["He said **no. Never** again.", "Then he left."]),
        ("5 km\n`code`: {0}\n123 - 456\n***\n\n ", []),
        ("", []),
    ],
)
def test_what_is_sent(text: str, sent: list[str]) -> None:
    assert requests(text) == sent
    assert translate(text, ENGINES["identity"]) == (text, [])


def test_a_line_as_unit() -> None:
    text = "- One sentence. Another.\n\nThird `x`. Fourth."
    assert requests(text, unit="line") == ["One sentence. Another.", "Third {0}. Fourth."]
    assert requests(text, unit="line", max_chars=16) == ["One sentence.", "Another.", "Third {0}.", "Fourth."]


@pytest.mark.parametrize(
    ("text", "max_chars", "sent"),
    [
        ("one two three, four five six", 20, ["one two three,", "four five six"]),
        ("one two three four five six", 20, ["one two three four", "five six"]),
        ("abcdefghijklmnopqrstuvwxyz", 20, ["abcdefghijklmnopqrst", "uvwxyz"]),
        ("about 3.14159265358979 or so", 15, ["about", "or so"]),
        ("`a long piece of code in here` is hidden", 20, ["{0} is hidden"]),
    ],
)
def test_long_sentences_are_cut(text: str, max_chars: int, sent: list[str]) -> None:
    assert requests(text, max_chars=max_chars) == sent
    document = Document(text, max_chars=max_chars)
    document.accept(document.pending())
    assert document.text("es") == text


# --- what is asked again ---


def test_a_changed_number_is_asked_again_hidden() -> None:
    asked = rounds("It is 3.5 km and 7 more.", ENGINES["decimal comma"])
    assert asked == [["It is 3.5 km and 7 more."], ["It is {0} and 7 more."]]


@pytest.mark.parametrize("broken", ["See that house there.", "See ** that house ** there.", "See that** **house."])
def test_broken_emphasis_is_asked_again_hidden(broken: str) -> None:
    text = "See **that house** there."
    assert rounds(text, lambda segment: broken if segment == text else segment)[1:] == [["See {0}that house{1} there."]]


def test_what_fails_again_is_cut_at_the_spans() -> None:
    def engine(segment: str) -> str:
        return re.sub(r"\{\d\}|[0-9*]", "", segment).upper()

    text = "See `x` and **that house** at 5 km."
    assert rounds(text, engine) == [
        ["See {0} and **that house** at 5 km."],
        ["See", "and **that house** at 5 km."],
        ["and {0}that house{1} at {2}."],
        ["and", "that house", "at"],
    ]
    assert translate(text, engine) == ("SEE `x` AND **THAT HOUSE** AT 5 km.", [])


def test_new_numbers_are_welcome() -> None:
    assert translate("On May 5 two came.", lambda _: "5月5日来了2人。", "zh") == ("5月5日来了2人。", [])


def test_a_translation_does_not_become_a_list() -> None:
    def engine(segment: str) -> str:
        return segment.replace(" was", ". was")

    assert rounds("1990 was good.", engine) == [["1990 was good."], ["{0} was good."], ["was good."]]
    assert translate("1990 was good.", engine) == ("1990 was good.", [])


@pytest.mark.parametrize(
    "translation", ["- Hola", "# Hola", "> Hola", "1) Hola", "**Hola**", "`Hola`", "{0} Hola", "<b>Hola"]
)
def test_markup_is_not_added(translation: str) -> None:
    failure = "the translation adds markup or a placeholder"
    assert translate("Hello there", lambda _: translation) == ("Hello there", [failure])


def test_a_price_does_not_begin_latex() -> None:
    translations = {"It costs $20.": "价格为$20。", "Use {0} or {1}.": "使用{0}或{1}。"}
    translation, failures = translate("It costs $20. Use $x$ or $y$.", translations.__getitem__, "zh")
    assert (translation, failures) == ("价格为$20。使用 $x$或 $y$。", [])


def test_a_word_does_not_grow_onto_a_url() -> None:
    translation, failures = translate("Look at https://a.b/c now.", lambda _: "{0}에서 보세요.", "ko")
    assert (translation, failures) == ("https://a.b/c 에서 보세요.", [])


# --- failures ---


@pytest.mark.bad_input("translate")
def test_failures_leave_the_source() -> None:
    document = Document("One is. Two is.\nThree is.")
    document.accept(["Uno.", Failure("refused"), " \n "])
    assert document.pending() == []
    assert document.text("es") == "Uno. Two is.\nThree is."
    assert document.failures == ["refused", "empty translation"]


def test_line_breaks_in_a_translation_become_spaces() -> None:
    assert translate("One is.", lambda _: " Uno \r\n\n dos\u2028tres\n") == ("Uno  dos tres", [])


@pytest.mark.bad_input("translate")
def test_as_many_translations_as_segments() -> None:
    with pytest.raises(ValueError, match="1 translations for 2 segments"):
        Document("One. Two.").accept(["Uno."])


@pytest.mark.bad_input("translate")
def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="unit: accepted are 'sentence' and 'line', got 'word'"):
        Document("x", unit="word")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_chars"):
        Document("x", max_chars=0)


def test_text_that_is_no_unicode_is_a_failure() -> None:
    document = Document("One \ud800 is.")
    assert document.pending() == []
    assert document.text("es") == "One \ud800 is."
    assert document.failures == [r"character 4 is no Unicode: '\ud800'"]


# --- between sentences ---


@pytest.mark.parametrize(
    ("source", "language", "engine", "target", "expected"),
    [
        ("One. Two.  Three.", "en", {"One.": "一。", "Two.": "二。", "Three.": "三。"}, "zh", "一。二。三。"),
        ("One. Two.", "en", {"One.": "いち。", "Two.": "に。"}, "ja", "いち。に。"),
        ("One. Two.", "en", {"One.": "一。", "Two.": "二。"}, "zh-Hant", "一。二。"),
        ("One. Two.  Three.", "en", {"One.": "하나.", "Two.": "둘.", "Three.": "셋."}, "ko", "하나. 둘.  셋."),
        ("One.\tTwo.\nThree.", "en", {"One.": "一。", "Two.": "二。", "Three.": "三。"}, "zh", "一。\t二。\n三。"),
        ("One. **Two.** Three.", "en", {"One.": "一。", "Two.": "二。", "Three.": "三。"}, "zh", "一。 **二。** 三。"),
        ("One. Two.", "en", {"One.": "One.", "Two.": "二。"}, "zh", "One. 二。"),
        ("一。二！三", "zh", {"一。": "One.", "二！": "Two!", "三": "Three"}, "en", "One. Two! Three"),
        ("一。二！", "zh", {"一。": "一。", "二！": "Two!"}, "en", "一。Two!"),
    ],
)
def test_the_space_between_sentences_suits_the_target(
    source: str, language: str, engine: dict[str, str], target: str, expected: str
) -> None:
    document = Document(source, source=language)
    document.accept([engine[segment] for segment in document.pending()])
    assert document.text(target) == expected


# --- a real engine ---


@pytest.mark.skipif(not shutil.which("apertium"), reason="apertium is not installed")
def test_apertium_keeps_urls_and_code() -> None:
    def apertium(segments: list[str]) -> list[str]:
        command = ["apertium", "-u", "-f", "line", "eng-spa"]
        run = subprocess.run(command, input="\n".join(segments) + "\n", capture_output=True, text=True, check=False)
        if run.returncode:
            pytest.skip(f"apertium has no eng-spa: {run.stderr.strip()}")
        return run.stdout.splitlines()

    text = (
        "# The red house\n\nThe house is at http://a.b/c and `the house` costs $20.5 or 3 %.\n"
        "- Write to the.house@a.org, {name}!\n- The **red house** is [here](http://the.house/a).\n"
    )
    document = Document(text)
    while segments := document.pending():
        document.accept(apertium(segments))
    translation = document.text("es")
    assert "casa" in translation
    assert document.failures == []
    assert Counter(protected_spans(translation)) == Counter(protected_spans(text))
    assert structure(translation) == structure(text)
