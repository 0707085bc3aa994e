"""The benchmark of training: what it compares computes the same, and its command does not rot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from benchmarks.__main__ import _parse, plan
from benchmarks.training.measure import measure
from benchmarks.training.models import CHECKPOINTED, SHAPES
from benchmarks.training.processes import Results
from benchmarks.training.rows import write_rows
from benchmarks.training.runs import RUNS, Run
from benchmarks.training.savings import SAVINGS, clo_options, switch_off
from benchmarks.training.table import lines, profiles, table
from conftest import ROOT, one_run, train
from torch import nn
from transformers import AutoTokenizer

Write = Callable[..., Path]

VOCABULARY = 500  # of the tiny model there are more tokens than this, and no layer is as wide
RUN = Run("clo", "tiny", 0, epochs=1, rows=4, batch=2, repeat=0, threads=1, device="cpu", attention="sdpa")


@pytest.fixture
def measured(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], dict[str, Any]]:
    """Does a run in this process."""

    def do(run: Run) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        rows = write_rows(tmp_path / "rows.jsonl", run.rows, run.length, tokenizer)
        with one_run(), monkeypatch.context() as patched:
            return measure(run, tiny_llama, rows, tmp_path, patched.setattr)

    return do


# ---- the savings ----


class Seen(NamedTuple):
    """Shapes that went through the models from the first step on: of token ids, and of the output head's logits."""

    losses: list[float]
    ids: list[tuple[int, ...]]
    logits: list[tuple[int, ...]]
    models: set[int]


def trained(write_config: Write, monkeypatch: pytest.MonkeyPatch, off: tuple[str, ...], steps: int) -> Seen:
    from axolotl_clo.trainer import CLOTrainer

    seen = Seen([], [], [], set())
    compute_loss = CLOTrainer.compute_loss

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not seen.losses:
            for found in seen[1:]:
                found.clear()
        loss = compute_loss(self, *args, **kwargs)
        seen.losses.append(float(loss))
        return loss

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Embedding):
            seen.ids.append(tuple(inputs[0].shape))
            seen.models.add(id(module))
        elif isinstance(module, nn.Linear) and module.out_features > VOCABULARY:
            seen.logits.append(tuple(output.shape[:-1]))

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(CLOTrainer, "compute_loss", compute)
            switch_off(off, patched.setattr)
            options = {"max_steps": steps, "num_epochs": steps, "micro_batch_size": 2}
            train(write_config(clo={"target_lang": "de", **clo_options(off)}, **options))
    finally:
        hook.remove()
    return seen


