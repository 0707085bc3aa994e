"""The comparison of methods: equal budgets, the search's criterion, the drift of English, and the command itself."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import starter_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_clo.compare.command import main, parse
from axolotl_clo.compare.plan import HELD_OUT_EVERY, LEARNING_RATES, METHODS, Comparison, Run
from axolotl_clo.compare.scoring import answer_greedily, bits_per_byte, evaluate_tasks, mean_kl
from axolotl_clo.compare.search import Candidate, choose_learning_rate, search_rates
from axolotl_clo.compare.table import COLUMNS, spread
from axolotl_clo.compare.workers import Workers
from axolotl_clo.translate.store import held


def plan_of(out: Path, model: Path, *arguments: str) -> Comparison:
    return parse(["--out", str(out), "--base-model", str(model), *arguments])


# ---- the search's criterion ----


BASE = Candidate(target=2.0, english=1.0, fidelity=0.2)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        # Target and English bits per byte, fidelity without echoes. The most faithful costs too much English:
        ({1e-4: (1.9, 1.00, 0.4), 3e-4: (1.8, 1.05, 0.6), 1e-3: (1.5, 1.06, 1.0)}, 3e-4),
        # Too much of the target's own text:
        ({1e-4: (1.9, 1.00, 0.4), 1e-3: (2.01, 1.00, 1.0)}, 1e-4),
        # Equally faithful, give or take two answers of sixteen: the likelier references, whatever English gains.
        ({1e-4: (1.9, 0.90, 0.5), 3e-4: (1.8, 1.04, 0.5)}, 3e-4),
        ({1e-4: (1.8, 0.90, 0.875), 3e-4: (1.9, 1.04, 1.0)}, 1e-4),
        ({1e-4: (1.8, 0.90, 0.8125), 3e-4: (1.9, 1.04, 1.0)}, 3e-4),
        # None allowed: the least rise of English.
        ({1e-4: (1.9, 1.10, 0.9), 3e-4: (1.8, 1.08, 0.1), 1e-3: (1.5, 1.20, 1.0)}, 3e-4),
        # The first diverged.
        ({1e-3: (math.nan, math.nan, 0.0), 3e-4: (1.9, 1.10, 0.9), 1e-4: (2.0, 1.08, 0.1)}, 1e-4),
    ],
)
def test_learning_rate_is_the_most_faithful_that_keeps_english(
    candidates: dict[float, tuple[float, float, float]], chosen: float
) -> None:
    scores = {rate: Candidate(*values) for rate, values in candidates.items()}
    assert choose_learning_rate(scores, BASE) == chosen


def test_search_trains_on_no_row_that_scores_it(tmp_path: Path, tiny_llama: Path) -> None:
    plan = plan_of(tmp_path, tiny_llama, "--languages", "de")

    class NothingDone:
        def finish(self, runs: list[Run]) -> list[None]:
            return [None for _ in runs]

    scores = {lang: {"bits_per_byte": 1.0, "fidelity_no_echo": 0.5} for lang in ("de", "en")}
    search_rates(plan, NothingDone(), {"search": scores})  # type: ignore[arg-type]
    trained = [json.loads(line) for line in (tmp_path / "search" / "rows.jsonl").open(encoding="utf-8")]
    scoring = starter_rows()[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    assert {row["id"] for row in trained} | {row["id"] for row in scoring} == {row["id"] for row in starter_rows()}
    assert not {row["id"] for row in trained} & {row["id"] for row in scoring}
    run = plan.search("clo", "de", 1e-4, None)
    assert run.configs[0]["datasets"][0]["path"] == str(tmp_path / "search" / "rows.jsonl")


# ---- equal budgets ----


@pytest.mark.parametrize("method", list(METHODS))
def test_methods_get_the_same_rows_and_steps(tmp_path: Path, tiny_llama: Path, method: str) -> None:
    plan = plan_of(tmp_path, tiny_llama, "--sizes", "8", "--steps", "25")
    configs = plan.run(method, "de", 8, 5, 1e-4, 3e-4).configs
    assert sum(config["max_steps"] for config in configs) == 25
    pairs_or_sequences = {"axolotl_clo.cross_lingual": 1, "axolotl_clo.preference": 2, "axolotl_clo.sft": 2}
    for config in configs:
        assert config["micro_batch_size"] == pairs_or_sequences[config["datasets"][0]["type"]]
        assert config["gradient_accumulation_steps"] == 1
        assert config["num_epochs"] * 8 >= config["max_steps"]  # the last step comes before the last epoch's end
        assert (config["seed"], config["clo"]["max_examples"], config["clo"]["train_modules"]) == (5, 8, "attention")
    assert configs[-1]["learning_rate"] == 1e-4


def test_dpo_starts_from_its_sft_stage(tmp_path: Path, tiny_llama: Path) -> None:
    plan = plan_of(tmp_path, tiny_llama, "--sizes", "8", "--steps", "25")
    sft, dpo = plan.run("sft_dpo", "sw", 8, 1, 1e-5, 3e-4).configs
    assert ("rl" in sft, dpo["rl"]) == (False, "dpo")
    assert (sft["base_model"], dpo["base_model"]) == (str(tiny_llama), sft["output_dir"])
    assert (sft["max_steps"], dpo["max_steps"], sft["learning_rate"]) == (12, 13, 3e-4)


# ---- what is measured ----


@pytest.fixture
def models(tiny_llama: Path) -> tuple[Any, Any, Any]:
    """The tiny model, a changed one, and their tokenizer."""
    base, changed = (AutoModelForCausalLM.from_pretrained(tiny_llama).eval() for _ in range(2))
    with torch.no_grad():
        changed.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    return base, changed, AutoTokenizer.from_pretrained(tiny_llama)


ANSWERS = [["What is a spider?", "An animal with eight legs."], ["Why?", "Because."]]


def test_divergence_is_the_mean_over_answer_tokens(models: tuple[Any, Any, Any]) -> None:
    base, changed, tokenizer = models
    assert mean_kl(base, base, tokenizer, ANSWERS) == 0.0
    total, tokens = 0.0, 0
    for prompt, answer in ANSWERS:
        before = tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        ids = before + tokenizer.encode(answer)
        with torch.no_grad():
            p, q = (model.double()(torch.tensor([ids])).logits[0].softmax(-1) for model in (base, changed))
        for position in range(len(before), len(ids)):
            total += (p[position - 1] * (p[position - 1] / q[position - 1]).log()).sum().item()
        tokens += len(ids) - len(before)
    base.float(), changed.float()
    measured = mean_kl(base, changed, tokenizer, ANSWERS)
    assert measured == pytest.approx(total / tokens, rel=1e-4)
    assert measured > 1e-4


def test_bits_per_byte_are_the_models_own_loss_over_bytes(models: tuple[Any, Any, Any]) -> None:
    base, _, tokenizer = models
    pairs = [("Was ist das?", "Ein Überblick."), ("Why?", "Because it is.")]
    bits = 0.0
    for prompt, response in pairs:
        before = tokenizer.encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
        after = tokenizer.encode(response)
        labels = torch.tensor([[-100] * len(before) + after])
        with torch.no_grad():
            bits += base(torch.tensor([before + after]), labels=labels).loss.item() * len(after) / math.log(2)
    assert bits_per_byte(base, tokenizer, pairs) == pytest.approx(bits / (15 + 14), rel=1e-5)


def test_answers_of_the_search_are_those_the_task_gets(models: tuple[Any, Any, Any]) -> None:
    base, _, tokenizer = models
    task = "axolotl_clo_de_fidelity"
    samples = evaluate_tasks(base, tokenizer, [task], batch_size=8)["samples"][task][:8]
    prompts = [sample["doc"]["prompt"] for sample in samples]
    expected = [sample["filtered_resps"][0] for sample in samples]
    assert answer_greedily(base, tokenizer, prompts) == expected


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 3.0], ".1f") == "2.0 ± 1.0"
    assert spread([0.25], ".2f") == "0.25"


# ---- bad input ----


@pytest.mark.bad_input("config")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rlhf"], r"--methods: invalid choice: 'rlhf' \(choose from '?sft'?, '?sft_dpo'?, '?orpo"),
        (["--languages", "fr"], r"--languages: invalid choice: 'fr' \(choose from '?zh'?, '?de'?"),
        (["--languages", "en"], r"--languages: invalid choice: 'en'"),
        (["--sizes", "8", "129"], r"--sizes: got '129'; whole numbers from 1 to 128 are accepted"),
        (["--sizes", "0"], r"--sizes: got '0'"),
        (["--steps", "1"], r"--steps: got '1'; whole numbers from 2"),
        (["--seeds", "-1"], r"--seeds: "),
        (["--jobs", "0"], r"--jobs: got '0'"),
        (["--base-model", "nowhere"], r"--base-model: no config.json in nowhere; a folder with a model"),
    ],
)
def test_bad_options_are_named_with_what_is_accepted(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.bad_input("long runs")
def test_short_disk_is_said_before_anything_runs(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1e8))
    with pytest.raises(SystemExit, match=r"--out: .*out has 0\.1 GB free"):
        main(["--out", str(tmp_path / "out"), "--base-model", str(tiny_llama)])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.bad_input("long runs")
def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with held(out / ".lock", out), pytest.raises(SystemExit, match=r"--out: another process is writing to .*out; wait"):
        main(["--out", str(out), "--base-model", str(tiny_llama), "--jobs", "1"])
    assert [file.name for file in out.iterdir()] == [".lock"]


# ---- the command ----


class Deadly:
    """A run that ends the worker which receives it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (7,)


