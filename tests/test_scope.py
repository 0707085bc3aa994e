"""`train_modules: auto` measures what the model knows, and trains accordingly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import starter_rows, train, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_clo import scope

Write = Callable[..., Path]


def bits_per_byte(folder: Path, rows: list[dict[str, Any]], lang: str) -> float:
    """Of the responses with their end token, from full logits of each conversation alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    nats = size = 0.0
    for row in rows:
        chat = f"<|im_start|>user\n{row['prompt'][lang]}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(chat, add_special_tokens=False)["input_ids"]
        response = tokenizer(f"{row['response'][lang]}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        nats -= sum(log_probs[len(prompt) + i - 1, token].item() for i, token in enumerate(response))
        size += len(row["response"][lang].encode())
    return nats / math.log(2) / size


def trained_modules(trainer: Any) -> set[str]:
    return {
        name.split(".")[3] for name, p in trainer.model.named_parameters() if p.requires_grad and ".layers." in name
    }


@pytest.mark.parametrize(("side", "expected"), [(0.99, {"attention", "all"}), (1.01, {"attention"})])
def test_auto_measures_and_chooses(
    side: float,
    expected: set[str],
    write_config: Write,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    clo_log: pytest.LogCaptureFixture,
) -> None:
    """With the threshold just below the ratio all trains, just above it attention; and the log says why."""
    german, english = (bits_per_byte(tiny_llama, starter_rows()[:12], lang) for lang in ("de", "en"))
    monkeypatch.setattr(scope, "THRESHOLD", side * german / english)
    config = write_config(clo={"target_lang": "de", "train_modules": "auto"}, max_steps=1)
    trainer = train(config)
    whole = all(p.requires_grad for p in trainer.model.parameters())
    assert whole == ("all" in expected)
    if not whole:
        assert trained_modules(trainer) == {"self_attn"}
    said = f"de costs the model {german:.2f} bits per byte, en {english:.2f} on the same rows: "
    assert f"{said}{german / english:.2f} times" in clo_log.text
    assert f"auto trains {'all' if whole else 'attention'} (de is {'above' if whole else 'not above'}" in clo_log.text


def test_auto_with_lora_adapts_attention_and_mlp_or_attention(write_config: Write, monkeypatch: Any) -> None:
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "max_steps": 1}
    for threshold, expected in ((0.0, {"self_attn", "mlp"}), (1e9, {"self_attn"})):
        monkeypatch.setattr(scope, "THRESHOLD", threshold)
        trainer = train(write_config(clo={"target_lang": "de", "train_modules": "auto"}, **lora))
        adapted = {n.split(".lora_")[0].split(".")[-2] for n, _ in trainer.model.named_parameters() if ".lora_" in n}
        assert adapted == expected


def test_auto_in_a_baseline_and_of_several_languages_the_one_known_least_decides(
    write_config: Write, parallel_file: Path, tiny_llama: Path, monkeypatch: Any, clo_log: pytest.LogCaptureFixture
) -> None:
    rows = starter_rows()[:12]
    ratios = {
        lang: bits_per_byte(tiny_llama, rows, lang) / bits_per_byte(tiny_llama, rows, "en") for lang in ("de", "ko")
    }
    monkeypatch.setattr(scope, "THRESHOLD", sum(ratios.values()) / 2)
    data = [{"path": str(parallel_file), "type": "axolotl_clo.sft"}]
    clo = {"target_lang": ["de", "ko"], "train_modules": "auto"}
    trainer = train(write_config(rl=None, datasets=data, clo=clo, max_steps=1))
    assert all(p.requires_grad for p in trainer.model.parameters())
    assert f"({max(ratios, key=lambda lang: ratios[lang])} is above" in clo_log.text


def test_auto_measures_all_datasets_of_ours(
    write_config: Write, tiny_llama: Path, tmp_path: Path, monkeypatch: Any, clo_log: pytest.LogCaptureFixture
) -> None:
    """The first is for another method, and each language lies in a dataset of its own."""
    monkeypatch.setattr(scope, "MEASURED_ROWS", 20)
    rows = starter_rows()
    own = {"de": rows[:4], "ko": rows[4:36]}  # 4 of the few rows, 16 of the many
    data = [{"path": str(write_rows(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b"}])), "type": "alpaca"}]
    for lang, few in own.items():
        sides = [
            {side: {code: row[side][code] for code in ("en", lang)} for side in ("prompt", "response")} for row in few
        ]
        data.append({"path": str(write_rows(tmp_path / f"{lang}.jsonl", sides)), "type": "axolotl_clo.sft"})
    clo = {"target_lang": ["de", "ko"], "train_modules": "auto"}
    trainer = train(write_config(rl=None, datasets=data, clo=clo, max_steps=1))
    assert trainer.state.global_step == 1
    for lang, measured in (("de", own["de"]), ("ko", own["ko"][::2])):
        target, english = (bits_per_byte(tiny_llama, measured, code) for code in (lang, "en"))
        assert f"{lang} costs the model {target:.2f} bits per byte, en {english:.2f} on the same rows" in clo_log.text


def test_measured_rows_are_shared_out_over_datasets(monkeypatch: Any) -> None:
    assert scope.shares([1000]) == [64]
    assert scope.shares([12]) == [12]
    assert scope.shares([1000, 10, 500]) == [27, 10, 27]
    assert scope.shares([100] * 20) == [8] * 20


@pytest.mark.bad_input("distributed")
def test_sharded_weights_are_refused(write_config: Write) -> None:
    from axolotl.utils.dict import DictDefault

    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"train_modules: auto measures the model before it is sharded"):
        scope.resolve_scope(DictDefault({"clo": {"target_lang": "de"}}), model)
