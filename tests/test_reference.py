"""Reference log-probabilities come from the weights before training: cached, and computed again from those only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import evaluate, load_config, logged, starter_rows, train, weights, write_rows
from transformers import AutoModelForCausalLM

from axolotl_clo.reference import RECORD_FILE, ReferenceCache, ReferenceRecord, model_key, row_digests

Write = Callable[..., Path]


def cache_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "prepared").glob("clo-*/reference/*.safetensors")
    return file


def exact(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a row's responses from full logits, one sequence at a time."""
    sums = []
    names = ("source_chosen", "source_rejected", "target_chosen", "target_rejected")
    for name, prompt in zip(names, row["prompt_lengths"], strict=True):
        ids = torch.tensor([row[name]])
        log_probs = model(ids).logits[0].log_softmax(-1)
        sums.append(sum(log_probs[i - 1, ids[0, i]] for i in range(prompt, ids.shape[1])))
    return torch.stack(sums).view(2, 2)


def test_cache_holds_the_base_models_log_probabilities(write_config: Write, tmp_path: Path, tiny_llama: Path) -> None:
    trainer = train(write_config())
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    rows = trainer.train_dataset
    cache = ReferenceCache(cache_file(tmp_path).parent, cache_file(tmp_path).stem)
    assert cache.load() is None
    assert set(cache.rows) == set(row_digests(rows))
    with torch.no_grad():
        for row in list(rows)[:3]:
            expected = exact(base, row)
            torch.testing.assert_close(cache.rows[row_digests([row])[0]], expected, atol=1e-3, rtol=1e-5)
            torch.testing.assert_close(
                torch.tensor(row["reference_log_probs"]).view(2, 2), expected, atol=1e-3, rtol=1e-5
            )


