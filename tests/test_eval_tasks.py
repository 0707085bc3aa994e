"""The lm-evaluation-harness tasks: what is found under which name, and that each score is what it says."""

from __future__ import annotations

import importlib.util
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
from lm_eval.tasks import TaskManager, get_task_dict
from lm_eval.utils import make_table

from axolotl_clo.evaluate import task_folder, tasks

FOLDER = ROOT / "eval_tasks"
SCORES = ["fidelity", "preference", "bits_per_byte"]
TARGETS = [language for language in LANGUAGES if language != "en"]
ROWS = starter_rows("test")
GIBBERISH = "xkqzv wjrtp qqzzx vbnmk lkjhg"


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """As `lm_eval --include_path eval_tasks`: the harness's own tasks and ours."""
    return TaskManager(include_path=str(FOLDER))


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


def test_the_yamls_are_those_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    on_disk = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.yaml")}
    assert on_disk == generate.all_yamls()


def test_the_glob_finds_the_seven_groups_and_nothing_else(manager: TaskManager) -> None:
    found = manager.match_tasks(["clo_*"])
    assert sorted(found) == sorted(f"clo_{language}" for language in LANGUAGES)
    assert set(found) <= set(manager.all_groups)


def test_every_task_stands_in_exactly_one_group(manager: TaskManager) -> None:
    groups = [yaml.safe_load(file.read_text()) for file in FOLDER.glob("clo_*.yaml")]
    members = Counter(task for group in groups for task in group["task"])
    assert members == Counter(f"axolotl_clo_{language}_{score}" for language in LANGUAGES for score in SCORES)
    assert {task for task in manager.all_subtasks if task.startswith("axolotl_clo")} == set(members)


def test_the_glob_runs_every_document_once(manager: TaskManager) -> None:
    model = FakeLM()
    result = evaluate(manager, model, sorted(manager.match_tasks(["clo_*"])), bootstrap_iters=0)
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
    assert set(result["groups"]) == {f"clo_{language}" for language in LANGUAGES}


@pytest.mark.parametrize("score", SCORES)
def test_a_tag_names_one_score_in_all_languages(manager: TaskManager, score: str) -> None:
    assert sorted(get_task_dict([f"axolotl_clo_{score}"], manager)) == sorted(
        f"axolotl_clo_{language}_{score}" for language in LANGUAGES
    )


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
        "preference": 1.0,
        "preference_per_byte": 1.0,
        "bits_per_byte": pytest.approx(32 * 100 / math.log(2) / sum(map(size, responses("de")))),
    }
    arrows = dict(re.findall(r"\|(\w+) *\|([↑↓])", make_table(result, "groups")))
    up = dict.fromkeys(("fidelity", "fidelity_no_echo", "preference", "preference_per_byte"), "↑")
    assert arrows == {**up, "bits_per_byte": "↓"}


# Fidelity


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_reference_responses_have_full_fidelity(manager: TaskManager, language: str) -> None:
    reference = dict(zip(prompts(language), responses(language), strict=True))
    result = evaluate(manager, FakeLM(answer=reference.__getitem__), [f"axolotl_clo_{language}_fidelity"])
    scores = result["results"][f"axolotl_clo_{language}_fidelity"]
    assert scores["fidelity,none"] == scores["fidelity_no_echo,none"] == 1.0


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
