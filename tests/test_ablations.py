"""What can be varied in a CLO run: several target languages, draws, directions, preference losses, the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import evaluate, logged, starter_rows, train, weights, write_rows

from axolotl_clo import scoring
from axolotl_clo.trainer import METRICS, metric_names

Write = Callable[..., Path]


@pytest.fixture
def mixed_file(tmp_path: Path) -> Path:
    """Twelve rows: all have German, the first four Korean too, the last has neither prompt in Korean nor Swahili."""
    rows = []
    for i, row in enumerate(starter_rows()[:12]):
        langs = {"en", "de"} | ({"ko"} if i < 4 else set())
        rows.append({side: {lang: row[side][lang] for lang in langs} for side in ("prompt", "response")})
    return write_rows(tmp_path / "mixed.jsonl", rows)


def dataset(file: Path) -> list[dict[str, Any]]:
    return [{"path": str(file), "type": "axolotl_clo.cross_lingual"}]


def test_one_language_in_a_list_is_the_single_language_run(write_config: Write, tmp_path: Path) -> None:
    runs = []
    for name, target in (("one", "de"), ("list", ["de"])):
        clo = {"target_lang": target, "rejected": "any" if name == "list" else "source"}
        trainer = train(write_config(clo=clo, output_dir=str(tmp_path / name)))
        runs.append((weights(tmp_path / name), [logged(trainer, key) for key in ("loss", *METRICS)]))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_rows_hold_any_subset_of_the_targets(
    write_config: Write, mixed_file: Path, clo_log: pytest.LogCaptureFixture
) -> None:
    config = write_config(clo={"target_lang": ["ko", "de"]}, datasets=dataset(mixed_file), micro_batch_size=16)
    trainer = train(config, max_steps=1)
    rows = trainer.train_dataset
    assert sorted(zip(rows["row"], rows["language"], strict=True)) == sorted(
        [(n, 0) for n in range(1, 5)] + [(n, 1) for n in range(1, 13)]
    )
    assert (
        "kept 16 of 24 examples (12 rows, 2 target languages); dropped 8: missing (prompt.ko), rows 5" in clo_log.text
    )
    entry = trainer.state.log_history[0]
    assert set(metric_names(["ko", "de"])) <= set(entry)
    for metric in METRICS[1:]:  # one micro-batch of all 16: the mean of all is that of the languages, weighted
        total = 4 * entry[f"{metric}_ko"] + 12 * entry[f"{metric}_de"]
        assert entry[metric] == pytest.approx(total / 16, abs=2e-5), metric


def test_metrics_by_language_are_those_of_the_language_alone(write_config: Write, mixed_file: Path) -> None:
    both = train(
        write_config(clo={"target_lang": ["ko", "de"]}, datasets=dataset(mixed_file), micro_batch_size=16), max_steps=1
    )
    for lang, size in (("ko", 4), ("de", 12)):
        one = train(
            write_config(clo={"target_lang": lang}, datasets=dataset(mixed_file), micro_batch_size=size), max_steps=1
        )
        for metric in METRICS:
            if "accuracy" in metric:
                continue  # all margins are zero but for rounding
            assert logged(both, f"{metric}_{lang}")[0] == pytest.approx(logged(one, metric)[0], abs=2e-5), metric


def test_eval_metrics_by_language(write_config: Write, mixed_file: Path) -> None:
    trainer = train(
        write_config(clo={"target_lang": ["ko", "de"]}, datasets=dataset(mixed_file), val_set_size=8, eval_steps=1)
    )
    entry = next(e for e in trainer.state.log_history if "eval_loss" in e)
    assert {f"eval_{name}" for name in metric_names(["ko", "de"])} <= set(entry)


def test_rejected_any_takes_another_target_where_the_row_has_one(write_config: Write, mixed_file: Path) -> None:
    options = {"datasets": dataset(mixed_file), "max_steps": 1}
    trainer = train(write_config(clo={"target_lang": ["ko", "de"], "rejected": "any"}, **options))
    rows = starter_rows()[:12]
    codes = ["ko", "de", "en"]
    chosen_ones = set()
    for example in trainer.train_dataset:
        prompt = example["prompt_lengths"][3]
        text = trainer.processing_class.decode(example["target_rejected"][prompt:], skip_special_tokens=True)
        assert text == rows[example["row"] - 1]["response"][codes[example["rejected_language"]]]
        assert example["rejected_language"] != example["language"]
        assert example["row"] <= 4 or codes[example["rejected_language"]] == "en"
        chosen_ones.add(codes[example["rejected_language"]])
    assert chosen_ones == {"ko", "de", "en"}


def test_temperature_repeats_the_rarer_language(write_config: Write, mixed_file: Path) -> None:
    clo = {"target_lang": ["ko", "de"], "sampling_temperature": 1e6}
    trainer = train(write_config(clo=clo, datasets=dataset(mixed_file), max_steps=1))
    languages = list(trainer.train_dataset["language"])
    assert (languages.count(0), languages.count(1)) == (8, 8)


@pytest.mark.bad_input("data")
def test_a_language_that_no_row_has_is_named(write_config: Write, mixed_file: Path) -> None:
    message = r"clo\.target_lang: no usable row holds sw; kept 12 of 24 .* dropped 12: missing \(prompt\.sw\), rows 1"
    with pytest.raises(ValueError, match=message):
        train(write_config(clo={"target_lang": ["de", "sw"]}, datasets=dataset(mixed_file)))


@pytest.mark.bad_input("data")
def test_more_examples_than_rows_is_an_error(write_config: Write) -> None:
    with pytest.raises(ValueError, match=r"clo\.max_examples: 13 rows are asked for, but 12 are usable"):
        train(write_config(clo={"target_lang": "de", "max_examples": 13}))


def test_examples_are_drawn_by_seed_and_nested(write_config: Write) -> None:
    drawn = {}
    for name, size, seed in (("small", 3, 3), ("large", 7, 3), ("other", 3, 4)):
        clo = {"target_lang": "de", "max_examples": size}
        drawn[name] = set(train(write_config(clo=clo, max_steps=1, seed=seed)).train_dataset["row"])
        assert len(drawn[name]) == size
    assert drawn["small"] < drawn["large"]
    assert drawn["small"] != drawn["other"]


@pytest.mark.parametrize(("ratio", "source", "target"), [(4.0, 3, 12), (0.25, 12, 3)])
def test_ratio_leaves_pairs_out_of_loss_and_nll(ratio: float, source: int, target: int, write_config: Write) -> None:
    """The loss equals that of the terms by hand, from the same examples scored with both directions."""
    batch = {"micro_batch_size": 12, "max_steps": 1}
    whole = train(write_config(**batch))
    part = train(write_config(clo={"target_lang": "de", "target_source_ratio": ratio}, **batch))
    lengths = [[len(row["source_chosen"]) > 0, len(row["target_chosen"]) > 0] for row in part.train_dataset]
    assert [sum(column) for column in zip(*lengths, strict=True)] == [source, target]
    assert logged(part, "clo/preference_source")[0] == pytest.approx(math.log(2), abs=2e-5)
    expected = 0.5 * logged(part, "clo/nll")[0] + 0.5 * math.log(2)
    assert logged(part, "loss")[0] == pytest.approx(expected, abs=2e-4)
    if target == 12:
        assert logged(part, "clo/nll")[0] == pytest.approx(logged(whole, "clo/nll")[0], abs=1e-5)
    else:
        assert logged(part, "clo/nll")[0] != pytest.approx(logged(whole, "clo/nll")[0], abs=1e-4)


LOSSES = {
    "sigmoid": {},
    "ipo": {},
    "hinge": {},
    "robust": {"label_smoothing": 0.1},
    "orpo": {},
    "simpo": {"simpo_gamma": 1.0},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_preference_loss_trains(
    loss: str, write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference-free losses make no reference pass, write no cache and need none to evaluate."""
    passes = []
    monkeypatch.setattr(
        scoring.ScoringTrainer,
        "_score",
        lambda self, *args, original=scoring.ScoringTrainer._score: passes.append(1) or original(self, *args),
    )
    clo = {"target_lang": "de", "preference_loss": loss, "nll_weight": 0.0, **LOSSES[loss]}
    config = write_config(clo=clo, max_steps=8, num_epochs=4, val_set_size=2, eval_steps=8)
    trainer = train(config)
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0]
    free = loss in ("orpo", "simpo")
    assert bool(passes) != free
    assert (tmp_path / "out" / "clo_reference.json").exists() != free
    assert bool(list((tmp_path / "prepared").rglob("reference/*.safetensors"))) != free
    metrics = evaluate(config, base_model=str(tmp_path / "out"))
    assert metrics["eval_loss"] == pytest.approx(logged(trainer, "eval_loss")[-1], abs=1e-4)


def test_a_start_from_sft_is_its_own_reference(write_config: Write, parallel_file: Path, tmp_path: Path) -> None:
    sft = {"rl": None, "datasets": [{"path": str(parallel_file), "type": "axolotl_clo.sft"}]}
    train(write_config(**sft, output_dir=str(tmp_path / "sft"), max_steps=4, num_epochs=2))
    trainer = train(write_config(base_model=str(tmp_path / "sft"), max_steps=1))
    assert logged(trainer, "clo/preference_source")[0] == pytest.approx(math.log(2), abs=2e-5)
    assert logged(trainer, "clo/preference_target")[0] == pytest.approx(math.log(2), abs=2e-5)
    untrained = train(write_config(max_steps=1, output_dir=str(tmp_path / "plain")))
    assert logged(trainer, "clo/nll")[0] < logged(untrained, "clo/nll")[0] - 0.05
