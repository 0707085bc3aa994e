"""Training through Axolotl's own code path, on a two-layer Llama."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from conftest import load_config, logged, starter_rows, train, train_on_two_ranks, weights, write_rows
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_clo.trainer import METRICS

Write = Callable[..., Path]


def is_attention(name: str) -> bool:
    return ".self_attn." in name


def test_training_moves_the_loss_and_only_attention(write_config: Write, tmp_path: Path, tiny_llama: Path) -> None:
    trainer = train(write_config(max_steps=6, num_epochs=2))
    losses = logged(trainer, "loss")
    assert losses[-1] < losses[0]
    assert logged(trainer, "clo/preference_target")[0] == pytest.approx(math.log(2), abs=2e-5)
    before, after = weights(tiny_llama), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        if is_attention(name):
            assert not torch.equal(before[name], after[name]), name
        else:
            assert torch.equal(before[name], after[name]), name


def test_logged_metrics_and_their_relation(write_config: Write) -> None:
    trainer = train(write_config(clo={"target_lang": "de", "nll_weight": 0.3}))
    entries = [e for e in trainer.state.log_history if "loss" in e]
    assert len(entries) == 2
    for entry in entries:
        assert set(METRICS) <= set(entry)
        preference = (entry["clo/preference_source"] + entry["clo/preference_target"]) / 2
        assert entry["loss"] == pytest.approx(0.3 * entry["clo/nll"] + 0.7 * preference, abs=2e-4)


def test_nll_is_the_model_own_loss_on_target_responses(write_config: Write, tiny_llama: Path) -> None:
    trainer = train(write_config(micro_batch_size=12, max_steps=1))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in trainer.train_dataset:
            ids = torch.tensor([row["target_chosen"]])
            labels = ids.clone()
            labels[:, : row["prompt_lengths"][2]] = -100
            n = int((labels != -100).sum())
            total, tokens = total + model(ids, labels=labels).loss.item() * n, tokens + n
    assert logged(trainer, "clo/nll")[0] == pytest.approx(total / tokens, abs=1e-4)


def test_accumulation_does_not_change_the_step(write_config: Write, tmp_path: Path) -> None:
    """(batch 4, accumulation 1) and (1, 4) over responses of unequal lengths end at the same weights."""
    outs = []
    for batch, accumulation in ((4, 1), (1, 4)):
        out = tmp_path / f"{batch}x{accumulation}"
        options = {"micro_batch_size": batch, "gradient_accumulation_steps": accumulation, "output_dir": str(out)}
        trainer = train(write_config(**options, optimizer="sgd", learning_rate=0.1, shuffle_merged_datasets=False))
        outs.append((weights(out), [e for e in trainer.state.log_history if "loss" in e]))
    for name, value in outs[0][0].items():
        torch.testing.assert_close(outs[1][0][name], value, atol=1e-5, rtol=0)
    assert outs[0][1][0]["loss"] == pytest.approx(outs[1][1][0]["loss"], abs=1e-5)
    for metric in METRICS:  # of the second step, as in the first all margins are zero
        assert outs[0][1][1][metric] == pytest.approx(outs[1][1][1][metric], abs=2e-5), metric


@pytest.mark.process
@pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="Axolotl asks a CUDA build of torch for a driver as soon as there are two processes",
)
def test_two_ranks_take_the_same_step_as_one(write_config: Write, tmp_path: Path) -> None:
    options = {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 1, "shuffle_merged_datasets": False}
    one = train(write_config(**options, micro_batch_size=4, output_dir=str(tmp_path / "one")))
    config = write_config("two.yml", **options, micro_batch_size=2, output_dir=str(tmp_path / "two"))
    said = train_on_two_ranks(config)
    assert logged(one, "loss")[0] == pytest.approx(float(said.split("RANK0 loss ")[1].split()[0]), abs=1e-5)
    assert logged(one, "clo/nll")[0] == pytest.approx(float(said.split("RANK0 nll ")[1].split()[0]), abs=2e-5)
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, atol=1e-5, rtol=0)


def test_eval_loss_does_not_depend_on_the_eval_batch_size(write_config: Write) -> None:
    results = []
    for size in (1, 3, 8):
        trainer = train(
            write_config(val_set_size=5, eval_steps=2, eval_batch_size=size, max_steps=2, micro_batch_size=2)
        )
        results.append([e for e in trainer.state.log_history if "eval_loss" in e][-1])
    for name in ("eval_loss", *(f"eval_{metric}" for metric in METRICS)):
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-5), name
        assert results[0][name] == pytest.approx(results[2][name], abs=1e-5), name


def test_early_stopping_best_model_and_tensorboard(write_config: Write, tmp_path: Path) -> None:
    trainer = train(
        write_config(
            val_set_size=4,
            eval_steps=1,
            save_steps=1,
            save_strategy=None,
            early_stopping_patience=1,
            learning_rate=30.0,
            max_steps=6,
            num_epochs=6,
            use_tensorboard=True,
        )
    )
    assert trainer.state.global_step < 6
    assert trainer.state.best_metric == min(logged(trainer, "eval_loss")[1:])
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_step(reentrant: bool, write_config: Write, tmp_path: Path) -> None:
    outs = []
    for name, options in {
        "plain": {},
        "checkpointed": {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
        },
    }.items():
        train(write_config(**options, output_dir=str(tmp_path / name), max_steps=1))
        outs.append(weights(tmp_path / name))
    moved = [n for n in outs[0] if is_attention(n)]
    for name in moved:
        torch.testing.assert_close(outs[1][name], outs[0][name], atol=1e-6, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_config_in_bf16_runs_on_the_cpu_where_that_is_asked_for(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="bf16"):
        train(write_config(bf16=True, max_steps=1))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    trainer = train(write_config(bf16=True, max_steps=1))
    assert trainer.accelerator.mixed_precision == "bf16"
    assert math.isclose(logged(trainer, "clo/preference_target")[0], math.log(2), rel_tol=1e-2)
    AcceleratorState._reset_state()  # its precision is no other test's


def test_lora_adapts_attention_by_full_path(write_config: Write, tmp_path: Path) -> None:
    import json

    train(write_config(adapter="lora", lora_r=4, lora_alpha=8, clo={"target_lang": "de", "layers": "1"}))
    targets = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"]
    assert sorted(targets) == [f"model.layers.1.self_attn.{x}_proj" for x in "koqv"]


def test_scopes_and_layers_train_what_they_name(write_config: Write, tmp_path: Path, tiny_llama: Path) -> None:
    train(write_config(clo={"target_lang": "de", "train_modules": "attention+mlp", "layers": "0"}))
    before, after = weights(tiny_llama), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith("model.layers.0.") and "norm" not in n}


@pytest.mark.bad_input("config")
def test_layers_outside_the_model_stop_before_weights_are_read(
    write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=r"clo\.layers: '1-4' reaches layer 4, but the model has 2 layers"):
        train(write_config(clo={"target_lang": "de", "layers": "1-4"}))


def test_a_second_language_does_not_train_on_the_first_ones_rows(write_config: Write, tmp_path: Path) -> None:
    seen = {}
    for lang in ("de", "ko"):
        trainer = train(write_config(clo={"target_lang": lang}, output_dir=str(tmp_path / lang)))
        tokenizer = trainer.processing_class
        seen[lang] = {tokenizer.decode(row["target_chosen"]) for row in trainer.train_dataset}
    for row in starter_rows()[:12]:
        for lang in seen:
            assert any(row["response"][lang] in text for text in seen[lang])
    assert len(list((tmp_path / "prepared").glob("clo-*"))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"clo": {"target_lang": "de", "check_language": "off"}},
        {"excess_length_strategy": "truncate"},
        {"clo": {"target_lang": "de", "source_lang": "ko"}},
    ],
)
def test_every_option_that_shapes_rows_is_in_the_prepared_key(change: dict[str, Any], write_config: Write) -> None:
    first = load_config(write_config()).dataset_prepared_path
    assert load_config(write_config(**change)).dataset_prepared_path != first
    assert load_config(write_config(clo={"target_lang": "de", "beta": 0.7})).dataset_prepared_path == first


def test_an_edited_file_is_prepared_again(write_config: Write, parallel_file: Path) -> None:
    first = load_config(write_config()).dataset_prepared_path
    write_rows(parallel_file, starter_rows()[:11])
    assert load_config(write_config()).dataset_prepared_path != first


def test_starter_rows_are_reached_by_name(write_config: Write) -> None:
    starter = {"path": "axolotl_clo/starter", "type": "axolotl_clo.cross_lingual"}
    options = {"datasets": [starter], "test_datasets": [{**starter, "split": "test"}]}
    trainer = train(write_config(**options, max_steps=1, micro_batch_size=1, eval_strategy="no"))
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (128, 32)


def test_saved_model_loads_in_plain_transformers_and_has_a_card(write_config: Write, tmp_path: Path) -> None:
    train(write_config())
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer as T; p = sys.argv[1]\n"
        "m = AutoModelForCausalLM.from_pretrained(p); t = T.from_pretrained(p)\n"
        "x = t.apply_chat_template([{'role': 'user', 'content': 'Hallo'}], add_generation_prompt=True, "
        "return_tensors='pt', return_dict=True)\n"
        "print(m.generate(**x, max_new_tokens=3).shape); assert not [k for k in sys.modules if k.startswith('axolotl')]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True, capture_output=True)
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert set(head["language"]) == {"en", "de"}
    assert "clo" in head["tags"]
    for text in (
        "Cross-Lingual Optimization",
        "arxiv.org/abs/2505.14297",
        "rows.jsonl",
        "en (kept), de (added)",
        "0.5, 0.1",
    ):
        assert text in card


def test_base_model_without_template_is_saved_with_the_one_it_was_trained_with(
    write_config: Write, tmp_path: Path, tiny_llama: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base, ignore=shutil.ignore_patterns("chat_template.jinja"))
    assert AutoTokenizer.from_pretrained(base).chat_template is None
    train(write_config(base_model=str(base)))
    chat = [{"role": "user", "content": "Hallo"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "### Instruction:\nHallo\n\n### Response:\n" in tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_stuck_preference_loss_is_warned_about(write_config: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="axolotl_clo"):
        train(write_config(learning_rate=1e-12, max_steps=25, num_epochs=10))
    assert caplog.text.count("the preference loss has stayed at ln 2") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="axolotl_clo"):
        train(write_config(learning_rate=1e-3, max_steps=25, num_epochs=10))
    assert "ln 2" not in caplog.text


def test_packing_falls_back_for_falcon(write_config: Write, tmp_path: Path, tiny_llama: Path, caplog: Any) -> None:
    from transformers import FalconConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    config = FalconConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True,
        initializer_range=0.2, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path / "falcon"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING, logger="axolotl_clo"):
        trainer = train(write_config(base_model=str(folder), attn_implementation="eager"))
    assert "packing is not exact for FalconForCausalLM; batches are padded instead" in caplog.text
    assert logged(trainer, "clo/preference_source")[0] == pytest.approx(math.log(2), abs=2e-5)


@pytest.mark.process
def test_axolotls_commands_work_on_the_same_config(write_config: Write, tmp_path: Path) -> None:
    """`axolotl preprocess`, `train`, `evaluate`, `inference` and `merge-lora`, each as typed."""
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "val_set_size": 2}
    config = write_config(**lora)
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}

    def axolotl(*arguments: str, given: str = "") -> str:
        command = [str(bin_folder / "axolotl"), *arguments]
        result = subprocess.run(
            command, input=given, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=900
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout + result.stderr

    assert "kept 12 of 12 rows" in axolotl("preprocess", str(config))
    assert "Loading prepared dataset from disk" in axolotl("train", str(config), "--max-steps", "1")
    out = str(tmp_path / "out")
    assert "eval_clo/preference_target" in axolotl("evaluate", str(config), "--lora-model-dir", out)
    asked = "Hallo, wie geht es dir?"
    assert asked in axolotl("inference", str(config), "--lora-model-dir", out, given=asked)
    axolotl("merge-lora", str(config), "--lora-model-dir", out)
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()


class HostReads(TorchFunctionMode):
    """Where the package makes the host wait for what a tensor holds."""

    READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        mask = name == "__getitem__" and any(getattr(i, "dtype", None) == torch.bool for i in _flat(args[1]))
        if name in self.READS or mask:
            frame = sys._getframe(1)
            while frame is not None and "torch" in Path(frame.f_code.co_filename).parts:
                frame = frame.f_back  # type: ignore[assignment]
            if frame is not None and "axolotl_clo" in Path(frame.f_code.co_filename).parts:
                self.places.add(f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}")
        return func(*args, **(kwargs or {}))


def _flat(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


@pytest.mark.parametrize("share", [True, False])
def test_a_step_does_not_wait_for_the_device(share: bool, write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl_clo.trainer import CLOTrainer

    reads = HostReads()
    training_step = CLOTrainer.training_step

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 0:
            return training_step(self, *args, **kwargs)
        with reads:
            self._get_num_items_in_batch([args[1]], self.args.device)
            return training_step(self, *args, **kwargs)

    monkeypatch.setattr(CLOTrainer, "training_step", spy)
    clo = {"target_lang": ["de", "ko"], "share_prompts": share}
    train(write_config(clo=clo, micro_batch_size=2, max_steps=3, include_tkps=True))
    # The lengths of shared prompts come with the batch as a list, and are handed through the model as a host tensor.
    # Whether the loss is a number is looked at where the Trainer looks at it next.
    assert reads.places <= {"shared_prompts.py: _of_pairs", "long_runs.py: training_step"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_does_not_wait_for_the_gpu(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl_clo.trainer import CLOTrainer

    compute_loss = CLOTrainer.compute_loss

    def strict(self: Any, *args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if self.state.global_step else "default")
        try:
            return compute_loss(self, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(CLOTrainer, "compute_loss", strict)
    trainer = train(write_config(bf16=True, max_steps=3, micro_batch_size=2))
    assert trainer.state.global_step == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_bf16_on_a_gpu(attention: str, write_config: Write) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    trainer = train(write_config(bf16=True, attn_implementation=attention, max_steps=6, num_epochs=2))
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    assert logged(trainer, "clo/preference_source")[0] == pytest.approx(math.log(2), abs=5e-2)
