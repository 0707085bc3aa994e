"""Shared by all tests: tiny models and tokenizers on disk, and Axolotl's own code path in this process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before anything imports transformers or axolotl: no hub, no telemetry, and no GPU for what is small.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("AXOLOTL_DATASET_NUM_PROC", "0")  # else a process is started to save a handful of rows

import pytest
import torch
import yaml
from servers import no_openai_environment, openai_key, serve  # noqa: F401 (fixtures)

from axolotl_clo.datasets import starter_folder

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored

ROOT = Path(__file__).parents[1]
LANGUAGES = ["en", "zh", "de", "ko", "id", "sw", "yo"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What runs of a tiny model have in common; a test says what it needs otherwise.
SMALL_RUN: dict[str, Any] = {
    "sequence_len": 512,
    "micro_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "num_epochs": 1,
    "optimizer": "adamw_torch",
    "learning_rate": 1e-3,
    "lr_scheduler": "constant",
    "bf16": False,
    "tf32": False,
    "attn_implementation": "sdpa",
    "logging_steps": 1,
    "dataset_num_proc": 0,
    "seed": 3,
}


def starter_rows(split: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (starter_folder() / f"{split}.jsonl").open(encoding="utf-8")]


def make_tokenizer(special: list[str], eos: str | None, bos: str | None = None, pad: str | None = None) -> Any:
    """A byte-level BPE tokenizer trained on the starter rows, with the special tokens of a chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    texts = [text for row in starter_rows() for side in ("prompt", "response") for text in row[side].values()]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, pad_token=pad)


def make_chatml_tokenizer() -> Any:
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], eos="<|im_end|>", pad="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def make_tiny_llama(folder: Path, tokenizer: Any = None, **sizes: int) -> Path:
    """A Llama of two layers with a ChatML tokenizer, saved as a user would have it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or make_chatml_tokenizer()
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        **{**shape, **sizes},
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chatml_tokenizer() -> Any:
    return make_chatml_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, chatml_tokenizer: Any) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", chatml_tokenizer)


@pytest.fixture
def parallel_file(tmp_path: Path) -> Path:
    """Twelve English-German-Korean rows in the canonical form."""
    file = tmp_path / "rows.jsonl"
    write_rows(file, starter_rows()[:12])
    return file


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def write_config(tmp_path: Path, tiny_llama: Path, parallel_file: Path) -> Callable[..., Path]:
    """Writes a CLO config for the tiny model; keyword arguments replace options, None removes one."""

    def write(name: str = "config.yml", **options: Any) -> Path:
        config: dict[str, Any] = {
            "base_model": str(tiny_llama),
            "plugins": ["axolotl_clo.CLOPlugin"],
            "rl": "clo",
            "clo": {"target_lang": "de"},
            "datasets": [{"path": str(parallel_file), "type": "axolotl_clo.cross_lingual"}],
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "output_dir": str(tmp_path / "out"),
            **SMALL_RUN,
            "save_strategy": "no",
        }
        config.update(options)
        file = tmp_path / name
        file.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}, allow_unicode=True))
        return file

    return write


@pytest.fixture(autouse=True)
def _fresh_plugin_manager() -> Any:
    """Axolotl keeps plugins for the life of a process; a test must not see those of another."""
    yield
    if "axolotl.integrations.base" in sys.modules:
        from axolotl.integrations.base import PluginManager

        PluginManager.get_instance().plugins.clear()


@pytest.fixture
def clo_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the package logs, from INFO up; Axolotl's import sets all loggers up anew."""
    import axolotl.cli.config  # noqa: F401

    caplog.set_level("INFO", logger="axolotl_clo")
    return caplog


def load_config(file: Path, **overrides: Any) -> Any:
    """Axolotl's own config loading: plugin registration, overrides, validation."""
    from axolotl.cli.config import load_cfg

    return load_cfg(str(file), **overrides)


@contextmanager
def one_run() -> Iterator[None]:
    """Put back what a run of Axolotl changes in the whole process: the attention class, what Ctrl-C does."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    forward, interrupt = LlamaAttention.forward, signal.getsignal(signal.SIGINT)
    torch.manual_seed(0)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        LlamaAttention.forward = forward
        if "_original_forward" in vars(LlamaAttention):
            del LlamaAttention._original_forward


def train(file: Path, **overrides: Any) -> Any:
    """What `axolotl train` runs after the launcher, in this process; returns the trainer."""
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import train as axolotl_train

    with one_run():
        cfg = load_config(file, **overrides)
        meta = (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)
        return axolotl_train(cfg=cfg, dataset_meta=meta)[2]


def train_on_two_ranks(file: Path) -> str:
    """What two CPU processes print that train together, see `run_rank.py`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "run_rank.py"
    result = subprocess.run([*command, str(script), str(file)], capture_output=True, text=True, env=env, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("RANK ran on MULTI_CPU with 2 processes") == 2, result.stdout[-3000:]
    return result.stdout


def evaluate(file: Path, **overrides: Any) -> dict[str, float]:
    """What `axolotl evaluate` runs after the launcher, in this process."""
    from axolotl.common.datasets import load_datasets
    from axolotl.evaluate import evaluate as axolotl_evaluate

    with one_run():
        cfg = load_config(file, **overrides)
        return axolotl_evaluate(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def logged(trainer: Any, key: str) -> list[float]:
    return [float(entry[key]) for entry in trainer.state.log_history if key in entry]
