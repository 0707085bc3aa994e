"""`axolotl-clo generate`: answers of a model in this process, and of servers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import starter_rows, write_rows
from servers import GUARD, KEY, Reply, Serve, Server, completion, error, kill_9, transformers_serve
from typer.testing import CliRunner

from axolotl_clo.cli import app
from axolotl_clo.evaluate.answers import about_file, counts, read_answers
from axolotl_clo.evaluate.generate import Generation, PromptOptions
from axolotl_clo.evaluate.judge import NO_VERDICT, Judgement
from axolotl_clo.evaluate.local_model import LocalModel
from axolotl_clo.evaluate.models import ModelOptions, final_answer, open_model
from axolotl_clo.evaluate.prompts import Prompt, read_prompts
from axolotl_clo.evaluate.shots import Shots, as_text, as_turns
from axolotl_clo.translate.engines import EngineError, EngineOptions, chat
from axolotl_clo.translate.store import OutputError

PROMPTS = PromptOptions("starter:de", top=7)

pytestmark = pytest.mark.usefixtures("openai_key")


def behind(server: Server, **options: Any) -> ModelOptions:
    engine = EngineOptions(base_url=server.url, timeout=GUARD, **{"concurrency": 2, "retries": 1, **options})
    return ModelOptions("m", max_new_tokens=64, server=engine)


def echo(text: str, nth: int) -> Reply:
    return completion(f"Antwort auf: {text}")


# A model in this process


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LocalModel:
    found = open_model(ModelOptions(str(tiny_llama), max_new_tokens=12, batch_size=3, device="cpu"))
    assert isinstance(found, LocalModel)
    return found


def replies(model: LocalModel, prompts: list[list[dict[str, str]]]) -> dict[int, Any]:
    return {place: reply for batch in model.answers(prompts) for place, reply in batch}


def test_answers_in_batches_are_those_of_each_prompt_alone(model: LocalModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = [as_turns(prompt, []) for prompt in read_prompts("starter:ko", top=8).rows]
    found = replies(model, prompts)
    assert sorted(found) == list(range(8))
    tokenizer = AutoTokenizer.from_pretrained(model._options.model)
    plain = AutoModelForCausalLM.from_pretrained(model._options.model)
    for place, turns in enumerate(prompts):
        expected, cut_off = greedy_by_hand(plain, tokenizer, turns)
        assert (found[place].answer, found[place].cut_off) == (expected, cut_off)


def greedy_by_hand(model: Any, tokenizer: Any, turns: list[dict[str, str]]) -> tuple[str, bool]:
    """Twelve tokens at most, the likeliest each time, and whether they are cut off."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    new: list[int] = []
    while len(new) < 12 and tokenizer.eos_token_id not in new:
        new.append(int(model(torch.cat([ids, torch.tensor([new], dtype=ids.dtype)], dim=1)).logits[0, -1].argmax()))
    answer, cut_off = tokenizer.decode(new, skip_special_tokens=True), tokenizer.eos_token_id not in new
    return (answer.rstrip("\ufffd") if cut_off else answer).strip(), cut_off


def test_a_checkpoints_own_sampling_is_left_aside(tiny_llama: Path, tmp_path: Path, model: LocalModel) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 5.0, "eos_token_id": 1, "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(config))
    other = open_model(ModelOptions(str(folder), max_new_tokens=12, device="cpu"))
    prompts = [[{"role": "user", "content": "Warum?"}]]
    assert isinstance(other, LocalModel)
    assert replies(other, prompts)[0].answer == replies(model, prompts)[0].answer


@pytest.mark.bad_input("evaluate")
def test_a_prompt_that_does_not_fit_has_no_answer_and_the_others_have(model: LocalModel) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("Warum?", "sehr " * 2000)]
    found = replies(model, prompts)
    assert found[0].problem is None
    assert found[1].problem == "prompt and 12 new tokens are longer than the model's 1024 positions"


