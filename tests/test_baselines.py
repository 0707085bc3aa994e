"""The methods CLO is compared with run through stock Axolotl on the same parallel rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    CHATML,
    load_config,
    logged,
    make_tiny_llama,
    make_tokenizer,
    starter_rows,
    train,
    weights,
    write_rows,
)

from axolotl_clo.collator import SEQUENCES

Write = Callable[..., Path]


def options(kind: str, file: Path, rl: str | None = None, **more: Any) -> dict[str, Any]:
    return {"rl": rl, "datasets": [{"path": str(file), "type": f"axolotl_clo.{kind}"}], **more}


def rendered(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def datasets(config: Path) -> Any:
    """The datasets as `axolotl train` loads them."""
    from axolotl.common.datasets import load_datasets, load_preference_datasets

    cfg = load_config(config)
    return (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)


def expected_pairs(rows: list[dict[str, Any]], lang: str = "de") -> set[tuple[str, str, str]]:
    pairs = set()
    for row in rows:
        for own, other in (("en", lang), (lang, "en")):
            responses = (f"{row['response'][code]}<|im_end|>" for code in (own, other))
            pairs.add((rendered(row["prompt"][own]), *responses))
    return pairs


@pytest.mark.parametrize(("kind", "langs"), [("sft", ("en", "de")), ("sft_source", ("en",)), ("sft_target", ("de",))])
def test_sft_sees_each_language_once(
    kind: str, langs: tuple[str, ...], write_config: Write, parallel_file: Path, tiny_llama: Path
) -> None:
    from transformers import AutoTokenizer

    rows = datasets(write_config(**options(kind, parallel_file))).train_dataset
    assert set(rows.column_names) >= {"input_ids", "attention_mask", "labels"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    seen = set()
    for row in rows:
        prompt = tokenizer.decode(
            [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        )
        seen.add((prompt, tokenizer.decode([label for label in row["labels"] if label != -100])))
    expected = {
        (rendered(row["prompt"][lang]), f"{row['response'][lang]}<|im_end|>")
        for row in starter_rows()[:12]
        for lang in langs
    }
    assert seen == expected
    assert len(rows) == len(expected)


@pytest.mark.parametrize("rl", ["dpo", "ipo", "orpo", "simpo"])
def test_preference_methods_see_both_directions_of_each_row(rl: str, write_config: Write, parallel_file: Path) -> None:
    rows = datasets(write_config(**options("preference", parallel_file, rl))).train_dataset
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    assert set(pairs) == expected_pairs(starter_rows()[:12])
    assert len(pairs) == 24


def test_kto_judges_each_response_to_each_prompt(write_config: Write, parallel_file: Path) -> None:
    rows = datasets(write_config(**options("kto", parallel_file, "kto", remove_unused_columns=False))).train_dataset
    judged = {(row["prompt"], row["completion"], row["label"]) for row in rows}
    expected = {
        (prompt, response, good)
        for prompt, chosen, rejected in expected_pairs(starter_rows()[:12])
        for response, good in ((chosen, True), (rejected, False))
    }
    assert judged == expected
    assert len(rows) == 48


@pytest.mark.parametrize(
    ("kind", "rl", "more"),
    [
        ("sft", None, {}),
        ("preference", "dpo", {}),
        ("preference", "orpo", {}),
        ("preference", "simpo", {"rl_beta": 2.0, "simpo_gamma": 1.0}),
        ("kto", "kto", {"remove_unused_columns": False}),
    ],
)
def test_baselines_train_attention_alone(
    kind: str, rl: str | None, more: dict, write_config: Write, parallel_file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    trainer = train(write_config(**options(kind, parallel_file, rl, **more)))
    assert trainer.state.global_step == 2
    assert len(logged(trainer, "loss")) == 2
    before, after = weights(tiny_llama), weights(tmp_path / "out")
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed == {name for name in before if ".self_attn." in name}


def test_baseline_scope_is_an_option(write_config: Write, parallel_file: Path) -> None:
    clo = {"target_lang": "de", "train_modules": "attention+mlp", "layers": "1"}
    trainer = train(write_config(**options("preference", parallel_file, "dpo", clo=clo, max_steps=1)))
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in trainer.model.named_parameters() if ".layers.1." in n and "norm" not in n}


def test_lora_baseline_adapts_attention_alone(write_config: Write, parallel_file: Path) -> None:
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}
    trainer = train(write_config(**options("preference", parallel_file, "dpo", **lora, max_steps=1)))
    adapted = {n.split(".lora_")[0] for n, _ in trainer.model.named_parameters() if ".lora_" in n}
    assert {name.split(".")[-2] for name in adapted} == {"self_attn"}
    assert len(adapted) == 8


@pytest.mark.parametrize(("kind", "rl", "rows"), [("sft", None, 10), ("preference", "dpo", 10), ("kto", "kto", 20)])
def test_same_draw_as_clo_and_held_out_rows_stay_whole(
    kind: str, rl: str | None, rows: int, write_config: Write, parallel_file: Path, tmp_path: Path
) -> None:
    clo = {"target_lang": "de", "max_examples": 5}
    held_out = str(write_rows(tmp_path / "held_out.jsonl", starter_rows("test")[:7]))

    def load(kind: str, rl: str | None) -> Any:
        more = {"test_datasets": [{"path": held_out, "type": f"axolotl_clo.{kind}", "split": "train"}]}
        return datasets(write_config(**options(kind, parallel_file, rl, clo=clo, remove_unused_columns=False, **more)))

    mine, clos = load(kind, rl), load("cross_lingual", "clo")
    assert len(clos.train_dataset) == 5
    assert len(clos.eval_dataset) == 7
    assert len(mine.train_dataset) == rows
    assert len(mine.eval_dataset) == rows // 5 * 7
    if kind == "preference":
        drawn = [starter_rows()[row - 1] for row in clos.train_dataset["row"]]
        pairs = {(row["prompt"], row["chosen"], row["rejected"]) for row in mine.train_dataset}
        assert pairs == expected_pairs(drawn)


@pytest.mark.bad_input("data")
def test_dropped_rows_are_the_ones_clo_drops(
    write_config: Write, tmp_path: Path, clo_log: pytest.LogCaptureFixture
) -> None:
    broken = starter_rows()[:5]
    broken[1]["response"]["de"] = " "
    broken[3]["prompt"]["en"] = None
    file = write_rows(tmp_path / "broken.jsonl", broken)
    rows = datasets(write_config(**options("preference", file, "dpo"))).train_dataset
    assert len(rows) == 6
    assert (
        "kept 3 of 5 rows; dropped 1: empty (response.de), row 2; dropped 1: missing (prompt.en), row 4" in clo_log.text
    )


def test_template_without_end_of_turn_gets_the_end_token(write_config: Write, parallel_file: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    more = {"chat_template": "jinja", "chat_template_jinja": template}
    rows = datasets(write_config(**options("preference", parallel_file, "dpo", **more))).train_dataset
    first = starter_rows()[0]
    assert (f"user: {first['prompt']['en']}\nassistant: ", f"{first['response']['en']}<|im_end|>") in [
        (row["prompt"], row["chosen"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("kind", "rl", "columns"),
    [
        ("preference", "dpo", {"chosen_ids", "rejected_ids"}),
        ("preference", "orpo", {"chosen_input_ids", "rejected_input_ids"}),
        ("kto", "kto", {"completion_ids"}),
    ],
)
def test_end_of_sequence_that_ends_no_turn_is_told(
    kind: str,
    rl: str,
    columns: set[str],
    write_config: Write,
    parallel_file: Path,
    tmp_path: Path,
    clo_log: pytest.LogCaptureFixture,
) -> None:
    """TRL puts it behind the end of the turn; named as the turn's end, it is there once, as in CLO's rows."""
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|endoftext|>", pad="<|endoftext|>")
    tokenizer.chat_template = CHATML
    folder = make_tiny_llama(tmp_path / "other-end", tokenizer)
    turn_end, end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    more = {"base_model": str(folder), "max_steps": 1, "remove_unused_columns": False}
    for named, expected in ((None, [turn_end, end]), ({"eos_token": "<|im_end|>"}, [turn_end])):
        clo_log.clear()
        rows = train(write_config(**options(kind, parallel_file, rl, special_tokens=named, **more))).train_dataset
        for row in rows:
            for name in columns:
                ends = [token for token in row[name] if token in (turn_end, end)]
                assert ends[-len(expected) :] == expected
                assert ends.count(end) == expected.count(end)
        told = [record.getMessage() for record in clo_log.records if "TRL adds" in record.getMessage()]
        assert len(told) == (named is None)
        assert all("<|im_end|><|endoftext|>" in message and "eos_token: <|im_end|>" in message for message in told)


@pytest.mark.parametrize(
    ("kind", "rl", "column"),
    [
        ("preference", "dpo", "prompt_ids"),
        ("preference", "orpo", "prompt_input_ids"),
        ("preference", "simpo", "prompt_input_ids"),
        ("kto", "kto", "prompt_ids"),
    ],
)
def test_one_begin_token_with_a_tokenizer_that_adds_its_own(
    kind: str, rl: str, column: str, write_config: Write, parallel_file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """As Llama's and Mistral's do, while their templates render one too."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = tmp_path / "with-begin-token"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "")
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    tokenizer.save_pretrained(folder)
    more = {"rl_beta": 0.1, "simpo_gamma": 0.5} if rl == "simpo" else {}
    more |= {"base_model": str(folder), "max_steps": 1, "remove_unused_columns": False}
    rows = train(write_config(**options(kind, parallel_file, rl, **more))).train_dataset
    clos = datasets(write_config(**{"base_model": str(folder)})).train_dataset
    prompts = {tuple(row[column]) for row in rows}
    assert {prompt[0] for prompt in prompts} == {begin}
    assert all(prompt.count(begin) == 1 for prompt in prompts)
    assert prompts == {tuple(row[name][: row["prompt_lengths"][i]]) for row in clos for i, name in enumerate(SEQUENCES)}


