"""The filter: what a bad translation looks like is found, what a good one looks like is kept."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from axolotl_clo.datasets import starter_folder
from axolotl_clo.translate.corpus import MIN_ROWS
from axolotl_clo.translate.quality import Corpus, Pair, Scorer, Thresholds, reason, round_trip_chrf

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import quality_filter as lafand

ENGLISH = "The weather is very nice today and we are going for a walk in the woods."
GERMAN = "Das Wetter ist heute sehr schön und wir machen einen Spaziergang im Wald."
KOREAN = "오늘은 날씨가 아주 좋아서 우리는 숲으로 산책을 갑니다."
CHINESE = "今天天气很好，我们要去树林里散步。"
INVENTED = ("bem", "toi")  # languages that are not identified
OFF = Thresholds(
    check_language=False,
    **{field.name: None for field in fields(Thresholds) if field.name != "check_language"},  # type: ignore[arg-type]
)


def score(source: str, target: str, language: str = "de") -> dict[str, Any]:
    return Scorer("en", language).score([([source], [target])])[0]


def why(source: str, target: str, language: str = "de", **thresholds: Any) -> tuple[str, str] | None:
    return reason(score(source, target, language), Thresholds(**thresholds))


def starter_pairs(language: str, split: str) -> list[Pair]:
    lines = (starter_folder() / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        ([row["prompt"]["en"], row["response"]["en"]], [row["prompt"][language], row["response"][language]])
        for row in rows
    ]


def judge(pairs: list[Pair], language: str, source: str = "en") -> list[tuple[str, str] | None]:
    scores = Scorer(source, language).score(pairs)
    more = Corpus.fit(pairs, scores).score(pairs)
    return [reason({**own, **others}, Thresholds()) for own, others in zip(scores, more, strict=True)]


def invented(rows: int, spaced: bool = True) -> list[Pair]:
    """Sentences in an invented language, each word of which stands for an English one, in another order."""
    numbers = random.Random(0)
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    english = ["".join(numbers.choices(syllables, k=3)) for _ in range(600)]
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 900)]
    foreign = ["".join(numbers.choices(syllables if spaced else signs, k=3 if spaced else 2)) for _ in english]
    weights = [1 / (rank + 1) for rank in range(len(english))]
    pairs: list[Pair] = []
    for _ in range(rows):
        words = numbers.choices(range(len(english)), weights, k=numbers.randint(6, 20))
        source = " ".join(english[word] for word in words) + "."
        numbers.shuffle(words)
        target = (" " if spaced else "").join(foreign[word] for word in words)
        pairs.append(([source], [target + ("." if spaced else "。")]))
    return pairs


@pytest.mark.parametrize("language", ["zh", "de", "ko", "id", "sw", "yo"])
def test_the_starter_rows_pass(language: str) -> None:
    pairs = starter_pairs(language, "train") + starter_pairs(language, "test")
    reasons = judge(pairs, language)
    assert reasons.count(None) / len(reasons) >= 0.98, [why for why in reasons if why]


@pytest.mark.parametrize("language", ["zh", "de", "ko", "id", "sw", "yo"])
def test_few_rows_are_enough_to_see_that_translations_are_cut_off(language: str) -> None:
    pairs = starter_pairs(language, "train") + starter_pairs(language, "test")
    cut = [i for i in range(len(pairs)) if i % 10 == 0]
    for i in cut:
        prompt, response = pairs[i][1]
        pairs[i] = (pairs[i][0], [prompt, response[: len(response) // 2]])
    reasons = judge(pairs, language)
    caught = [reasons[i] for i in cut]
    assert sum(why is not None for why in caught) >= 0.75 * len(cut)
    assert sum(reasons[i] is None for i in range(len(pairs)) if i not in cut) >= 0.97 * (len(pairs) - len(cut))


@pytest.mark.parametrize(
    ("source", "target", "language", "detail"),
    [
        (ENGLISH, ENGLISH.replace("woods", "forest"), "ko", "target is en, not ko"),
        (GERMAN, KOREAN, "ko", "source is de, not en"),
        (GERMAN, ENGLISH, "ko", "source is de, not en, target is en, not ko"),
        (ENGLISH, CHINESE, "ko", "target is zh, not ko"),
    ],
)
def test_a_side_in_another_language_is_named(source: str, target: str, language: str, detail: str) -> None:
    assert why(source, target, language) == ("language", detail)


def test_one_text_in_another_language_is_enough() -> None:
    (scores,) = Scorer("en", "ko").score([([ENGLISH, "Let us go then, you and I."], [KOREAN, GERMAN])])
    assert scores["target_language"] == "de"
    assert reason(scores, Thresholds()) == ("language", "target is de, not ko")


@pytest.mark.parametrize(
    "target", ["xkqzv wjrtp qqzzx vbnmk lkjhg xkqzv wjr", "12, 34 und 56", "def f(x):\n    return x"]
)
def test_an_unknown_language_is_no_reason(target: str) -> None:
    scores = score(ENGLISH, target)
    assert scores["target_language"] is None
    assert reason(scores, Thresholds()) is None


def test_a_language_that_cannot_be_identified_is_said_and_not_checked() -> None:
    scorer = Scorer("en", "bem")
    assert scorer.describe() == {"identified": {"en": True, "bem": False}}
    scores = scorer.score([([ENGLISH], [GERMAN]), ([GERMAN], [ENGLISH])])
    assert [row["target_language"] for row in scores] == [None, None]
    assert [row["wrong_language"] for row in scores] == [None, "source is de, not en"]


def test_a_script_in_the_key_does_not_matter() -> None:
    assert Scorer("en", "zh-Hant").score([([ENGLISH], [CHINESE])])[0]["target_language"] == "zh"


def test_languages_that_look_alike_are_not_mistaken_for_each_other() -> None:
    malay = "Cuaca hari ini sangat baik dan kami akan berjalan-jalan di dalam hutan bersama kawan-kawan."
    assert Scorer("en", "ms").score([([ENGLISH], [malay])])[0]["wrong_language"] is None


def test_a_missing_translation_is_empty() -> None:
    assert why(ENGLISH, " \n") == ("empty", "1 without a translation")
    assert why("", "") is None


def test_copied_words_are_untranslated() -> None:
    assert score(ENGLISH, ENGLISH)["untranslated"] == 1
    half = f"{GERMAN} The old man told us that nobody had ever seen such a thing in the valley."
    scores = score(f"{ENGLISH} The old man told us that nobody had ever seen such a thing in the valley.", half)
    assert 0.4 < scores["untranslated"] < 0.8
    assert reason(scores, Thresholds()) == ("untranslated", f"untranslated {scores['untranslated']:g} > 0.4")


def test_copied_words_in_a_script_without_spaces_are_untranslated() -> None:
    assert Scorer("zh", "ja").score([([CHINESE], [CHINESE])])[0]["untranslated"] == 1
    assert score(ENGLISH, f"{CHINESE[:8]} we are going for a walk in the woods", "zh")["untranslated"] > 0.6


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Ask Anna Maria Lopez Garcia.", "Frag Anna Maria Lopez Garcia."),
        ("Call 030 1234 5678 by 12:30.", "Rufe bis 12:30 die 030 1234 5678 an."),
        ("Run `pip install the big package now` twice.", "Führe `pip install the big package now` zweimal aus."),
        ("Code:\n```\nfor line in the file print line\n```", "Code:\n```\nfor line in the file print line\n```"),
        ("See https://example.org/a-long-walk_in-the-woods today", "https://example.org/a-long-walk_in-the-woods"),
        ("Anna Maria Lopez Garcia", "Anna Maria Lopez Garcia"),
    ],
)
def test_names_numbers_code_and_addresses_are_not_untranslated(source: str, target: str) -> None:
    assert score(source, target)["untranslated"] == 0
    assert why(source, target) is None


def test_a_label_that_stays_is_fine_but_a_whole_row_of_them_is_untranslated() -> None:
    scorer = Scorer("en", "de")
    (labelled,) = scorer.score([([ENGLISH, "very positive"], [GERMAN, "very positive"])])
    (copied,) = scorer.score([(["Is it nice?", "very positive"], ["Is it nice?", "very positive"])])
    assert (labelled["untranslated"], copied["untranslated"]) == (0, 1)


@pytest.mark.parametrize(
    ("target", "language"),
    [
        (GERMAN + " und wir gehen" * 12, "de"),
        ("Ja " * 40, "de"),
        ("今天天气很好，" * 9, "zh"),
        ("哈" * 60, "zh"),
        ("Das ist lang" + "!" * 100, "de"),
    ],
)
def test_output_that_says_the_same_over_and_over_is_repetition(target: str, language: str) -> None:
    found = why(ENGLISH, target, language, max_length_deviation=None)
    assert found is not None
    assert found[0] == "repetition"


def test_what_the_source_repeats_may_be_repeated() -> None:
    assert why("no, " * 40, "nein, " * 40) is None
    assert why("ha" * 60, "ㅋ" * 60, "ko") is None
    table = "| a | b |\n|" + "-" * 50 + "|" + "-" * 50 + "|\n| c | d |"
    assert why(table, table.replace("a", "A")) is None


def test_a_loop_at_the_end_of_a_long_text_is_repetition() -> None:
    numbers = random.Random(0)
    text = " ".join(f"w{numbers.randrange(10**6):06}" for _ in range(600))
    scores = score(text, text.upper() + " das ist so" * 10)
    assert scores["repetition"] < 0.1
    assert scores["loop"] == 27
    assert reason(scores, Thresholds()) == ("repetition", "loop 27 > 20")


def test_the_length_ratio_is_that_of_the_most_unusual_text() -> None:
    scorer = Scorer("en", "zh")
    (usual,) = scorer.score([([ENGLISH, "Yes."], [CHINESE, "是。"])])
    (short,) = scorer.score([([ENGLISH, ENGLISH], [CHINESE, "好。"])])
    assert usual["length_ratio"] == round(len(CHINESE) / len(ENGLISH), 3)
    assert short["length_ratio"] == round(2 / len(ENGLISH), 3)
    assert reason(short, Thresholds(min_length_ratio=0.1)) == ("length", "length ratio 0.028 < 0.1")
    assert reason(short, Thresholds(max_length_ratio=0.01)) == ("length", "length ratio 0.028 > 0.01")


def test_numbers_are_the_same_in_any_script_and_with_any_separator() -> None:
    assert score("In 1,250 days, 3 of 7.", "In ١٢٥٠ Tagen, ３ von ৭.")["numbers_missing"] == 0
    assert score("1,250 and 3", "1.250")["numbers_missing"] == 0.5
    assert score("None at all", "7")["numbers_missing"] is None
    assert why("1, 2, 3", "1") is None
    assert why("1, 2, 3, 4", "1", max_numbers_missing=0.5) == ("numbers", "numbers missing 0.75 > 0.5")


def test_numbers_of_any_length_are_read() -> None:
    digits = "1234567890" * 1000
    assert score(digits + ",123" * 2000, digits)["numbers_missing"] is not None


@pytest.mark.parametrize("end", [".", "!", "?", "。", "؟", "।", "።", "…", ".”", "。」", "**.**", ".)"])
def test_a_translation_that_ends_in_any_scripts_punctuation_is_not_cut_off(end: str) -> None:
    assert score(ENGLISH, GERMAN[:-1] + end)["cut_off"] == 0
    assert score(ENGLISH, GERMAN[:30])["cut_off"] == 1
    assert score("A title", "Ein Titel")["cut_off"] == 0


def test_a_text_without_punctuation_is_not_cut_off_where_no_translation_has_any() -> None:
    pairs = [(source, [text.rstrip(".。?？!！") for text in target]) for source, target in starter_pairs("zh", "train")]
    reasons = judge(pairs, "zh")
    assert reasons.count(None) / len(reasons) >= 0.97


def test_texts_of_unusual_length_are_found() -> None:
    pairs = starter_pairs("ko", "train")
    pairs[5] = (pairs[5][0], [pairs[5][1][0], " ".join(pair[1][1] for pair in pairs[6:16])])
    scores = Scorer("en", "ko").score(pairs)
    found = Corpus.fit(pairs, scores).score(pairs)
    assert found[5]["length_deviation"] > 8
    assert reason(found[5], Thresholds()) == ("length", f"length deviation {found[5]['length_deviation']:g} > 8")
    assert sum(abs(row["length_deviation"]) > 4 for row in found) == 1


def test_alignment_needs_rows_and_says_so() -> None:
    pairs = invented(MIN_ROWS - 1)
    corpus = Corpus.fit(pairs, Scorer(*INVENTED).score(pairs))
    assert {row["alignment"] for row in corpus.score(pairs)} == {None}
    assert corpus.describe()["alignment"] == f"off: fewer than {MIN_ROWS} rows to learn from"


def test_alignment_is_off_where_rows_cannot_be_told_from_mixed_ones() -> None:
    pairs = invented(800)
    targets = [target for _, target in pairs]
    random.Random(1).shuffle(targets)
    pairs = [(source, target) for (source, _), target in zip(pairs, targets, strict=True)]
    corpus = Corpus.fit(pairs, Scorer(*INVENTED).score(pairs))
    assert corpus.describe()["alignment"] == "off: rows cannot be told from mixed ones"
    assert {row["alignment"] for row in corpus.score(pairs)} == {None}


@pytest.mark.parametrize("spaced", [True, False], ids=["words", "no spaces"])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_translations_of_other_rows_are_found(spaced: bool, share: float) -> None:
    pairs = invented(1000, spaced)
    wrong = list(range(int(share * len(pairs))))
    pairs = lafand.spoil(pairs, wrong, "shuffled")
    reasons = judge(pairs, *INVENTED)
    assert sum(reasons[i] is not None for i in wrong) >= 0.95 * len(wrong)
    assert sum(why is None for why in reasons[len(wrong) :]) >= 0.98 * (len(pairs) - len(wrong))


def test_rows_that_were_not_learned_from_are_judged_as_well() -> None:
    pairs = invented(1400)
    corpus = Corpus.fit(pairs[:1000], Scorer(*INVENTED).score(pairs[:1000]))
    new = lafand.spoil(pairs[1000:], list(range(200)), "shuffled")
    found = [row["alignment"] for row in corpus.score(new)]
    assert sum(value < Thresholds().min_alignment for value in found[:200]) >= 190  # type: ignore[operator]
    assert sum(value >= Thresholds().min_alignment for value in found[200:]) >= 196  # type: ignore[operator]


def test_the_corpus_is_the_same_for_the_same_rows_in_any_order() -> None:
    pairs = invented(600)
    mixed = random.Random(1).sample(pairs, len(pairs))
    scorer = Scorer(*INVENTED)
    first, second, third = (Corpus.fit(rows, scorer.score(rows)) for rows in (pairs, pairs, mixed))
    assert first.score(pairs) == second.score(pairs) == third.score(pairs)
    assert first.describe() == third.describe()
    assert first.score(pairs[:7]) == first.score(pairs)[:7]


def test_rows_with_several_texts_are_judged_by_all_of_them() -> None:
    texts = invented(1800)
    pairs: list[Pair] = [
        ([*a[0], *b[0], *c[0]][: 1 + i % 3], [*a[1], *b[1], *c[1]][: 1 + i % 3])
        for i, (a, b, c) in enumerate(zip(texts[::3], texts[1::3], texts[2::3], strict=True))
    ]
    reasons = judge(pairs, *INVENTED)
    assert reasons.count(None) >= 0.98 * len(pairs)
    cut = [(source, [*target[:-1], target[-1][: len(target[-1]) // 3]]) for source, target in pairs]
    corpus = Corpus.fit(pairs, Scorer(*INVENTED).score(pairs))
    worse = [
        whole["completeness"] > part["completeness"]
        for whole, part in zip(*map(corpus.score, (pairs, cut)), strict=True)
    ]
    assert sum(worse) >= 0.98 * len(pairs)


@pytest.mark.parametrize("pairs", [[], [([""], [""])], [([], [])], [(["```\nx = 1\n```"], ["```\nx = 1\n```"])]])
def test_rows_without_text_are_scored(pairs: list[Pair]) -> None:
    scores = Scorer("en", "de").score(pairs)
    corpus = Corpus.fit(pairs, scores)
    more = corpus.score(pairs)
    assert [reason({**own, **others}, Thresholds()) for own, others in zip(scores, more, strict=True)] == [None] * len(
        pairs
    )
    json.dumps(corpus.describe())


def test_a_row_has_the_same_scores_whatever_stands_beside_it() -> None:
    pairs = starter_pairs("sw", "train")
    scorer = Scorer("en", "sw")
    assert [scorer.score([pair])[0] for pair in pairs[:20]] == scorer.score(pairs)[:20]


def test_scores_have_the_same_keys_and_are_json() -> None:
    odd: list[Pair] = [([ENGLISH], [GERMAN]), ([""], [""]), (["\ud800 x"], ["5"]), ([ENGLISH] * 3, [GERMAN, "", "!"])]
    scorer = Scorer("en", "de")
    rows = [*scorer.score(odd), *scorer.score(odd[:1])]
    assert len({tuple(row) for row in rows}) == 1
    corpus = Corpus.fit(odd, scorer.score(odd))
    more = corpus.score(odd)
    assert len({tuple(row) for row in more}) == 1
    json.dumps([rows, more, corpus.describe()])
    scalars = (str, int, float, type(None))
    assert all(
        isinstance(value, scalars) and not isinstance(value, bool) for row in rows + more for value in row.values()
    )


def test_thresholds_of_none_drop_nothing() -> None:
    bad: list[Pair] = [([ENGLISH], [ENGLISH]), ([ENGLISH], ["Ja " * 90]), (["1, 2, 3."], ["x"]), ([ENGLISH], ["Das"])]
    scorer = Scorer("en", "de")
    scores = scorer.score(bad)
    more = Corpus.fit(bad, scores).score(bad)
    rows = [{**own, **others, "round_trip_chrf": 1.0} for own, others in zip(scores, more, strict=True)]
    assert all(reason(row, Thresholds()) for row in rows)
    assert [reason(row, OFF) for row in rows] == [None] * len(bad)


@pytest.mark.parametrize(
    ("name", "limit", "row"),
    [
        ("max_untranslated", 0.1, {"untranslated": 0.2}),
        ("max_repetition", 0.1, {"repetition": 0.2}),
        ("max_loop", 5, {"loop": 6}),
        ("min_length_ratio", 0.5, {"length_ratio": 0.4}),
        ("max_length_ratio", 2.0, {"length_ratio": 2.1}),
        ("max_length_deviation", 3.0, {"length_deviation": -3.1}),
        ("min_completeness", 0.0, {"completeness": -0.1}),
        ("min_alignment", 0.0, {"alignment": -0.1}),
        ("max_numbers_missing", 0.5, {"numbers_missing": 0.6}),
        ("min_round_trip_chrf", 40.0, {"round_trip_chrf": 39.0}),
    ],
)
def test_each_threshold_is_compared_with_its_score(name: str, limit: float, row: dict[str, float]) -> None:
    assert reason(row, replace(OFF, **{name: limit})) is not None
    assert reason(row, OFF) is None
    assert reason(dict.fromkeys(row, limit), replace(OFF, **{name: limit})) is None
    assert reason(dict.fromkeys(row), replace(OFF, **{name: limit})) is None


def test_a_round_trip_is_compared_by_chrf() -> None:
    assert round_trip_chrf([ENGLISH, "Yes."], [ENGLISH, "Yes."]) == pytest.approx(100)
    near = round_trip_chrf([ENGLISH], ["The weather is very fine today, and we will take a walk in the forest."])
    far = round_trip_chrf([ENGLISH], ["Nobody knows how old this house may be."])
    assert far < 20 < 50 < near < 100
    assert round_trip_chrf([ENGLISH], [""]) == 0
    assert reason({"round_trip_chrf": far}, Thresholds()) == ("round trip", f"round trip chrf {far:g} < 20")


@pytest.mark.skipif(not lafand.FOLDER.is_dir(), reason=f"LAFAND-MT is not in {lafand.FOLDER} ($AXOLOTL_CLO_LAFAND)")
@pytest.mark.parametrize("kind", lafand.KINDS)
@pytest.mark.parametrize("language", lafand.LANGUAGES)
def test_bad_translations_of_real_text_are_caught_and_good_ones_pass(language: str, kind: str) -> None:
    true, bad = lafand.measure(language, lafand.pairs_of(language, "test"), kind, share=0.1, runs=2)
    assert bad.dropped / bad.rows >= 0.95, bad.reasons
    assert 1 - true.dropped / true.rows >= 0.98, true.reasons
