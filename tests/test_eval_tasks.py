"""The lm-evaluation-harness tasks: what is found under which name, and that each score is what it says."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lm_eval
import pytest
import yaml
from conftest import LANGUAGES, ROOT, starter_rows
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from axolotl_clo.evaluate import task_folder, tasks
from axolotl_clo.evaluate.confusion import LanguageConfusion

FOLDER = ROOT / "eval_tasks"
SCORES = ["fidelity", "preference", "bits_per_byte"]
OFFLINE = [f"clo_{language}" for language in LANGUAGES]
TARGETS = [language for language in LANGUAGES if language != "en"]
ROWS = starter_rows("test")
GIBBERISH = "xkqzv wjrtp qqzzx vbnmk lkjhg"


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """Our tasks alone, which is faster to index."""
    return TaskManager(include_path=str(FOLDER), include_defaults=False)


class FakeLM(LM):
    """Knows the log-probability (nats) of each response and the answer to each prompt."""

    tokenizer_name = "fake"

    def __init__(
        self,
        log_prob: Callable[[str, str], float] = lambda prompt, response: -1.0,
        answer: Callable[[str], str] = lambda prompt: "",
    ) -> None:
        super().__init__()
        self.log_prob, self.answer = log_prob, answer
        self.asked: list[Instance] = []

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        self.asked += requests
        return [(self.log_prob(*request.args), False) for request in requests]

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        self.asked += requests
        return [self.answer(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        raise AssertionError("rolling likelihood ignores the prompt")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "fake"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        (turn,) = chat_history
        assert add_generation_prompt
        return f"<{turn['role']}>{turn['content']}</{turn['role']}>\n<assistant>\n"


def evaluate(manager: TaskManager, model: LM, names: list[str], **options: Any) -> dict[str, Any]:
    return lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, **options)


def prompts(language: str) -> list[str]:
    return [row["prompt"][language] for row in ROWS]


def responses(language: str) -> list[str]:
    return [row["response"][language] for row in ROWS]


def size(text: str) -> int:
    return len(text.encode("utf-8"))


# What is found under which name


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


def test_the_yamls_are_those_the_generator_writes() -> None:
    on_disk = {str(file.relative_to(FOLDER)): file.read_text(encoding="utf-8") for file in FOLDER.rglob("*.yaml")}
    assert on_disk == generator().all_yamls()


GROUPS = {
    *(f"clo_{language}" for language in LANGUAGES),
    *(f"clo_{language}_belebele" for language in LANGUAGES),
    *(f"clo_{language}_mmmlu" for language in TARGETS),
    *("clo_en_mmlu", "clo_ko_kobest"),
}


def test_the_glob_finds_the_groups_and_nothing_else(manager: TaskManager) -> None:
    found = manager.match_tasks(["clo_*"])
    assert set(found) == GROUPS
    assert set(manager.all_groups) >= GROUPS


def test_every_task_stands_in_exactly_one_group(manager: TaskManager) -> None:
    """So the glob runs each once, and no two groups of one call are refused for a task that they share."""
    members: Counter[str] = Counter()
    for file in FOLDER.rglob("clo_*.yaml"):
        for name in yaml.safe_load(file.read_text())["task"]:
            members.update(manager.task_index[name]["task"] if name in manager.all_tags else [name])
    assert set(members.values()) == {1}
    assert set(members) == set(manager.all_subtasks)
    assert all(re.fullmatch(rf"axolotl_clo_({'|'.join(LANGUAGES)})_\w+", name) for name in members)
    assert len(members) == 7 * 3 + 7 + 6 * 57 + 57 + 5


def test_the_offline_groups_run_every_document_once(manager: TaskManager) -> None:
    model = FakeLM()
    result = evaluate(manager, model, OFFLINE, bootstrap_iters=0)
    asked = Counter((request.task_name, request.doc_id, request.idx) for request in model.asked)
    expected = Counter()
    for language in LANGUAGES:
        choices = {"fidelity": 1, "preference": 7 if language == "en" else 2, "bits_per_byte": 1}
        for score, number in choices.items():
            expected.update(
                (f"axolotl_clo_{language}_{score}", document, i) for document in range(32) for i in range(number)
            )
    assert asked == expected
    assert len(model.asked) == 6 * 128 + 288
    assert set(result["groups"]) == set(OFFLINE)


@pytest.mark.parametrize(
    ("tag", "number"),
    [
        *((f"axolotl_clo_{score}", 7) for score in (*SCORES, "belebele")),
        *(("axolotl_clo_mmmlu", 6 * 57), ("axolotl_clo_mmlu", 57), ("axolotl_clo_kobest", 5)),
        *(("axolotl_clo_ko_mmmlu_stem", 19), ("axolotl_clo_en_mmlu_humanities", 13)),
    ],
)
def test_a_tag_names_what_cuts_across_groups(manager: TaskManager, tag: str, number: int) -> None:
    found = manager.task_index[tag]
    assert found["type"] == "tag"
    what = tag.removeprefix("axolotl_clo_")
    assert len(found["task"]) == number
    assert all(re.search(rf"_{what.split('_')[1] if what[:3] in ('ko_', 'en_') else what}", x) for x in found["task"])


# What a group reports


def test_a_group_shows_the_scores_of_its_tasks_and_which_way_is_better(manager: TaskManager) -> None:
    own = set(responses("de"))
    model = FakeLM(
        log_prob=lambda _, response: -100.0 if response in own else -300.0, answer=lambda _: responses("de")[0]
    )
    result = evaluate(manager, model, ["clo_de"])
    row = result["groups"]["clo_de"]
    shown = {key.removesuffix(",none"): row[key] for key in row if key.endswith(",none") and "_stderr" not in key}
    assert shown == {
        "fidelity": 1.0,
        "fidelity_no_echo": 1.0,
        "line_pass_rate": 1.0,
        "skipped": 0.0,
        "preference": 1.0,
        "preference_per_byte": 1.0,
        "bits_per_byte": pytest.approx(32 * 100 / math.log(2) / sum(map(size, responses("de")))),
    }
    arrows = dict(re.findall(r"\|(\w+) *\|([↑↓])", make_table(result, "groups")))
    up = dict.fromkeys(("fidelity", "fidelity_no_echo", "line_pass_rate", "preference", "preference_per_byte"), "↑")
    assert arrows == {**up, "skipped": "↓", "bits_per_byte": "↓"}


# Fidelity


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_reference_responses_have_full_fidelity(manager: TaskManager, language: str) -> None:
    reference = dict(zip(prompts(language), responses(language), strict=True))
    result = evaluate(manager, FakeLM(answer=reference.__getitem__), [f"axolotl_clo_{language}_fidelity"])
    scores = result["results"][f"axolotl_clo_{language}_fidelity"]
    for metric in ("fidelity", "fidelity_no_echo", "line_pass_rate"):
        assert scores[f"{metric},none"] == 1.0
    assert scores["skipped,none"] <= 1 / 32  # Korean says one thing in four words
    words = {"word_pass_rate,none", "language_confusion_pass_rate,none"}
    assert words & scores.keys() == (words if language in ("zh", "ko") else set())
    assert all(scores[metric] == 1.0 for metric in words & scores.keys())


def test_fidelity_counts_other_unknown_empty_and_mixed_answers_as_wrong(manager: TaskManager) -> None:
    german, english = responses("de"), responses("en")
    answers = german[:8] + english[8:16] + [GIBBERISH] * 4 + [""] * 4
    answers += [f"{first} {second}" for first, second in zip(german[24:], english[24:], strict=True)]
    canned = dict(zip(prompts("de"), answers, strict=True))
    result = evaluate(manager, FakeLM(answer=canned.__getitem__), ["axolotl_clo_de_fidelity"])
    assert result["results"]["axolotl_clo_de_fidelity"]["fidelity,none"] == 8 / 32


def test_an_answer_that_repeats_the_prompt_is_an_echo(manager: TaskManager) -> None:
    asked, reference = prompts("de"), responses("de")
    answers = [f"{asked[0].upper()} {reference[0]}", f"„{asked[1]}“", asked[2][:-12], *reference[3:]]
    canned = dict(zip(asked, answers, strict=True))
    result = evaluate(manager, FakeLM(answer=canned.__getitem__), ["axolotl_clo_de_fidelity"])
    scores = result["results"]["axolotl_clo_de_fidelity"]
    assert scores["fidelity,none"] == 1.0
    assert scores["fidelity_no_echo,none"] == 30 / 32  # the third repeats too little


def test_the_pass_rates_are_those_of_the_answers_that_count(manager: TaskManager) -> None:
    korean, english = responses("ko"), responses("en")
    answers = korean[:10] + [f"{own}\n{other}" for own, other in zip(korean[10:16], english[10:16], strict=True)]
    answers += [f"{own} actually" for own in korean[16:20]] + ["네.", "", "\x00"] + ["```\n```"] * 9
    canned = dict(zip(prompts("ko"), answers, strict=True))
    result = evaluate(manager, FakeLM(answer=canned.__getitem__), ["axolotl_clo_ko_fidelity"], log_samples=True)
    scores = result["results"]["axolotl_clo_ko_fidelity"]
    counted = LanguageConfusion("ko").score(answers)
    rates = LanguageConfusion("ko").rates(counted)
    assert rates.skipped >= 12
    assert 0 < rates.word < 1 > rates.line > 0
    assert scores["line_pass_rate,none"] == pytest.approx(rates.line)
    assert scores["word_pass_rate,none"] == pytest.approx(rates.word)
    assert scores["language_confusion_pass_rate,none"] == pytest.approx(rates.both)
    assert scores["skipped,none"] == rates.skipped / 32
    samples = sorted(result["samples"]["axolotl_clo_ko_fidelity"], key=lambda sample: sample["doc_id"])
    assert [sample["line_pass_rate"] for sample in samples] == [score.line_pass for score in counted]
    json.dumps([sample["language_confusion_pass_rate"] for sample in samples])  # what --log_samples writes


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nThe user asks in German. Let me think.\n</think>\n\n{answer}",
        "The user asks in German. Let me think about it.</think>{answer}",  # the chat template opened it
        "<think>one</think> {other} <think>two</think>{answer}",
        "[THINK]Let me think about it.[/THINK]{answer}",
        "<|channel|>analysis<|message|>Let me think.<|end|><|start|>assistant<|channel|>final<|message|>{answer}",
        "<seed:think>Let me think about it.</seed:think>{answer}",
    ],
)
def test_what_a_model_thinks_before_its_answer_does_not_count(text: str) -> None:
    doc = {"language": "de", "prompt": prompts("de")[0]}
    answered = text.format(answer=responses("de")[0], other=responses("en")[0])
    scores = tasks.fidelity(doc, [answered])
    assert scores == {"fidelity": 1.0, "fidelity_no_echo": 1.0, "line_pass_rate": 1.0, "skipped": 0.0}
    answered = text.format(answer=responses("en")[0], other=responses("de")[0])
    assert tasks.fidelity(doc, [answered])["fidelity"] == 0.0


@pytest.mark.parametrize("text", ["<think>Das Wetter ist heute sehr schön und wir gehen", "", None, "\x00\x07\x1b[2J"])
def test_no_answer_is_wrong_and_skipped(text: str | None) -> None:
    scores = tasks.fidelity({"language": "de", "prompt": prompts("de")[0]}, [text])
    assert scores == {"fidelity": 0.0, "fidelity_no_echo": 0.0, "line_pass_rate": None, "skipped": 1.0}


def test_answers_and_prompts_of_100_kb_are_scored() -> None:
    long = " ".join(responses("de")) * (100_000 // size(" ".join(responses("de"))))
    scores = tasks.fidelity({"language": "de", "prompt": long}, [f"{long} {long}"])
    assert scores == {"fidelity": 1.0, "fidelity_no_echo": 0.0, "line_pass_rate": 1.0, "skipped": 0.0}


def asked_of_file(file: Path, content: str, task: str = "axolotl_clo_ko_fidelity") -> list[str]:
    file.write_text(content, encoding="utf-8")
    with_file = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"prompts": str(file)})
    model = FakeLM(answer=lambda prompt: responses("ko")[0])
    evaluate(with_file, model, [task])
    return [request.args[0] for request in model.asked]


def test_a_user_s_own_prompts_take_the_place_of_the_starter_rows(tmp_path: Path) -> None:
    rows = [{"id": "a", "language": "ko", "prompt": "안녕하세요?"}, {"id": "b", "language": "de", "prompt": "Wie?"}]
    rows += [{"id": "c", "language": "ko", "prompt": "뭐\n해요?"}]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    assert asked_of_file(tmp_path / "mine.jsonl", content) == ["안녕하세요?", "뭐\n해요?"]
    assert asked_of_file(tmp_path / "mine.jsonl", content, "axolotl_clo_ko_preference")[:1] == prompts("ko")[:1]


@pytest.mark.bad_input("tasks")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", "", "mine.jsonl: no prompts in it"),
        (
            "mine.jsonl",
            '{"language": "de", "prompt": "Wie?"}\n',
            "no prompts in it .in de, which --language does not name",
        ),
        ("mine.jsonl", '{"language": "ko"}\n', "row 0: no column prompt"),
        ("mine.jsonl", '{"language": "ko", "prompt": 3}\n', "column prompt: text is accepted, got int 3"),
        ("mine.jsonl", '{"language": "ko", ', "mine.jsonl"),
        ("mine.docx", "", "files ending in"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s)prompts of task axolotl_clo_ko_fidelity, which --metadata.*{message}"):
        asked_of_file(tmp_path / name, content)
    with pytest.raises(ValueError, match="no such file"):
        tasks.prompt_documents("ko", prompts=str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match=r"`prompts` is the name of a file, got list"):
        tasks.prompt_documents("ko", prompts=["a.jsonl"])  # type: ignore[arg-type]


def test_answers_are_greedy_short_and_end_only_at_the_end_token(manager: TaskManager) -> None:
    model = FakeLM()
    evaluate(manager, model, ["axolotl_clo_ko_fidelity"])
    for request in model.asked:
        options = request.args[1]
        assert options == {"until": [], "do_sample": False, "max_gen_toks": 64}
        assert handle_stop_sequences(list(options["until"]), eos="<end>") == ["<end>"]


# Preference


def test_preference_by_total_and_by_byte_can_disagree() -> None:
    doc = {"choices": ["zehn Bytes", "five."]}
    scores = tasks.preference(doc, [(-8.0, False), (-5.0, False)])
    assert scores == {"preference": 0.0, "preference_per_byte": 1.0}  # -8 < -5, but -0.8 > -1.0


def test_preference_per_byte_counts_bytes_not_characters() -> None:
    doc = {"choices": ["语言", "ab"]}  # six bytes and two
    assert tasks.preference(doc, [(-5.0, False), (-2.0, False)])["preference_per_byte"] == 1.0
    assert tasks.preference(doc, [(-7.0, False), (-2.0, False)])["preference_per_byte"] == 0.0


def test_a_tie_is_lost() -> None:
    doc = {"choices": ["same", "same"]}
    scores = tasks.preference(doc, [(-3.0, False), (-3.0, False)])
    assert scores == {"preference": 0.0, "preference_per_byte": 0.0}


def test_a_target_language_is_compared_with_english(manager: TaskManager) -> None:
    wins = set(responses("sw")[:12])
    english = set(responses("en"))
    model = FakeLM(log_prob=lambda _, r: -50.0 if r in english else -40.0 if r in wins else -60.0)
    result = evaluate(manager, model, ["axolotl_clo_sw_preference"])
    pairs = list(zip(responses("sw"), responses("en"), strict=True))
    per_byte = [(-40 if own in wins else -60) / size(own) > -50 / size(other) for own, other in pairs]
    scores = result["results"]["axolotl_clo_sw_preference"]
    assert scores["preference,none"] == 12 / 32
    assert scores["preference_per_byte,none"] == pytest.approx(sum(per_byte) / 32)


def test_english_is_compared_with_each_target_language_in_turn(manager: TaskManager) -> None:
    log_probs = {"en": -50.0, "zh": -60.0, "de": -60.0, "ko": -50.0, "id": -40.0, "sw": -40.0, "yo": -60.0}
    by_text = {text: log_probs[language] for language in LANGUAGES for text in responses(language)}
    model = FakeLM(log_prob=lambda _, response: by_text[response])
    result = evaluate(manager, model, ["axolotl_clo_en_preference"])
    assert result["results"]["axolotl_clo_en_preference"]["preference,none"] == 0.5  # zh, de and yo; ko is a tie


# Bits per byte


def test_bits_per_byte_is_summed_over_documents_before_dividing(manager: TaskManager) -> None:
    nats = {response: 10.0 * (i + 1) for i, response in enumerate(responses("zh"))}
    model = FakeLM(log_prob=lambda _, response: -nats[response])
    result = evaluate(manager, model, ["axolotl_clo_zh_bits_per_byte"])
    found = result["results"]["axolotl_clo_zh_bits_per_byte"]["bits_per_byte,none"]
    sizes = [size(response) for response in nats]
    assert found == pytest.approx(sum(nats.values()) / math.log(2) / sum(sizes))
    mean_of_ratios = sum(n / math.log(2) / s for n, s in zip(nats.values(), sizes, strict=True)) / 32
    assert found != pytest.approx(mean_of_ratios, rel=1e-3)


def test_bits_per_byte_of_a_real_model_equals_the_formula(manager: TaskManager, tiny_llama: Path) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=str(tiny_llama), device="cpu", dtype="float32", batch_size=4)
    result = evaluate(manager, hf, ["axolotl_clo_de_bits_per_byte"], limit=4)
    bits = 0.0
    for row in ROWS[:4]:
        prompt = hf.tokenizer(row["prompt"]["de"]).input_ids
        both = hf.tokenizer(row["prompt"]["de"] + row["response"]["de"], return_tensors="pt").input_ids
        with torch.no_grad():
            log_probs = hf.model(both).logits.double().log_softmax(-1)[0, :-1]
        of_tokens = log_probs.gather(-1, both[0, 1:, None])[len(prompt) - 1 :]
        bits -= float(of_tokens.sum()) / math.log(2)
    found = result["results"]["axolotl_clo_de_bits_per_byte"]["bits_per_byte,none"]
    assert found == pytest.approx(bits / sum(map(size, responses("de")[:4])), rel=1e-5)


# Prompts


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("chat", [False, True])
def test_the_prompt_is_the_row_s_and_the_response_follows_it_unchanged(
    manager: TaskManager, score: str, chat: bool
) -> None:
    model = FakeLM()
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True} if chat else {}
    evaluate(manager, model, [f"axolotl_clo_id_{score}"], **options)
    for request in model.asked:
        row = ROWS[request.doc_id]
        prompt = row["prompt"]["id"]
        assert request.args[0] == (f"<user>{prompt}</user>\n<assistant>\n" if chat else prompt)
        if score != "fidelity":
            assert request.args[1] == row["response"]["id" if request.idx == 0 else "en"]


def test_few_shot_examples_are_not_taken_from_the_test_documents(manager: TaskManager) -> None:
    model = FakeLM()
    evaluate(manager, model, ["axolotl_clo_id_bits_per_byte"], num_fewshot=2)
    assert [request.args[0] for request in model.asked] == prompts("id")


# Where they come from


@pytest.mark.bad_input("tasks")
def test_a_missing_language_is_named() -> None:
    with pytest.raises(ValueError, match=r"starter row 'facts-17' has no prompt and response in 'xh'; it has en, zh"):
        tasks.documents("xh")


def test_importing_the_scores_loads_neither_torch_nor_the_training_rooms() -> None:
    rooms = ["attention", "collator", "cross_lingual", "logprobs", "loss", "plugin", "reference", "schema", "trainer"]
    heavy = ["torch", "transformers", "axolotl", "lm_eval", *(f"axolotl_clo.{room}" for room in rooms)]
    code = f"import sys, axolotl_clo.evaluate.tasks as t; t.documents('de'); print(sys.modules.keys() & set({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def installed(site_packages: Path) -> ModuleType:
    """`axolotl_clo.evaluate` as it would be imported from another site-packages folder."""
    file = site_packages / "axolotl_clo" / "evaluate" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text((ROOT / "axolotl_clo" / "evaluate" / "__init__.py").read_text())
    spec = importlib.util.spec_from_file_location("installed_evaluate", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_task_folder_is_found_in_a_checkout_and_beside_an_installed_package(tmp_path: Path) -> None:
    assert task_folder() == FOLDER
    in_harness = tmp_path / "lm_eval" / "tasks" / "axolotl_clo"
    module = installed(tmp_path)
    with pytest.raises(FileNotFoundError, match="eval_tasks or lm_eval/tasks/axolotl_clo"):
        module.task_folder()
    in_harness.mkdir(parents=True)
    (in_harness / "clo_en.yaml").touch()
    assert module.task_folder() == in_harness
