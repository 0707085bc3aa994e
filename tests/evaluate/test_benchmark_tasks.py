"""Belebele, MMMLU, MMLU and KoBEST ask what the harness's own tasks ask, and give the same numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import yaml
from conftest import LANGUAGES, ROOT, starter_rows
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from small_benchmarks import KOBEST, real_kobest, write_benchmarks, write_dataset

from axolotl_clo.evaluate import aggregates, kobest
from axolotl_clo.evaluate.benchmarks import macro_f1, of_subject

FOLDER = ROOT / "eval_tasks"
DATA = Path(os.environ.get("AXOLOTL_CLO_KOBEST", ROOT.parent / "shared" / "data" / "kobest"))
BELEBELE = {"en": "eng_Latn", "zh": "zho_Hans", "de": "deu_Latn", "ko": "kor_Hang", "id": "ind_Latn"}
BELEBELE |= {"sw": "swh_Latn", "yo": "yor_Latn"}
MMMLU = {"zh": "zh_cn", "de": "de_de", "ko": "ko_kr", "id": "id_id", "sw": "sw_ke", "yo": "yo_ng"}
OWN = TaskManager(include_path=str(FOLDER), include_defaults=False)
SUBJECTS = [name.removeprefix("axolotl_clo_en_mmlu_") for name in OWN.task_index["axolotl_clo_mmlu"]["task"]]


@pytest.fixture(scope="module")
def harness() -> TaskManager:
    """The harness's own tasks."""
    return TaskManager()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which the names of the datasets are small folders."""
    folder = tmp_path_factory.mktemp("small")
    write_benchmarks(folder, SUBJECTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


class Scripted(LM):
    """Likes each choice after each prompt by a number that anyone can compute again."""

    tokenizer_name = "scripted"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int, str, str]] = []

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        self.asked += [(request.doc_id, request.idx, *request.args) for request in requests]
        return [(-float(zlib.crc32("".join(request.args).encode()) % 9973), False) for request in requests]

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        raise AssertionError("the benchmarks compare likelihoods")

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        raise AssertionError("the benchmarks have prompts")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "scripted"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        turns = "".join(f"<{turn['role']}>{turn['content']}" for turn in chat_history)
        return turns + ("<assistant>" if add_generation_prompt else "")


def run(
    manager: TaskManager, tasks: list[str], **options: Any
) -> tuple[list[tuple[int, int, str, str]], dict[str, Any]]:
    """What a model is asked, and what comes out."""
    model = Scripted()
    result = lm_eval.simple_evaluate(
        model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=False, **options
    )
    return model.asked, result["results"]


def metrics(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.endswith(",none") and "_stderr" not in name}


# The same as the harness's own


def settings(manager: TaskManager, task: str) -> dict[str, Any]:
    """What a task's YAML says of documents, prompts and metrics."""
    config = manager._get_config(task)
    unlike = ["task", "task_alias", "tag", "include", "metadata", "should_decontaminate", "process_docs"]
    return {k: v for k, v in config.items() if k not in (*unlike, "doc_to_decontamination_query")}


def test_all_of_belebele_mmmlu_and_mmlu_is_set_as_in_the_harness(harness: TaskManager) -> None:
    pairs = {f"axolotl_clo_{code}_belebele": f"belebele_{name}" for code, name in BELEBELE.items()}
    pairs |= {f"axolotl_clo_en_mmlu_{subject}": f"mmlu_{subject}" for subject in SUBJECTS}
    pairs |= {
        f"axolotl_clo_{c}_mmmlu_{subject}": f"mmmlu_{n}_{subject}" for c, n in MMMLU.items() for subject in SUBJECTS
    }
    for ours, theirs in pairs.items():
        assert settings(OWN, ours) == settings(harness, theirs), ours
    tasks = {task for task in OWN.all_subtasks if not task.endswith(("fidelity", "preference", "bits_per_byte"))}
    assert tasks == set(pairs) | {f"axolotl_clo_ko_kobest_{task}" for task in KOBEST}


def test_the_subjects_of_a_category_are_those_of_the_harness(harness: TaskManager) -> None:
    for category in ("stem", "humanities", "social_sciences", "other"):
        theirs = {name.removeprefix("mmlu_") for name in harness.task_index[f"mmlu_{category}_tasks"]["task"]}
        ours = {name.rpartition("mmlu_")[2] for name in OWN.task_index[f"axolotl_clo_en_mmlu_{category}"]["task"]}
        assert ours == theirs


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 2}, {"num_fewshot": 5, "apply_chat_template": True}])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("axolotl_clo_ko_belebele", "belebele_kor_Hang"),
        ("axolotl_clo_ko_mmmlu_anatomy", "mmmlu_ko_kr_anatomy"),
        ("axolotl_clo_sw_mmmlu_moral_scenarios", "mmmlu_sw_ke_moral_scenarios"),
        ("axolotl_clo_en_mmlu_high_school_us_history", "mmlu_high_school_us_history"),
        *((f"axolotl_clo_ko_kobest_{task}", f"kobest_{task}") for task in KOBEST),
    ],
)
def test_documents_prompts_and_numbers_are_the_harness_s(
    small: Path, harness: TaskManager, ours: str, theirs: str, options: dict[str, Any]
) -> None:
    shots = options.get("num_fewshot", 0)
    if "mmmlu" in ours and shots > 3:
        options = {**options, "num_fewshot": 3}  # rows that the small folder has
    if options.get("apply_chat_template"):
        options = {**options, "fewshot_as_multiturn": True}
    asked, results = run(OWN, [ours], **options)
    expected, expected_results = run(harness, [theirs], **options)
    assert asked == expected
    assert len(asked) > 0
    assert metrics(results[ours]) == pytest.approx(metrics(expected_results[theirs]))
    if options.get("fewshot_as_multiturn"):
        assert asked[0][2].count("<user>") == options["num_fewshot"] + 1