def test_several_targets_give_the_source_sequence_once(write_config: Write, parallel_file: Path) -> None:
    clo = {"target_lang": ["de", "ko"]}
    sft = datasets(write_config(**options("sft", parallel_file, clo=clo))).train_dataset
    assert len(sft) == 36
    dpo = datasets(write_config(**options("preference", parallel_file, "dpo", clo=clo))).train_dataset
    rows = starter_rows()[:12]
    assert {(r["prompt"], r["chosen"], r["rejected"]) for r in dpo} == expected_pairs(rows) | expected_pairs(rows, "ko")
    kto = options("kto", parallel_file, "kto", clo=clo, remove_unused_columns=False)
    judged = [(r["prompt"], r["completion"], r["label"]) for r in datasets(write_config(**kto)).train_dataset]
    assert len(judged) == len(set(judged)) == 12 * (1 + 2 + 2 * 2)


@pytest.mark.bad_input("config")
def test_rows_for_one_method_are_not_read_by_another(write_config: Write, parallel_file: Path) -> None:
    first = datasets(write_config(**options("sft_source", parallel_file))).train_dataset
    assert len(datasets(write_config(**options("sft", parallel_file))).train_dataset) == 2 * len(first)


@pytest.mark.bad_input("data")
def test_errors_in_rows_stop_a_preference_run(write_config: Write, tmp_path: Path) -> None:
    rows = starter_rows()[:3]
    for row in rows:
        del row["prompt"]["de"]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"clo\.target_lang: 'de' is not in column 'prompt'"):
        datasets(write_config(**options("preference", file, "dpo")))
    clo = {"target_lang": "ko", "max_examples": 4}
    with pytest.raises(ValueError, match=r"clo\.max_examples: 4 rows are asked for, but 3 are usable"):
        datasets(write_config(**options("preference", file, "dpo", clo=clo)))