def test_second_run_reads_the_cache(write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl_clo.scoring import ScoringTrainer

    first = logged(train(write_config()), "loss")
    monkeypatch.setattr(ScoringTrainer, "_score", lambda *_: pytest.fail("the reference was computed a second time"))
    assert logged(train(write_config()), "loss") == first


def test_a_second_run_tokenizes_nothing(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.common.datasets import load_datasets

    from axolotl_clo.cross_lingual import CrossLingualStrategy

    workers: list[int | None] = []
    wrap_dataset = CrossLingualStrategy.wrap_dataset

    def spy(self: Any, dataset: Any, process_count: int | None = None, **kwargs: Any) -> Any:
        workers.append(process_count)
        return wrap_dataset(self, dataset, None, **kwargs)

    monkeypatch.setattr(CrossLingualStrategy, "wrap_dataset", spy)
    for _ in range(2):
        rows = load_datasets(cfg=load_config(write_config(dataset_num_proc=2))).train_dataset
        assert len(rows) == 12
    assert workers == [2]


def test_another_base_model_gets_its_own_reference(write_config: Write, tmp_path: Path, tiny_llama: Path) -> None:
    train(write_config(), max_steps=1)
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.layers[1].self_attn.v_proj.weight.data[3, 3] += 0.5
    model.save_pretrained(other)
    trainer = train(write_config(base_model=str(other)), max_steps=1)
    assert logged(trainer, "clo/preference_source")[0] == pytest.approx(0.693147, abs=2e-5)
    assert len(list((tmp_path / "prepared").glob("clo-*/reference/*.safetensors"))) == 2


def test_key_sees_one_changed_element_dtype_and_order(tiny_llama: Path) -> None:
    def key(change: Callable[[Any], Any] = lambda m: m, dtype: str = "no") -> str:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        return model_key(change(model) or model, without_adapter=False, compute_dtype=dtype)

    def nudge(model: Any) -> None:
        model.model.norm.weight.data[5] += 1e-6

    def swap(model: Any) -> None:
        weight = model.model.layers[0].mlp.up_proj.weight.data
        weight[[0, 1]] = weight[[1, 0]]

    keys = [key(), key(nudge), key(swap), key(lambda m: m.half()), key(dtype="bf16")]
    assert len(set(keys)) == 5
    assert key() == keys[0]


def test_unreadable_cache_is_said_and_computed_again(
    write_config: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = logged(train(write_config()), "loss")
    file = cache_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert logged(train(write_config()), "loss") == first
    assert f"the reference cache {file} is unreadable" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.bad_input("long runs")
def test_cache_that_may_not_be_opened_is_named(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "key")
    cache.file.mkdir()  # as root every file is readable, a folder is not
    with pytest.raises(ValueError, match=r"reference cache .*key\.safetensors cannot be read .* delete it"):
        cache.load()


@pytest.mark.bad_input("long runs")
def test_interrupted_write_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import axolotl_clo.reference as reference

    cache = ReferenceCache(tmp_path, "key")
    cache.rows = {"00" * 16: torch.ones(2, 2)}
    cache.save()
    before = cache.file.read_bytes()
    cache.rows["11" * 16] = torch.zeros(2, 2)

    def half_written(content: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(reference, "save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        cache.save()
    assert cache.file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["key.safetensors"]


@pytest.mark.bad_input("long runs")
def test_unreadable_record_is_named(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text('{"key": "a"')
    with pytest.raises(ValueError, match=r"clo_reference\.json is not readable"):
        ReferenceRecord.read(tmp_path)


# ---- resume and evaluate: never from trained weights ----


def test_resume_without_cache_computes_from_the_base_weights(write_config: Write, tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": None}
    straight = train(write_config(**options, output_dir=str(tmp_path / "straight")))
    train(write_config(**options, output_dir=str(tmp_path / "resumed")))
    file = cache_file(tmp_path)
    content = file.read_bytes()
    file.unlink()
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
    resumed = train(
        write_config(**options, output_dir=str(tmp_path / "resumed")),
        resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"),
    )
    assert cache_file(tmp_path).read_bytes() == content
    assert logged(resumed, "loss")[-2:] == pytest.approx(logged(straight, "loss")[-2:], abs=1e-6)
    for name, value in weights(tmp_path / "straight").items():
        torch.testing.assert_close(weights(tmp_path / "resumed")[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("cache", ["kept", "gone"])
def test_evaluating_a_trained_model_compares_with_its_base(
    cache: str, adapter: str | None, write_config: Write, tmp_path: Path
) -> None:
    held_out = write_rows(tmp_path / "test.jsonl", starter_rows("test")[:4])
    options: dict[str, Any] = {
        "test_datasets": [{"path": str(held_out), "split": "train", "type": "axolotl_clo.cross_lingual"}],
        "eval_steps": 3,
        "max_steps": 3,
    }
    if adapter:
        options |= {"adapter": adapter, "lora_r": 4, "lora_alpha": 64, "learning_rate": 1e-2}
    trainer = train(write_config(**options))
    in_training = trainer.state.log_history[-2]
    if cache == "gone":
        shutil.rmtree(cache_file(tmp_path).parent)
    trained = {"lora_model_dir": str(tmp_path / "out")} if adapter else {"base_model": str(tmp_path / "out")}
    after = evaluate(write_config(**{**options, **trained, "output_dir": str(tmp_path / "again")}))
    assert after["eval_clo/preference_target"] != pytest.approx(0.693147, abs=1e-3)
    for name in ("eval_loss", "eval_clo/nll", "eval_clo/preference_target", "eval_clo/margin_source"):
        assert after[name] == pytest.approx(in_training[name], abs=1e-4), name


def test_a_run_that_starts_from_an_adapter_compares_with_that_adapter(write_config: Write, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "test.jsonl", starter_rows("test")[:4])
    options: dict[str, Any] = {
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 64,
        "learning_rate": 1e-2,
        "test_datasets": [{"path": str(held_out), "split": "train", "type": "axolotl_clo.cross_lingual"}],
        "eval_steps": 2,
    }
    train(write_config(**options))
    folders = {name: str(tmp_path / name) for name in ("out", "second", "third")}
    second = train(write_config(**options, lora_model_dir=folders["out"], output_dir=folders["second"]))
    assert logged(second, "clo/preference_target")[0] == pytest.approx(0.693147, abs=1e-4)
    in_training = second.state.log_history[-2]
    for file in (tmp_path / "prepared").glob("clo-*/reference/*.safetensors"):
        file.unlink()
    after = evaluate(write_config(**options, lora_model_dir=folders["second"], output_dir=folders["third"]))
    assert after["eval_clo/margin_target"] == pytest.approx(in_training["eval_clo/margin_target"], abs=1e-4)
    assert abs(after["eval_clo/margin_target"]) > 1e-3


@pytest.mark.bad_input("long runs")
def test_evaluating_says_when_the_base_is_gone_or_changed(
    write_config: Write, tmp_path: Path, tiny_llama: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    train(write_config(base_model=str(base)))
    shutil.rmtree(cache_file(tmp_path).parent)
    trained = write_config(base_model=str(tmp_path / "out"), output_dir=str(tmp_path / "again"))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.model.norm.weight.data[0] += 1
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="does not hold the weights this model was trained from"):
        evaluate(trained)
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"this model was trained from .*base.*cannot be loaded"):
        evaluate(trained)


def test_evaluating_an_untrained_model_starts_at_ln2(write_config: Write) -> None:
    metrics = evaluate(write_config(val_set_size=4))
    assert metrics["eval_clo/preference_source"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["eval_clo/margin_target"] == pytest.approx(0, abs=1e-4)


def test_checkpoints_and_model_carry_the_record(write_config: Write, tmp_path: Path, tiny_llama: Path) -> None:
    train(write_config(save_steps=2, save_strategy=None))
    records = [json.loads((tmp_path / "out" / sub / RECORD_FILE).read_text()) for sub in (".", "checkpoint-2")]
    assert records[0] == records[1]
    assert records[0]["base_model"] == str(tiny_llama)


def test_adapter_reference_equals_precomputed(write_config: Write) -> None:
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 64, "learning_rate": 1e-2, "max_steps": 3}
    losses = [
        logged(train(write_config(**lora, clo={"target_lang": "de", "reference": reference})), "loss")
        for reference in ("precompute", "adapter")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_config_of_the_reference_is_not_needed_by_inactive_sections(write_config: Write) -> None:
    cfg = load_config(write_config(rl=None, datasets=[{"path": "tatsu-lab/alpaca", "type": "alpaca"}]))
    assert "clo-" not in str(cfg.dataset_prepared_path)


@pytest.mark.parametrize("size", [1, 12])
def test_reference_does_not_depend_on_its_batches(
    size: int, write_config: Write, tmp_path: Path, parallel_file: Path
) -> None:
    """Packed by tokens: in each batch as many rows as fit where the longest `eval_batch_size` rows do."""
    rows = starter_rows()[:12]
    rows[0]["response"] = {lang: f"{text} {text} {text}" for lang, text in rows[0]["response"].items()}
    write_rows(parallel_file, rows)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        from axolotl_clo.scoring import ScoringTrainer

        score_batch = ScoringTrainer._score_batch

        def spy(self: Any, model: Any, batch: Any) -> torch.Tensor:
            if not torch.is_grad_enabled():  # the pass; later come the steps
                seen.append(batch["input_ids"].numel())
            return score_batch(self, model, batch)

        patch.setattr(ScoringTrainer, "_score_batch", spy)
        trainer = train(write_config(eval_batch_size=size, max_steps=1))
    lengths = sorted(trainer.train_dataset["length"])
    budget = sum(lengths[-size:])
    assert max(seen) <= budget
    assert sum(seen) == sum(lengths)
    assert len(seen) <= sum(lengths) / budget + 2 < 8
    cache = ReferenceCache(cache_file(tmp_path).parent, cache_file(tmp_path).stem)
    cache.load()
    model = AutoModelForCausalLM.from_pretrained(trainer.axolotl_cfg.base_model).eval()
    with torch.no_grad():
        for row in list(trainer.train_dataset)[:4]:
            torch.testing.assert_close(cache.rows[row_digests([row])[0]], exact(model, row), atol=1e-3, rtol=1e-5)