@pytest.mark.skipif(
    not DATA.is_dir(), reason="KoBEST is CC BY-SA and no part of the repository; AXOLOTL_CLO_KOBEST names its folder"
)
def test_all_of_the_real_kobest_is_asked_as_the_harness_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harness: TaskManager
) -> None:
    rows = real_kobest(DATA)
    write_dataset(tmp_path / "skt" / "kobest_v1", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for options in ({"num_fewshot": 0}, {"num_fewshot": 5, "limit": 40}):
        asked, results = run(OWN, ["clo_ko_kobest"], **options)
        expected, expected_results = run(harness, ["kobest"], **options)
        assert sorted(asked) == sorted(expected)
        for task in KOBEST:
            ours, theirs = results[f"axolotl_clo_ko_kobest_{task}"], expected_results[f"kobest_{task}"]
            assert metrics(ours) == pytest.approx(metrics(theirs))
        assert metrics(results["clo_ko_kobest"]) == pytest.approx(metrics(expected_results["kobest"]))
        if not options["num_fewshot"]:
            assert len(asked) == 2 * (1404 + 1000 + 397 + 1260) + 4 * 500


# What is computed


@pytest.mark.bad_input("tasks")
def test_the_rows_of_a_subject_are_found_under_either_name() -> None:
    rows = datasets.Dataset.from_dict(
        {"Subject": ["anatomy", "virology", "anatomy_test.csv_sw-KE.csv"], "n": [0, 1, 2]}
    )
    assert of_subject(rows, "anatomy")["n"][:] == [0, 2]
    with pytest.raises(
        ValueError, match=r"no row is of subject 'astronomy'; the column 'Subject' has \['anatomy', 'vir"
    ):
        of_subject(rows, "astronomy")


def test_macro_f1_is_the_mean_of_the_classes() -> None:
    # Class 0: precision 2/3, recall 2/2; class 1: precision 1/1, recall 1/2.
    assert macro_f1([(0, 0), (0, 0), (1, 0), (1, 1)]) == pytest.approx((0.8 + 2 / 3) / 2)
    assert macro_f1([(0, 0), (1, 0)]) == pytest.approx((2 / 3 + 0) / 2)  # a class that is never predicted


# One number


def results_of(**groups: dict[str, float]) -> dict[str, Any]:
    named = {name: {f"{metric},none": value for metric, value in row.items()} for name, row in groups.items()}
    return {"results": named}


def test_proficiency_is_the_mean_of_belebele_and_mmmlu() -> None:
    results = results_of(
        clo_ko_belebele={"acc": 0.6, "acc_norm": 0.9}, clo_ko_mmmlu={"acc": 0.4}, clo_ko_kobest={"acc": 1.0, "f1": 1.0}
    )
    found = aggregates.proficiency(results, "ko")
    assert found == (0.5, "benchmarks", {"clo_ko_belebele": 0.6, "clo_ko_mmmlu": 0.4})
    assert aggregates.proficiency(results, "de") is None
    assert aggregates.missing(results, "de", "benchmarks") == ["clo_de_belebele", "clo_de_mmmlu"]
    assert aggregates.missing(results, "en", "benchmarks") == ["clo_en_belebele", "clo_en_mmlu"]


def test_english_retention_is_the_share_of_english_that_is_left() -> None:
    base = results_of(clo_en_belebele={"acc": 0.7}, clo_en_mmlu={"acc": 0.5})
    trained = results_of(clo_en_belebele={"acc": 0.6}, clo_en_mmlu={"acc": 0.42})
    assert aggregates.english_retention(trained, base) == pytest.approx(0.85)
    assert aggregates.english_retention(base, base) == 1.0
    assert aggregates.english_retention(trained, results_of(clo_en_mmlu={"acc": 0.5})) is None


def test_the_offline_set_has_a_proficiency_of_its_own() -> None:
    results = results_of(clo_sw={"fidelity_no_echo": 0.75, "preference_per_byte": 0.25, "bits_per_byte": 2.0})
    assert aggregates.proficiency(results, "sw") is None
    found = aggregates.proficiency(results, "sw", "offline")
    assert found
    assert (found.value, found.basis) == (0.5, "offline")


@pytest.mark.bad_input("tasks")
@pytest.mark.parametrize("results", [{}, {"results": []}, {"score": 1}])
def test_what_are_no_results_of_the_harness_is_refused(results: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no results of lm-evaluation-harness: no table 'results'"):
        aggregates.proficiency(results, "ko")


def test_the_numbers_come_from_what_the_harness_gives(small: Path) -> None:
    _, results = run(OWN, ["clo_ko_belebele", "axolotl_clo_ko_mmmlu_anatomy"])
    assert aggregates.missing({"results": results}, "ko", "benchmarks") == ["clo_ko_mmmlu"]
    found = aggregates.proficiency({"results": {**results, "clo_ko_mmmlu": {"acc,none": 0.25}}}, "ko")
    assert found
    assert found.value == pytest.approx((results["axolotl_clo_ko_belebele"]["acc,none"] + 0.25) / 2)


# The table of KoBEST


def test_one_command_gives_the_kobest_table(
    small: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kobest.main([str(tiny_llama), "--device", "cpu", "--limit", "4", "--output_path", str(tmp_path)])
    header, _, zero, five = capsys.readouterr().out.strip().splitlines()[-4:]
    assert header == "| model | k | BoolQ | COPA | HellaSwag | SentiNeg | WiC |"
    assert zero.startswith("| tiny-llama | 0 | ")
    assert five.startswith("| tiny-llama | 5 | ")
    files = {file.name: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert {file["n-shot"]["axolotl_clo_ko_kobest_copa"] for file in files.values()} == {0, 5}
    f1 = files["results_kobest_5-shot.json"]["results"]["axolotl_clo_ko_kobest_boolq"]["f1,none"]
    assert f"| 5 | {100 * f1:.2f} |" in five


# Everything, and other backends


@pytest.mark.process
def test_the_whole_glob_runs_each_document_once_on_a_real_model(small: Path, tiny_llama: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "clo_*", "--limit", "2"]
    command += ["--model_args", f"pretrained={tiny_llama},dtype=float32", "--device", "cpu", "--batch_size", "64"]
    command += ["--include_path", str(FOLDER), "--apply_chat_template", "--gen_kwargs", "max_gen_toks=8"]
    command += ["--log_samples", "--output_path", str(tmp_path)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(small / "cache")}
    done = subprocess.run(command, cwd=small, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())
    groups = {yaml.safe_load(file.read_text())["group"] for file in FOLDER.rglob("clo_*.yaml")}
    assert set(results["groups"]) == groups
    documents: Counter[tuple[str, int]] = Counter()
    for samples in tmp_path.rglob("samples_*.jsonl"):
        task = re.sub(r"samples_(.*)_\d{4}-.*", r"\1", samples.name)
        documents.update((task, json.loads(line)["doc_id"]) for line in samples.read_text().splitlines())
    assert documents == Counter((task, i) for task in OWN.all_subtasks for i in range(2))
    for language in LANGUAGES:
        found = aggregates.proficiency(results, language)
        assert found
        assert 0 <= found.value <= 1
        assert aggregates.proficiency(results, language, "offline")


def test_the_batch_size_changes_nothing(small: Path, tiny_llama: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    found = []
    for size in (1, 5):
        result = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(tiny_llama), device="cpu", dtype="float32", batch_size=size),
            tasks=["axolotl_clo_de_belebele", "axolotl_clo_ko_kobest_hellaswag", "axolotl_clo_zh_fidelity"],
            task_manager=OWN,
            num_fewshot=1,
            limit=6,
            gen_kwargs={"max_gen_toks": 12},
            bootstrap_iters=0,
        )
        answers = [sample["filtered_resps"] for sample in result["samples"]["axolotl_clo_zh_fidelity"]]
        found.append(({task: metrics(row) for task, row in result["results"].items()}, answers))
    assert found[0] == found[1]


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of chat completions that answers in Korean after some thought."""
    bodies: list[dict[str, Any]] = []
    answer = starter_rows("test")[0]["response"]["ko"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": f"<think>Let me think about this in English.</think>{answer}"}
            if len(bodies) == 1:
                message["content"] = None
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            content = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions", bodies
    server.shutdown()
    server.server_close()


def test_fidelity_is_measured_through_a_server_of_chat_completions(
    chat_server: tuple[str, list[dict[str, Any]]],
) -> None:
    pytest.importorskip("tenacity", reason="the harness talks to servers with the packages of lm_eval[api]")
    url, bodies = chat_server
    result = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args={"model": "any", "base_url": url},
        tasks=["axolotl_clo_ko_fidelity"],
        task_manager=OWN,
        apply_chat_template=True,
        limit=4,
        bootstrap_iters=0,
    )
    scores = metrics(result["results"]["axolotl_clo_ko_fidelity"])
    assert scores["fidelity,none"] == 3 / 4  # the first answer was null
    assert scores["line_pass_rate,none"] == 1.0
    assert scores["skipped,none"] == 1 / 4
    asked = [row["prompt"]["ko"] for row in starter_rows("test")[:4]]
    assert sorted(body["messages"][-1]["content"] for body in bodies) == sorted(asked)
    assert {(body["max_tokens"], body["temperature"]) for body in bodies} == {(64, 0)}
