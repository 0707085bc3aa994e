"""What a report says: one number for a language, what is within noise, and what a reader has to know."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_runs import write_answers, write_results, write_starter_run, zeros_and_ones

from axolotl_clo.evaluate.report.analysis import Analysis, analyse
from axolotl_clo.evaluate.report.noise import adjusted, compare, judge, score_interval, standard_error
from axolotl_clo.evaluate.report.proficiency import Proficiency, mean_score, retention
from axolotl_clo.evaluate.report.read import read_runs
from axolotl_clo.evaluate.report.runs import Run, Score, ScoreKey, merge_seeds


def analysed(*folders: Path, reference: str | None = None) -> Analysis:
    return analyse(read_runs(folders), reference)


def score(values: list[float], task: str = "clo_de_task", metric: str = "acc") -> Score:
    documents = {f"d{i}": value for i, value in enumerate(values)}
    return Score(ScoreKey("de", task, metric, 0), sum(values) / len(values), documents=documents)


# ---- noise ----


def test_holm_s_adjustment() -> None:
    # 0.01 · 3, then 0.03 · 2, then 0.04 · 1, which may not be smaller than the one before.
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([]) == []


def test_a_difference_is_noise_until_documents_show_it() -> None:
    few, many = (
        compare(score([1.0] * right + [0.0] * wrong), score([0.0] * (right + wrong)))
        for right, wrong in ((2, 8), (20, 12))
    )
    assert judge({"run": few}, True)["run"].kind == "noise"
    assert judge({"run": many}, True)["run"].kind == "better"
    assert judge({"run": many}, False)["run"].kind == "worse"
    assert judge({"run": many}, None)["run"].kind == "differs"
    assert many.test == "McNemar"


def test_what_one_comparison_shows_many_may_not() -> None:
    verdict = compare(score([1.0] * 6 + [0.0] * 26), score([0.0] * 32))  # p = 2 / 2⁶
    assert judge({"one": verdict}, True)["one"].kind == "better"
    crowd = judge({str(i): verdict for i in range(8)}, True)
    assert {found.kind for found in crowd.values()} == {"noise"}


def test_real_valued_scores_are_resampled() -> None:
    verdict = compare(score([0.5 + i / 100 for i in range(40)]), score([0.4 + i / 100 for i in range(40)]))
    assert verdict.test == "paired bootstrap"
    assert verdict.difference == pytest.approx(0.1)


def test_without_documents_the_test_is_unpaired_and_without_errors_there_is_none() -> None:
    key = ScoreKey("de", "clo_de_task", "acc", 0)
    a, b = Score(key, 0.9, error=0.02), Score(key, 0.5, error=0.02)
    assert compare(a, b).test == "unpaired"
    assert judge({"a": compare(a, b)}, True)["a"].kind == "better"
    bits = Score(ScoreKey("de", "clo_de_task", "bits_per_byte", 0), 2.0)
    assert compare(bits, bits).kind == "untested"
    assert score_interval(bits) is None


def test_runs_are_compared_on_the_documents_both_have() -> None:
    ours, theirs = score([1.0] * 10), score([0.0] * 20)
    verdict = compare(ours, theirs)
    assert (verdict.common, verdict.difference) == (10, 1.0)


# ---- one number for a language ----


def test_a_document_of_several_tasks_counts_once() -> None:
    values = [float(i % 3 == 0) for i in range(60)]
    one = score(values, "axolotl_clo_de_fidelity")
    same = score(values, "axolotl_clo_de_preference")
    # What is asked twice of the same documents is no surer than asked once.
    assert standard_error(mean_score("de", [one, same])) == pytest.approx(standard_error(one))
    other = score(values, "clo_de_belebele")
    apart = mean_score("de", [score(values, "clo_de_other"), other])
    assert standard_error(apart) == pytest.approx((standard_error(one) or 0) / math.sqrt(2), rel=0.01)
    assert math.fsum(apart.documents.values()) / 120 == pytest.approx(apart.value)


def test_tasks_of_any_size_weigh_the_same() -> None:
    small, large = score([1.0] * 10, "clo_de_small"), score([0.0] * 90, "clo_de_large")
    assert mean_score("de", [small, large]).value == 0.5


def test_benchmarks_count_before_the_starter_rows(tmp_path: Path) -> None:
    for name in ("base", "clo"):
        tasks = {
            "clo_de_belebele": {"acc": zeros_and_ones(12, 32), "acc_norm": zeros_and_ones(13, 32)},
            "axolotl_clo_de_fidelity": {"fidelity_no_echo": zeros_and_ones(32, 32)},
            "axolotl_clo_de_preference": {"preference_per_byte": zeros_and_ones(32, 32)},
        }
        write_results(tmp_path / name, tasks)
    (german,) = analysed(tmp_path / "base", tmp_path / "clo").targets
    assert german.number
    assert [key.metric for key in german.number.keys] == ["acc"]
    assert german.entries["clo"].score.value == 12 / 32
    assert german.number.definition == "German proficiency: belebele: accuracy (benchmarks)."


def write_benchmarks(folder: Path, target: int, english: int) -> Path:
    """So many of 30 right in each language, on Belebele and in ten subjects of MMMLU and MMLU."""
    tasks, groups = {}, {}
    for code, subjects, right in (("de", "mmmlu", target), ("en", "mmlu", english)):
        tasks[f"axolotl_clo_{code}_belebele"] = {"acc": zeros_and_ones(right, 30)}
        names = [f"axolotl_clo_{code}_{subjects}_{i}" for i in range(10)]
        tasks |= {name: {"acc": zeros_and_ones(right - 2, 30)} for name in names}
        tasks[f"axolotl_clo_{code}_kobest"] = {"acc": zeros_and_ones(30, 30)}  # counts in no number
        groups[f"clo_{code}_{subjects}"] = names
    return write_results(folder, tasks, groups=groups)


def test_proficiency_and_retention_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    write_benchmarks(tmp_path / "base", 12, 20)
    write_benchmarks(tmp_path / "clo", 18, 17)
    found = analysed(tmp_path / "base", tmp_path / "clo")
    (german,) = found.targets
    assert found.source
    assert german.entries["clo"].score.value == pytest.approx((18 / 30 + 16 / 30) / 2)
    retained = found.source.entries["clo"]
    assert retained.score.value == pytest.approx((17 / 30 + 15 / 30) / (20 / 30 + 18 / 30))
    assert retained.interval
    assert retained.interval.low < retained.score.value < retained.interval.high
    assert retained.verdict
    assert retained.verdict.kind == "worse"
    assert found.source.entries["base"].score.value == 1.0
    assert found.source.entries["base"].interval is None
    assert found.source.number
    assert found.source.number.definition == (
        "English retention: the mean of 2 scores of equal weight (benchmarks), which are belebele: accuracy; "
        "mmlu: accuracy, divided by that of base."
    )


def test_the_interval_of_a_ratio_is_that_of_its_resamples() -> None:
    import numpy as np

    generator = np.random.default_rng(2)
    base = (generator.random(400) < 0.7).astype(float)
    trained = np.where(generator.random(400) < 0.9, base, 1 - base)
    scores = {name: score(list(values), "clo_en_task") for name, values in (("base", base), ("clo", trained))}
    number = retention(Proficiency("en", (), scores, ()), "base")
    drawn = generator.integers(400, size=(4000, 400))
    resampled = trained[drawn].mean(axis=1) / base[drawn].mean(axis=1)
    assert standard_error(number.scores["clo"]) == pytest.approx(resampled.std(), rel=0.1)


def test_a_task_that_a_run_lacks_does_not_count_and_is_named(tmp_path: Path) -> None:
    belebele, mmlu = {"acc": zeros_and_ones(12, 32)}, {"acc": zeros_and_ones(30, 32)}
    write_results(tmp_path / "base", {"clo_de_belebele": belebele, "clo_de_mmmlu": mmlu})
    write_results(tmp_path / "clo", {"clo_de_belebele": belebele})
    found = analysed(tmp_path / "base", tmp_path / "clo")
    assert found.targets[0].entries["base"].score.value == 12 / 32
    assert any("as clo lacks it: score with `--tasks clo_de_mmmlu`" in note for note in found.notes)
    (table,) = (table for table in found.targets[0].tables if table.key.task == "clo_de_mmmlu")
    assert table.lacking == ["clo"]


def test_runs_that_share_no_task_have_no_number_to_compare(tmp_path: Path) -> None:
    write_results(tmp_path / "base", {"clo_de_belebele": {"acc": zeros_and_ones(12, 32)}})
    write_results(tmp_path / "clo", {"clo_de_mmmlu": {"acc": zeros_and_ones(12, 32)}})
    found = analysed(tmp_path / "base", tmp_path / "clo")
    assert list(found.targets[0].entries) == ["base"]
    assert any("clo has no number in de: score it with `--tasks clo_de_belebele` too" in note for note in found.notes)


def test_few_shot_scores_are_others(tmp_path: Path) -> None:
    write_results(tmp_path / "zero", {"kobest_copa": {"acc": zeros_and_ones(12, 32)}})
    write_results(tmp_path / "five", {"kobest_copa": {"acc": zeros_and_ones(20, 32)}}, shots=5)
    found = analysed(tmp_path / "zero", tmp_path / "five")
    assert [table.key.shots for table in found.targets[0].tables] == [0, 5]
    assert all(entry.verdict is None for table in found.targets[0].tables for entry in table.entries)


def test_the_base_model_is_the_reference_unless_another_is_named(tmp_path: Path) -> None:
    for name in ("clo", "base"):
        write_starter_run(tmp_path / name, 16, 8)
    paths = tmp_path / "clo", tmp_path / "base"
    found, named = analysed(*paths), analysed(*paths, reference="clo")
    assert found.reference
    assert named.reference
    assert (found.reference.name, named.reference.name) == ("base", "clo")
    with pytest.raises(ValueError, match="--reference: no run with scores is called 'sft'; there are clo, base"):
        analysed(*paths, reference="sft")


def test_a_score_of_seeds_is_the_mean_over_them() -> None:
    runs = [
        Run(name, Path(name), scores={score(values).key: score(values)})
        for name, values in (("a", [1.0, 0.0]), ("b", [1.0, 1.0]))
    ]
    merged = merge_seeds("both", runs)
    (found,) = merged.scores.values()
    assert (found.value, found.by_seed, dict(found.documents)) == (0.75, (0.5, 1.0), {"d0": 1.0, "d1": 0.5})


# ---- what a reader has to know ----


def test_other_documents_than_the_reference_s_are_told(tmp_path: Path) -> None:
    write_results(tmp_path / "base", {"clo_de_belebele": {"acc": zeros_and_ones(12, 32)}})
    write_results(tmp_path / "clo", {"clo_de_belebele": {"acc": zeros_and_ones(12, 20)}})
    found = analysed(tmp_path / "base", tmp_path / "clo")
    assert any("(20 and 32), compared on the 20 in common; score both on the same" in note for note in found.notes)


def test_other_prompts_than_the_others_are_told(tmp_path: Path) -> None:
    for name, prompts in (("base", "abc"), ("clo", "abc"), ("sft", "xyz")):
        write_answers(tmp_path / name / "answers.jsonl", [("de", prompt, "Ja, das stimmt.") for prompt in prompts])
    found = analysed(tmp_path / "base", tmp_path / "clo", tmp_path / "sft")
    assert found.asked == {"de": 3}
    assert all(row.answers["sft"] is None for row in found.answers["de"])
    assert any(
        note.startswith("sft: answered other prompts in de") and "same --prompts" in note for note in found.notes
    )


def test_empty_answers_and_templates_that_differ_are_told(tmp_path: Path) -> None:
    write_answers(tmp_path / "base" / "answers.jsonl", [("de", "Wer?", " "), ("de", "Wo?", "Hier.")])
    write_starter_run(tmp_path / "base", 16, 8)
    write_starter_run(tmp_path / "clo", 16, 8, chat_template=None)
    found = analysed(tmp_path / "base", tmp_path / "clo")
    assert "base: 1 answers in de are empty; they count as wrong" in found.notes
    assert any(note.startswith("clo: scored without a chat template") for note in found.notes)


def test_results_without_samples_say_how_to_get_them(tmp_path: Path) -> None:
    write_starter_run(tmp_path / "base", 16, 8, samples=False, stderr=0.05)
    found = analysed(tmp_path / "base")
    assert any("add --log_samples" in note for note in found.notes)
    assert found.targets[0].entries["base"].interval is not None