def test_a_base_model_is_asked_in_plain_text_and_stopped_at_its_next_question(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = None
    line = tokenizer("Rot.\nQ:", add_special_tokens=False)["input_ids"]  # and from its colon on again
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():  # a chain of tokens: each is followed by the next one of the line
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        for i, (before, after) in enumerate(zip([line[-1], *line[:-1]], line, strict=True)):
            model.model.embed_tokens.weight[before, i] = 1
            model.lm_head.weight[after, i] = 1
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = open_model(ModelOptions(str(folder), max_new_tokens=3 * len(line), device="cpu"))
    assert base.about["chat_template"] is False
    assert isinstance(base, LocalModel)
    (reply,) = replies(base, [[{"role": "user", "content": "Welche Farbe?"}]]).values()
    assert (reply.answer, reply.cut_off) == ("Rot.", False)
    with pytest.raises(ValueError, match=r"--chat-template: .* has none"):
        open_model(ModelOptions(str(folder), chat_template=True, device="cpu"))


def test_an_adapter_changes_the_answers(tiny_llama: Path, tmp_path: Path, model: LocalModel) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    lora = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        LoraConfig(r=8, lora_alpha=64, target_modules=["o_proj"], init_lora_weights=False),
    )
    lora.save_pretrained(tmp_path / "adapter")
    options = ModelOptions(str(tiny_llama), adapter=str(tmp_path / "adapter"), max_new_tokens=12, device="cpu")
    adapted = open_model(options)
    prompts = [[{"role": "user", "content": "Warum?"}]]
    assert isinstance(adapted, LocalModel)
    found = replies(adapted, prompts)[0]
    assert found.answer == greedy_by_hand(lora.merge_and_unload(), adapted._tokenizer, prompts[0])[0]
    assert found.answer != replies(model, prompts)[0].answer


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "--dtype: 'int3' is none of auto, float32"),
        ({"model": "./nowhere"}, "--model ./nowhere: cannot be loaded"),
        ({"adapter": "./nowhere"}, "--adapter ./nowhere: cannot be loaded"),
        ({"device": "gpu"}, "--device gpu: cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(tiny_llama: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_model(ModelOptions(**{"model": str(tiny_llama), "device": "cpu", **options}))


def test_a_run_writes_answers_and_what_the_model_was(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers" / "a.jsonl"
    arguments = ["generate", "starter:de", "--top", "3", "--model", str(tiny_llama), "--out", str(out)]
    arguments += ["--max-new-tokens", "4", "--device", "cpu", "--shots", "1", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    about = json.loads(result.stdout)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    held_out = starter_rows("test")[:3]
    assert [(row["id"], row["prompt"]) for row in rows] == [(row["id"], row["prompt"]["de"]) for row in held_out]
    assert {(row["language"], row["shots"]) for row in rows} == {("de", 1)}
    assert (about["format"], about["model"], about["rows"]) == ("axolotl-clo answers 1", str(tiny_llama), 3)
    assert about["options"]["dtype"] == "float32"
    assert {"torch", "transformers", "axolotl-clo"} <= set(about["versions"])
    assert "3 of 3 prompts" in result.stderr
    assert read_answers(out).model == str(tiny_llama)
    again = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(again.stdout)["rows"] == 3
    assert "prompts/s" not in again.stderr  # nothing was done twice


# Shots


def test_shots_stand_before_the_prompt_as_turns_or_text() -> None:
    prompt, shots = (
        Prompt("7", "de", "Warum?"),
        [Prompt("1", "de", "Wer?", "Ich."), Prompt("2", "de", "Wo? ", "Hier.\n")],
    )
    turns = as_turns(prompt, shots)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [turn["content"] for turn in turns][::2] == ["Wer?", "Wo? ", "Warum?"]
    assert as_text(turns) == "Q: Wer?\nA: Ich.\n\nQ: Wo?\nA: Hier.\n\nQ: Warum?\nA:"
    assert as_text(as_turns(prompt, [])) == "Q: Warum?\nA:"


def test_shots_are_drawn_by_the_seed_and_never_the_prompt_itself(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": {"de": f"Frage {i}"}, "response": {"de": f"Antwort {i}"}} for i in range(6)]
    rows.append({"id": 99, "prompt": {"de": " Frage 0 "}, "response": {"de": "Antwort"}})
    file = str(write_rows(tmp_path / "p.jsonl", rows))
    prompts = read_prompts(file).rows[:6]
    shots = Shots(5, file, prompts, file, seed=3)
    for prompt in prompts:
        drawn = shots.of(prompt)
        assert len({shot.id for shot in drawn}) == 5
        assert prompt.text not in [shot.text.strip() for shot in drawn]
    same, other = Shots(5, file, prompts[::-1], file, seed=3), Shots(5, file, prompts, file, seed=4)
    assert [same.of(prompt) for prompt in prompts] == [shots.of(prompt) for prompt in prompts]
    assert [other.of(prompt) for prompt in prompts] != [shots.of(prompt) for prompt in prompts]
    with pytest.raises(ValueError, match=r"--shots 6: .*p.jsonl has 5 rows with a response in 'de' beside prompt '0'"):
        Shots(6, file, prompts, file, seed=0)


def test_shots_are_in_the_language_of_the_prompt_from_the_training_rows() -> None:
    prompts = read_prompts("starter:ko,sw", top=4).rows
    shots = Shots(2, None, prompts, "starter:ko,sw", seed=0)
    training = {row["id"] for row in starter_rows()}
    for prompt in prompts:
        drawn = shots.of(prompt)
        assert {shot.language for shot in drawn} == {prompt.language}
        assert {shot.id for shot in drawn} <= training
    assert [s.id for s in shots.of(prompts[0])] == [s.id for s in shots.of(prompts[1])]  # one row, two languages


@pytest.mark.bad_input("evaluate")
def test_shots_in_a_language_without_any_say_where_to_get_them(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "p.jsonl", [{"prompt": "Pourquoi ?", "language": "fr"}]))
    with pytest.raises(ValueError, match=r"--shots-from: .*not in 'fr' .--shots-from FILE takes others"):
        Generation(PromptOptions(file, shots=1), ModelOptions("m"))
    with pytest.raises(ValueError, match=r"--shots 1: .* has 0 rows with a response in 'fr'"):
        Generation(PromptOptions(file, shots=1, shots_from=file), ModelOptions("m"))


# Thinking


@pytest.mark.parametrize(
    ("text", "asked", "opened", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nRot.", "?", False, "Rot."),
        ("Hm.\n</think>\nRot.", "?", True, "Rot."),
        ("Rot.", "?", False, "Rot."),
        ("Das Tag </think> endet.", "Was heißt </think>?", False, "Das Tag </think> endet."),
    ],
)
def test_the_answer_is_what_stands_after_the_thinking(text: str, asked: str, opened: bool, answer: str) -> None:
    assert final_answer(text, asked, opened) == answer


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(("text", "opened"), [("<think>Hm", False), ("Hm", True)])
def test_thinking_without_end_is_no_answer(text: str, opened: bool) -> None:
    with pytest.raises(chat.Malformed, match="still thinking"):
        final_answer(text, "?", opened)


# A server


@pytest.mark.bad_input("evaluate")
def test_a_server_is_asked_for_each_prompt_and_failures_are_kept_with_their_reason(
    serve: Serve, tmp_path: Path
) -> None:
    prompts = [row["prompt"]["de"] for row in starter_rows("test")[:7]]
    odd = {
        prompts[1]: completion("<think>So.</think>Blau."),
        prompts[2]: completion("Zu lan", finish="length"),
        prompts[3]: completion(""),
        prompts[4]: error(400, "no", code="content_filter"),
        prompts[5]: completion("<think>Hm", finish="length"),
        prompts[6]: completion("\x00\ud800\x1b[2J"),
    }
    server = serve(lambda text, nth: odd.get(text) or echo(text, nth))
    out = tmp_path / "a.jsonl"
    Generation(PROMPTS, behind(server)).run(out)
    rows = list(read_answers(out).rows.values())
    assert [row["answer"] for row in rows] == [
        f"Antwort auf: {prompts[0]}",
        "Blau.",
        "Zu lan",
        "",
        "",
        "",
        "\x00?\x1b[2J",
    ]
    assert rows[1]["text"] == "<think>So.</think>Blau."
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.bodies} == {("m", 0, 64)}
    assert rows[2]["cut_off"] is True
    assert "server refuses it" in rows[4]["problem"]
    assert counts(read_answers(out).rows) == {
        rows[4]["problem"]: 1,
        "stops while still thinking": 1,
        "cut off at --max-new-tokens": 1,
        "empty": 1,
    }


def test_what_a_template_should_know_is_sent_along(serve: Serve, tmp_path: Path) -> None:
    server = serve(echo)
    arguments = ["generate", "starter:de", "--top", "1", "--model", "m", "--out", str(tmp_path / "a.jsonl")]
    arguments += [
        "--base-url",
        server.url.replace("//", "//user:secret@"),
        "--template-options",
        '{"enable_thinking": false}',
    ]
    sys_argv, sys.argv = sys.argv, ["axolotl-clo", *arguments]
    try:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    finally:
        sys.argv = sys_argv
    assert result.exit_code == 0
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    command = json.loads(about_file(tmp_path / "a.jsonl").read_text())["command"]
    assert command.startswith("axolotl-clo generate starter:de --top 1")
    everything = result.output + "".join(file.read_text() for file in tmp_path.iterdir())
    assert "secret" not in everything
    assert KEY not in everything


@pytest.mark.bad_input("evaluate")
def test_an_error_keeps_what_is_finished_and_the_same_run_goes_on(serve: Serve, tmp_path: Path) -> None:
    broken = serve(lambda text, nth: error(401) if len(broken.bodies) > 3 else echo(text, nth))
    out = tmp_path / "a.jsonl"
    with pytest.raises(EngineError, match="OPENAI_API_KEY is set, but the server refuses access"):
        Generation(PROMPTS, behind(broken, concurrency=1)).run(out)
    assert not out.exists()
    with pytest.raises(ValueError, match="is not finished: run `axolotl-clo generate` again"):
        read_answers(out)
    good, done = serve(echo), []
    with pytest.raises(OutputError, match="shots: 0 then, 1 now"):
        Generation(PromptOptions("starter:de", top=7, shots=1), behind(good)).run(out)
    Generation(PROMPTS, behind(good)).run(out, lambda now, total: done.append((now, total)))
    assert done[0] == (3, 7)
    assert done[-1] == (7, 7)
    assert len(good.bodies) == 4
    assert len(read_answers(out).rows) == 7


def test_kill_9_costs_no_answer_and_doubles_none(serve: Serve, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    partial = out.with_name("a.jsonl.partial")
    arguments = ["generate", "starter:de", "--top", "12", "--model", "m", "--out", str(out), "--max-new-tokens", "64"]
    answered = kill_9(serve, echo, 5, [*arguments, "--concurrency", "2"], partial, lines=7)  # two say what the run is
    second = serve(echo)
    Generation(PromptOptions("starter:de", top=12), behind(second)).run(out)
    assert not set(second.segments) & set(answered)
    assert len(second.segments) == 7
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in starter_rows("test")[:12]]
    assert all(row["answer"] == f"Antwort auf: {row['prompt']}" for row in rows)
    assert not partial.exists()


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": False}, "--no-chat-template: a server applies its own template"),
        ({"adapter": "lora"}, "--adapter: load it in the server"),
    ],
)
def test_what_a_server_cannot_do_is_named(serve: Serve, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_model(ModelOptions("m", server=EngineOptions(base_url=serve(echo).url), **options))


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize("given", ["[1]", "{", "nothing"])
def test_template_options_that_are_no_object_are_named(tmp_path: Path, given: str) -> None:
    arguments = ["generate", "starter:de", "--model", "m", "--out", str(tmp_path / "a"), "--template-options", given]
    with pytest.raises(ValueError, match=r"--template-options: .*an object"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


# Reading answers


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"id": "1", "language": "ko", "prompt": "?"}],
            "row 0: column 'answer' must be text, its columns are id, lang",
        ),
        ([{"id": "1", "language": "ko", "prompt": "?", "answer": 5}], "column 'answer' must be text, got int"),
        ([{"id": "1", "language": "ko", "prompt": "?", "answer": ""}] * 2, "row 1: a second answer to id '1' in 'ko'"),
        ([], "no answers in it"),
    ],
)
def test_answers_at_fault_are_named(tmp_path: Path, lines: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_answers(write_rows(tmp_path / "a.jsonl", lines))


def test_answers_of_another_program_are_read_under_the_files_name(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "mine.jsonl", [{"id": 1, "language": "ko", "prompt": "?", "answer": None}])
    found = read_answers(file)
    assert (found.model, found.rows["1", "ko"]["answer"]) == ("mine", "")
    about_file(file).write_text('{"format": "axolotl-clo answers 2", "model": "m"}')
    with pytest.raises(ValueError, match="format 'axolotl-clo answers 2', and this version reads"):
        read_answers(file)
    about_file(file).write_text("{")
    with pytest.raises(ValueError, match="not what `axolotl-clo generate` wrote"):
        read_answers(file)
    with pytest.raises(ValueError, match="no such file"):
        read_answers(tmp_path / "nowhere.jsonl")


@pytest.mark.process
def test_a_real_server_answers_and_judges(tiny_llama: Path, tmp_path: Path) -> None:
    """The text of a random model is junk, so every eighth token is made to end it, and none of it is a verdict."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = {"eos_token_id": list(range(1, 700, 8)), "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(config))
    asked = PromptOptions("starter:de", top=4, shots=1)
    with transformers_serve(folder, tmp_path / "log") as url:
        server = EngineOptions(base_url=url, retries=0)
        options = ModelOptions(str(folder), max_new_tokens=16, server=server)
        Generation(asked, options).run(tmp_path / "served.jsonl")
        Generation(asked, ModelOptions(str(folder), max_new_tokens=16, device="cpu")).run(tmp_path / "here.jsonl")
        served, here = (read_answers(tmp_path / name).rows for name in ("served.jsonl", "here.jsonl"))
        assert [row["answer"] for row in served.values()] == [row["answer"] for row in here.values()]
        (tmp_path / "other.jsonl").write_text(
            "".join(json.dumps({**row, "answer": "Anders."}) + "\n" for row in here.values())
        )
        judge = EngineOptions(model=str(folder), base_url=url, retries=1, max_new_tokens=16)
        about = Judgement(tmp_path / "here.jsonl", tmp_path / "other.jsonl", judge).run(tmp_path / "judged")
    asked_for = sum(bool(row["answer"]) for row in here.values())
    assert asked_for
    assert about["unjudged"] == {NO_VERDICT: asked_for}
