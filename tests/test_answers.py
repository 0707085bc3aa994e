"""What the model answers to held-out prompts while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_config, train

from axolotl_clo.answers import MAX_NEW_TOKENS, Answer, HeldOutPrompts, fidelity, show, track
from axolotl_clo.schema import CLOConfig

Write = Callable[..., Path]
EVALUATED = {"val_set_size": 4, "eval_steps": 1, "max_steps": 2, "micro_batch_size": 2}
ANSWERS = [
    Answer("en", "Who?", "It was me.", "en"),
    Answer("de", "Wer?", "It was me.", "en"),
    Answer("de", "Wo?", "", None),
    Answer("ko", "누구?", "나였어요.", "ko"),
]


def metrics(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "eval_loss" in entry]


def test_answers_count_at_every_evaluation_are_shown_where_asked_for_and_change_nothing_else(
    write_config: Write, capfd: pytest.CaptureFixture[str]
) -> None:
    with_answers = train(write_config(**EVALUATED, clo={"target_lang": "de", "show_answers": True}))
    shown = capfd.readouterr().out
    without = train(write_config(**EVALUATED, clo={"target_lang": "de", "eval_answers": 0}))
    assert "Held-out prompts, step 1" in shown
    assert "Held-out prompts, step 2" in shown
    assert "Held-out prompts" not in capfd.readouterr().out
    names = {"eval_clo/fidelity_source", "eval_clo/fidelity_target"}
    assert all(names <= set(entry) for entry in metrics(with_answers))
    assert not any("fidelity" in name for entry in metrics(without) for name in entry)
    for one, other in zip(metrics(with_answers), metrics(without), strict=True):
        assert one["eval_loss"] == other["eval_loss"]


def test_a_batch_of_prompts_is_answered_as_each_prompt_alone(write_config: Write) -> None:
    trainer = train(write_config(**EVALUATED, clo={"target_lang": "de", "eval_answers": 2}))
    prompts = HeldOutPrompts(trainer.eval_dataset, trainer.clo, trainer.processing_class)
    model = trainer.model.eval()
    answers = prompts.ask(model, synced=False)
    assert [answer.language for answer in answers] == ["en", "de", "en", "de"]
    assert len({len(prompt) for prompt in prompts.prompts}) > 1  # so that some are padded
    for prompt, answer in zip(prompts.prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        alone = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        assert answer.text == trainer.processing_class.decode(alone[0, len(prompt) :], skip_special_tokens=True).strip()


def test_prompts_are_those_of_held_out_rows_without_their_responses(write_config: Write) -> None:
    trainer = train(write_config(**EVALUATED))
    asked = HeldOutPrompts(trainer.eval_dataset, trainer.clo, trainer.processing_class).asked
    assert len(asked) == 8
    for row, english, german in zip(trainer.eval_dataset, asked[::2], asked[1::2], strict=True):
        for side, answer, length in (("source", english, 0), ("target", german, 2)):
            whole = trainer.processing_class.decode(row[f"{side}_chosen"], skip_special_tokens=True)
            assert whole.startswith(answer.prompt)
            assert len(answer.prompt) < len(whole)
            assert row["prompt_lengths"][length] < len(row[f"{side}_chosen"])


def test_fidelity_counts_unknown_as_wrong_and_tells_languages_apart() -> None:
    one = fidelity(ANSWERS[:3], CLOConfig(target_lang="de"))
    assert one == {"clo/fidelity_source": 1.0, "clo/fidelity_target": 0.0}
    two = fidelity(ANSWERS, CLOConfig(target_lang=["de", "ko"]))
    assert two["clo/fidelity_target"] == pytest.approx(1 / 3)
    assert (two["clo/fidelity_target_de"], two["clo/fidelity_target_ko"]) == (0.0, 1.0)
    assert fidelity([], CLOConfig(target_lang="de")) == {}


def test_text_of_the_model_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show([Answer("de", "[bold]Wer?[/bold]", "[/red] <b>", None)], step=3)
    shown = capsys.readouterr().out
    assert "[bold]Wer?[/bold]" in shown
    assert "[/red] <b>" in shown
    assert "unknown" in shown


def test_trackers_get_the_table_with_what_could_be_markup_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    class Callback:
        tb_writer = SummaryWriter(str(tmp_path))

    track([Answer("de", "a|b\nc", "<script>alert(1)</script>", "en")], 7, [object(), Callback()])
    Callback.tb_writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("clo/answers/text_summary")
    assert event.step == 7
    text = event.tensor_proto.string_val[0].decode()
    assert text.splitlines()[-1] == "| 7 | de | en | a&#124;b<br>c | &lt;script&gt;alert(1)&lt;/script&gt; |"


def test_wandb_gets_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test", settings=wandb.Settings(console="off"))
    try:
        track(ANSWERS, 7, [])
        wandb.log({"done": 1})
    finally:
        run.finish()
    (table,) = tmp_path.rglob("*.table.json")
    assert ["7", "de", "en", "Wer?", "It was me."] in json.loads(table.read_text())["data"]


@pytest.mark.bad_input("config")
def test_a_negative_number_of_rows_is_refused(write_config: Write) -> None:
    with pytest.raises(ValueError, match="eval_answers"):
        load_config(write_config(clo={"target_lang": "de", "eval_answers": -1}))
