"""What `axolotl-clo report` reads: files of the harness, of Axolotl and of this package; and what it cannot read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import (
    ENGLISH,
    GERMAN,
    write_answers,
    write_compared,
    write_config,
    write_judgement,
    write_results,
    write_starter_run,
    write_trainer_state,
    zeros_and_ones,
)
from sklearn.metrics import f1_score

from axolotl_clo.evaluate import task_folder
from axolotl_clo.evaluate.report.documents import per_document
from axolotl_clo.evaluate.report.names import method_in, rows_in, task_language
from axolotl_clo.evaluate.report.read import read_runs
from axolotl_clo.evaluate.report.runs import Run, ScoreKey


@pytest.fixture(scope="module")
def harness_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model without weights, scored and written by the harness itself."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM
    from lm_eval.tasks import TaskManager

    class WithoutTokenizer(DummyLM):
        tokenizer = None  # the harness would look for one on the hub

    folder = tmp_path_factory.mktemp("harness")
    tracker = EvaluationTracker(output_path=str(folder))
    tasks = ["axolotl_clo_ko_fidelity", "axolotl_clo_ko_preference", "axolotl_clo_en_bits_per_byte"]
    manager = TaskManager(include_path=str(task_folder()))
    results = simple_evaluate(
        WithoutTokenizer(), tasks=tasks, task_manager=manager, limit=5, evaluation_tracker=tracker, bootstrap_iters=0
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in tasks:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return folder, results


def test_results_of_the_harness_are_read(harness_run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = harness_run
    (run,) = read_runs([folder])
    for task, language in (("axolotl_clo_ko_preference", "ko"), ("axolotl_clo_en_bits_per_byte", "en")):
        metric = "preference" if language == "ko" else "bits_per_byte"
        score = run.scores[ScoreKey(language, task, metric, 0)]
        assert score.value == results["results"][task][f"{metric},none"]
        assert len(score.documents) == 5
        assert math.fsum(score.documents.values()) / 5 == pytest.approx(score.value)
    assert {(answer.language, answer.text) for answer in run.answers} == {("ko", "lol")}
    assert (
        "--tasks axolotl_clo_ko_fidelity,axolotl_clo_ko_preference,axolotl_clo_en_bits_per_byte" in run.commands[0].text
    )
    assert any("--limit 5" in note for note in run.notes)


def test_files_of_the_tests_are_in_the_harness_s_format(
    tmp_path: Path, harness_run: tuple[Path, dict[str, Any]]
) -> None:
    def shape(results: Path) -> tuple[set[str], set[str]]:
        (samples, *_) = sorted(results.parent.glob("samples_*fidelity*"))
        return set(json.loads(results.read_text())), set(json.loads(samples.read_text().splitlines()[0]))

    ours = shape(write_starter_run(tmp_path, 16, 8))
    (file,) = harness_run[0].rglob("results_*.json")
    theirs = shape(file)
    assert ours[0] <= theirs[0] | {"groups"}  # which is there where a group was scored
    assert ours[1] <= theirs[1]


def test_a_ratio_and_an_f1_become_means_over_documents() -> None:
    nats = {f"d{i}": [-10.0 * (i + 1), 20 + i] for i in range(6)}
    bits = -sum(n for n, _ in nats.values()) / sum(b for _, b in nats.values()) / math.log(2)
    found = per_document(nats, bits)
    assert math.fsum(found.values()) / 6 == pytest.approx(bits)
    pairs = {f"d{i}": [i % 3, (i * i) % 3] for i in range(30)}
    macro = f1_score(*zip(*pairs.values(), strict=True), average="macro")
    found = per_document(pairs, macro)
    assert math.fsum(found.values()) / 30 == pytest.approx(macro)


def test_the_pass_rate_of_lines_and_words_becomes_a_mean_over_documents() -> None:
    passes = {"a": [1.0, 1.0], "b": [1.0, 0.0], "c": [0.0, None], "d": [None, None], "e": [1.0, 1.0]}
    line, word = 3 / 4, 2 / 3
    found = per_document(passes, 2 * line * word / (line + word))
    assert math.fsum(found.values()) / 5 == pytest.approx(2 * line * word / (line + word))
    # Documents that count for neither rate have no part in its spread.
    assert found["d"] == pytest.approx(2 * line * word / (line + word))


def test_the_spread_of_a_linearised_f1_is_that_of_its_resamples() -> None:
    import numpy as np

    generator = np.random.default_rng(1)
    gold = generator.integers(2, size=300)
    said = np.where(generator.random(300) < 0.75, gold, 1 - gold)
    macro = f1_score(gold, said, average="macro")
    found = per_document({str(i): [int(g), int(s)] for i, (g, s) in enumerate(zip(gold, said, strict=True))}, macro)
    drawn = generator.integers(300, size=(400, 300))
    resampled = np.std([f1_score(gold[rows], said[rows], average="macro") for rows in drawn])
    assert np.std(list(found.values())) / math.sqrt(300) == pytest.approx(resampled, rel=0.15)


def test_documents_that_do_not_give_the_score_are_not_used() -> None:
    assert per_document({"a": 1.0, "b": 0.0}, 0.7) == {}
    assert per_document({"a": "text", "b": "more"}, 0.5) == {}
    assert per_document({"a": math.nan, "b": 1.0}, 1.0) == {}


def test_many_parts_of_a_dataset_are_one_score(tmp_path: Path) -> None:
    tasks = {f"clo_ko_mmmlu_{i}": {"acc": zeros_and_ones(i, 10 + i)} for i in range(9)}
    write_results(tmp_path / "run", tasks, groups={"clo_ko_mmmlu": list(tasks)})
    (run,) = read_runs([tmp_path / "run"])
    ((key, score),) = run.scores.items()
    assert (key.task, key.language) == ("clo_ko_mmmlu", "ko")
    assert score.value == pytest.approx(36 / 126)
    assert len(score.documents) == 126


@pytest.mark.parametrize(
    ("task", "language"),
    [
        ("clo_yo_belebele", "yo"),
        ("axolotl_clo_zh_fidelity", "zh"),
        ("belebele_swh_Latn", "sw"),
        ("mmmlu_de_de_stem", "de"),
        ("kobest_boolq", "ko"),
        ("mmlu_anatomy", "en"),
        ("lambada", None),
    ],
)
def test_the_language_of_a_task_is_known_by_its_name(task: str, language: str | None) -> None:
    assert task_language(task, {}) == language


def test_method_and_rows_of_a_name() -> None:
    assert [method_in(name) for name in ("llama-base", "CLO 0.1", "sft-dpo", "my-orpo", "closed")] == [
        "base",
        "clo",
        "sft_dpo",
        "orpo",
        None,
    ]
    assert (rows_in("CLO, 1,600 rows"), rows_in("llama-3-8b")) == (1600, None)


def test_a_run_is_all_that_lies_below_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_starter_run(folder / "scores", 20, 8)
    write_trainer_state(folder / "model" / "checkpoint-4", 4)
    write_trainer_state(folder / "model" / "checkpoint-8", 8)
    write_config(folder / "sft.yml", None, 800, "hub/base", "stage-1")
    write_config(folder / "a-dpo.yml", "dpo", 800, "stage-1", "stage-2")
    write_answers(folder / "answers.jsonl", [("de", "Wer?", "Ich.")])
    write_judgement(folder / "judged", 5, 3, 2)
    (run,) = read_runs([folder])
    assert (run.name, run.method, run.rows) == ("run", "sft_dpo", 800)
    assert len(run.curves) == 1
    assert len(run.curves[0].points["loss"]) == 8
    assert "grad_norm" not in run.curves[0].points
    assert run.answers[0].text == "Ich."
    assert run.judgements[0].tallies[0].wins == 5
    told = " ".join(command.text + command.config for command in run.commands)
    assert "axolotl-clo generate" in told
    assert run.versions["torch"] == "2.13.0"
    assert "hf_secret" not in told
    assert "sk-123" not in told
    assert [c.text.split("/")[-1] for c in run.commands if c.text.startswith("axolotl train")] == [
        "sft.yml",
        "a-dpo.yml",
    ]


def test_results_of_several_models_are_several_runs(tmp_path: Path) -> None:
    write_starter_run(tmp_path / "out" / "a", 20, 8, model="org/a")
    write_starter_run(tmp_path / "out" / "b", 22, 8, model="org/b")
    assert [run.name for run in read_runs([tmp_path / "out"])] == ["out: a", "out: b"]


def test_a_score_written_twice_is_the_latest(tmp_path: Path) -> None:
    write_starter_run(tmp_path / "run", 20, 8)
    write_starter_run(tmp_path / "run", 24, 8, date="2027-01-01T00-00-00.000000")
    (run,) = read_runs([tmp_path / "run"])
    assert run.scores[ScoreKey("de", "axolotl_clo_de_fidelity", "fidelity_no_echo", 0)].value == 24 / 32
    assert any("several results files" in note for note in run.notes)


def test_a_quickstart_is_two_runs(tmp_path: Path) -> None:
    write_starter_run(tmp_path / "scores-before" / "m", 10, 2)
    write_starter_run(tmp_path / "scores-after" / "m", 30, 28)
    runs = read_runs([tmp_path])
    assert [run.method for run in runs] == ["base", None]


def test_seeds_of_a_comparison_are_one_run(tmp_path: Path) -> None:
    prompts = ["Welcher Planet ist der größte?", "Und welcher ist der zweitgrößte?"]
    write_compared(tmp_path / "base", 0.0, [[prompt, ENGLISH] for prompt in prompts])
    write_compared(tmp_path / "runs" / "clo-de-8-1", 1.0, [[prompt, GERMAN] for prompt in prompts])
    write_compared(tmp_path / "runs" / "clo-de-8-2", 0.5, [[prompts[0], GERMAN], [prompts[1], ENGLISH]])
    write_config(tmp_path / "runs" / "clo-de-8-1" / "clo.yml", "clo", 8)
    base, clo = read_runs([tmp_path])
    assert (base.method, clo.name, clo.rows, clo.seeds) == ("base", "CLO, 8 rows", 8, 2)
    score = clo.scores[ScoreKey("de", "axolotl_clo_de_fidelity", "fidelity", 0)]
    assert (score.value, score.by_seed) == (0.75, (1.0, 0.5))
    # The answers were identified again, so that each document has a score: its mean over seeds.
    assert sorted(score.documents.values()) == [0.5, 1.0]
    assert not clo.scores[ScoreKey("de", "axolotl_clo_de_preference", "preference", 0)].documents


# ---- what cannot be read ----


@pytest.mark.bad_input("evaluate")
def test_no_runs_at_all() -> None:
    with pytest.raises(ValueError, match=r"no runs are given; give one or more folders with lm-eval results"):
        read_runs([])


@pytest.mark.bad_input("evaluate")
def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"holds nothing that can be reported; expected below it lm-eval results"):
        read_runs([tmp_path])


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0.4.2", r"written by lm-evaluation-harness 0\.4\.2; 0\.4\.11 and later are read; score the model again"),
        (None, r"names no lm_eval_version, so it is no results file of lm-evaluation-harness 0\.4\.11 or later"),
    ],
)
def test_results_of_another_harness(tmp_path: Path, version: str | None, message: str) -> None:
    write_starter_run(tmp_path, 10, 2, version=version)
    with pytest.raises(ValueError, match=message):
        read_runs([tmp_path])


@pytest.mark.bad_input("evaluate")
def test_results_of_a_format_to_come(tmp_path: Path) -> None:
    file = write_starter_run(tmp_path, 10, 2, version="0.9.0")
    (run,) = read_runs([tmp_path])
    assert run.scores  # a later version that kept the format
    data = json.loads(file.read_text())
    del data["n-shot"]
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"harness 0\.9\.0 in a format that is not known here \(without n-shot\)"):
        read_runs([tmp_path])


@pytest.mark.bad_input("evaluate")
def test_files_cut_off_are_named(tmp_path: Path) -> None:
    file = write_starter_run(tmp_path / "a", 10, 2)
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=re.escape(str(file)) + ": not a whole JSON file"):
        read_runs([tmp_path / "a"])
    write_starter_run(tmp_path / "b", 10, 2)
    samples = next((tmp_path / "b").glob("samples_*"))
    samples.write_text(samples.read_text() + '{"doc": ')
    with pytest.raises(ValueError, match=r"line 33: no sample of lm-evaluation-harness"):
        read_runs([tmp_path / "b"])
    answers = write_answers(tmp_path / "c" / "answers.jsonl", [("de", "Wer?", "Ich.")])
    answers.write_text(answers.read_text() + '{"id": "1", "language": "de"}\n')
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: .* run the same `axolotl-clo generate` again"):
        read_runs([tmp_path / "c"])


@pytest.mark.bad_input("evaluate")
def test_answers_and_verdicts_of_another_format(tmp_path: Path) -> None:
    write_answers(tmp_path / "a" / "answers.jsonl", [("de", "Wer?", "Ich.")], form="axolotl-clo answers 7")
    with pytest.raises(ValueError, match="'axolotl-clo answers 1' is read: generate the answers again"):
        read_runs([tmp_path / "a"])
    file = write_judgement(tmp_path / "b", 5, 3, 2)
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="'axolotl-clo judge 1' is read: judge again"):
        read_runs([tmp_path / "b"])


@pytest.mark.bad_input("evaluate")
def test_names_fit_the_runs(tmp_path: Path) -> None:
    for name in ("x/run", "y/run"):
        write_starter_run(tmp_path / name, 10, 2)
    paths = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert [run.name for run in read_runs(paths)] == ["x/run", "y/run"]
    named: list[Run] = read_runs(paths, ["base", "CLO 1,600 rows"])
    assert [(run.name, run.method, run.rows) for run in named] == [
        ("base", "base", None),
        ("CLO 1,600 rows", "clo", 1600),
    ]
    with pytest.raises(ValueError, match="1 names for 2 runs; give one --name for each run"):
        read_runs(paths, ["a"])
    with pytest.raises(ValueError, match="'a' stands for more than one run"):
        read_runs(paths, ["a", "a"])
    with pytest.raises(ValueError, match="the same folder is given more than once"):
        read_runs([paths[0], paths[0]])