def test_the_loss_of_fifty_steps_is_the_same_without_any_saving(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = trained(write_config, monkeypatch, (), 50).losses
    plain = trained(write_config, monkeypatch, tuple(SAVINGS), 50).losses
    assert len(saving) == 50
    assert saving[-1] < saving[0] - 0.3
    assert plain == pytest.approx(saving, abs=1e-4)


def test_without_packing_each_sequence_is_a_padded_row(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(write_config, monkeypatch, (), 1).ids[-1][0] == 1
    assert trained(write_config, monkeypatch, ("padded",), 1).ids[-1][0] == 2 * 4


def test_unshared_prompts_are_computed_twice(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    once, twice = (trained(write_config, monkeypatch, off, 1).ids[-1][1] for off in ((), ("unshared",)))
    assert twice > once


def test_full_logits_are_of_all_positions(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = trained(write_config, monkeypatch, ("full-logits",), 1)
    assert seen.logits[-1] == seen.ids[-1]


def test_the_reference_of_each_step_is_a_second_models(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(trained(write_config, monkeypatch, (), 2).models) == 1
    assert len(trained(write_config, monkeypatch, ("reference-each-step",), 2).models) == 2


# ---- what is measured ----


def test_dpo_has_the_floor_of_clo_and_sft_that_of_half_the_sequences(
    measured: Callable[[Run], dict[str, Any]],
) -> None:
    clo, dpo, sft = found = [measured(replace(RUN, name=name)) for name in ("clo", "dpo", "sft")]
    assert all(one["seconds"] > one["seconds_floor"] > 0 for one in found)
    assert all(one["peak"] > 0 < one["peak_floor"] for one in found)
    assert clo["operations"] == dpo["operations"]
    assert clo["tokens"] == dpo["tokens"] > sft["tokens"] > clo["tokens"] / 2


def test_filled_rows_come_near_the_length_and_fit(
    measured: Callable[[Run], dict[str, Any]], tmp_path: Path, tiny_llama: Path
) -> None:
    result = measured(replace(RUN, length=512, checkpointing=True))
    assert result["seconds"] > 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines()):
        prompt, response = (
            max(len(tokenizer(text).input_ids) for text in row[side].values()) for side in ("prompt", "response")
        )
        assert 200 < prompt + response < 512


def test_no_two_rows_are_the_same(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 300).read_text().splitlines()
    assert len(set(rows)) == 300


def test_the_second_start_reads_the_caches_of_the_first(
    measured: Callable[[Run], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from axolotl_clo.scoring import ScoringTrainer

    caplog.set_level("INFO", logger="axolotl_clo")
    measured(replace(RUN, kind="fill"))
    monkeypatch.setattr(ScoringTrainer, "_score", lambda *_: pytest.fail("the reference was computed"))
    assert measured(replace(RUN, kind="startup"))["seconds"] > 0


def test_a_profile_names_operators(measured: Callable[[Run], dict[str, Any]]) -> None:
    run = replace(RUN, kind="profile")
    results = Results(None)
    results.add(run, measured(run))
    assert "| `aten::mm` |" in profiles([run], results)


# ---- the table ----


def result(seconds: float, peak: float) -> dict[str, float]:
    return {"seconds": seconds, "seconds_floor": 2.0, "peak": peak, "peak_floor": 10.0}


def test_ratios_are_of_the_same_repeat_with_their_spread() -> None:
    results, runs = Results(None), []
    for repeat, (clo, dpo) in enumerate([(4.0, 12.0), (8.0, 32.0)]):
        for name, seconds in (("clo", clo), ("dpo", dpo)):
            runs.append(replace(RUN, name=name, repeat=repeat))
            results.add(runs[-1], result(seconds, peak=30.0 if name == "clo" else 120.0))
    _, _, clo_line, dpo_line = table(runs, results).splitlines()
    assert "| CLO | 6.0 ± 2.8 | 2.0 | 3.00 ± 1.41 |  |" in clo_line
    assert "| 3.50 ± 0.71 | ≥ 3 | 120 | 10 | 0.25 ± 0.00 | ≤ 0.35 |" in dpo_line


def test_a_run_that_failed_is_a_line_that_says_why() -> None:
    runs, results = [RUN, replace(RUN, name="sft")], Results(None)
    results.add(runs[0], result(4.0, 30.0))
    results.add(runs[1], {"error": "OutOfMemoryError: CUDA out of memory"})
    clo, sft = table(runs, results).splitlines()[2:]
    assert "4.0" in clo
    assert "stock SFT, all parameters, same tokens | failed: OutOfMemoryError: CUDA out of memory |" in sft


def test_lines_below_the_table_compare_starts_and_losses() -> None:
    results = Results(None)
    start, curve = replace(RUN, kind="startup", rows=6400), replace(RUN, kind="curve")
    runs = [start, replace(start, name="sft"), curve, replace(curve, name="plain")]
    for run, found in zip(
        runs, [{"seconds": 50.0}, {"seconds": 44.5}, {"losses": [1.0, 0.5]}, {"losses": [1.0, 0.50002]}], strict=True
    ):
        results.add(run, found)
    said = lines(runs, results)
    assert "6400 rows cached, tiny: 5.5 processor seconds more than stock SFT's 44.5 (goal: ≤ 10)" in said
    assert "at most 2.0e-05 apart (goal: 1e-04)" in said


# ---- the command ----


def test_results_are_kept_run_by_run_and_failed_ones_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first, second = RUN, replace(RUN, repeat=1)
    results = Results(file)
    results.add(first, result(4.0, 30.0))
    results.add(second, {"error": "killed by SIGKILL"})
    again = Results(file)
    assert again[first] == result(4.0, 30.0)
    assert first in again
    assert second not in again


def test_runs_that_are_compared_follow_each_other() -> None:
    runs = plan(_parse(["--device", "cpu", "--runs", "clo", "dpo", "--epochs", "1", "--repeats", "2"]))
    assert [(run.name, run.repeat) for run in runs] == [("clo", 0), ("dpo", 0), ("clo", 1), ("dpo", 1)]


def test_every_run_is_in_the_plan_of_a_gpu() -> None:
    runs = plan(_parse(["--device", "cuda"]))
    sizes = {(run.model, run.length) for run in runs if run.kind == "train"}
    assert sizes == {(model, length) for model in ("llama-1b", "llama-8b") for length in (512, 2048)}
    assert {run.name for run in runs} == set(RUNS)
    assert all(run.checkpointing == (run.model in CHECKPOINTED) for run in runs if run.kind == "train")


def test_shapes_have_the_parameters_of_their_models() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        sizes = {n: LlamaForCausalLM(LlamaConfig(**SHAPES[n])).num_parameters() for n in ("llama-1b", "llama-8b")}
    assert sizes == {"llama-1b": 1_235_814_400, "llama-8b": 8_030_261_248}


@pytest.mark.process
def test_the_command_prints_a_table_with_what_failed_and_goes_on(tmp_path: Path, tiny_llama: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.benchmarks", "--device", "cpu", "--runs", "clo", "--out", str(out)]
    command += ["--rows", "2", "--batch", "2", "--epochs", "1", "--repeats", "1", "--threads", "1"]

    def printed(model: str, attention: str = "sdpa") -> tuple[str, str]:
        asked = [*command, "--models", model, "--attention", attention]
        done = subprocess.run(asked, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()[-1], done.stderr

    line, _ = printed("tiny")
    assert line.count("|") == 13
    assert "failed" not in line
    again, progress = printed("tiny")
    assert "done before" in progress
    assert again == line
    assert "failed: " in printed(str(tiny_llama), attention="flash_attention_2")[0]