@pytest.mark.process
def test_a_worker_that_dies_is_reported_and_replaced() -> None:
    with Workers(jobs=1, threads=1) as workers:
        results = list(workers.results([Deadly("one"), Deadly("two")], lambda names: None))  # type: ignore[list-item]
    assert [(run.name, error) for run, error in results] == [
        ("one", "its process ended with exit code 7"),
        ("two", "its process ended with exit code 7"),
    ]


@pytest.mark.process
def test_command_compares_resumes_and_reports_failures(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # Fewer candidates than by default; no optimizer takes a rate below zero.
    for method, rates in {"sft": (1e-3,), "sft_dpo": (1e-4,), "clo": (1e-3, 2e-3), "orpo": (-1.0,)}.items():
        monkeypatch.setitem(LEARNING_RATES, method, rates)
    out = tmp_path / "out"
    common = ["--out", str(out), "--base-model", str(tiny_llama), "--languages", "de", "--sizes", "4", "--seeds", "1"]
    common += ["--jobs", "1"]

    with pytest.raises(SystemExit) as stopped:
        main([*common, "--methods", "sft_dpo", "clo", "orpo", "--steps", "2"])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert re.search(r"search/orpo-de--1 failed: ValueError: .*\n(.*\n)+.*Invalid learning rate: -1", printed.err)
    assert "runs/orpo-de-4-1 failed: all candidates of its search failed" in printed.err
    assert printed.out == (out / "table.md").read_text(encoding="utf-8")
    check_table(printed.out)
    assert re.search(
        r"^- CLO: 0\.00[12] is the", printed.out, re.MULTILINE
    )  # of two candidates one is always at the edge
    assert "2 of 3 runs" in printed.out
    assert not list(out.rglob("model*")), "weights are deleted after scoring"
    scores = json.loads((out / "runs" / "clo-de-4-1" / "scores.json").read_text(encoding="utf-8"))
    assert 0 < scores["scores"]["en"]["kl"] < 1
    assert len(scores["answers"]["de"]) == 32

    # What is done stays; other steps are another run.
    monkeypatch.setitem(LEARNING_RATES, "clo", (1e-3,))
    before = {file: file.stat().st_mtime_ns for file in out.rglob("scores.json")}
    main([*common, "--methods", "sft_dpo", "clo", "--steps", "2"])
    changed = {file.parent.name for file, then in before.items() if file.stat().st_mtime_ns != then}
    assert changed <= {"clo-de-4-1"}  # only if the other candidate had been chosen
    capsys.readouterr()

    main([*common, "--methods", "clo", "--steps", "3", "--keep-models"])
    changed = {file.parent.name for file, then in before.items() if file.stat().st_mtime_ns != then}
    assert changed == {"clo-de-0.001", "clo-de-4-1"}
    assert (out / "runs" / "clo-de-4-1" / "model-clo" / "model.safetensors").is_file()


def check_table(text: str) -> None:
    """All columns, a line for base and for each method that was trained, a number in each cell of a score."""
    header, _, *lines = [line for line in text.splitlines() if line.startswith("|")][:5]
    names = [name.strip() for name in header.strip("|").split("|")]
    assert names == ["method", "rows", "seeds", *COLUMNS]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:3] for row in cells] == [["base", "", ""], ["SFT, then DPO", "4", "1"], ["CLO", "4", "1"]]
    for row in cells:
        assert all(float(cell) >= 0 for cell in row[3:])
    assert (cells[0][-3], cells[0][-1]) == ("0.000", "1.00")  # the base model against itself
