"""Estimates against what a process needs at most while it trains, by the command a user types."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import starter_rows, write_rows

Write = Callable[..., Path]

# Small matrices and many tokens, so that activations of several hundred MB cost seconds.
SHAPE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
# glibc otherwise keeps freed blocks of up to 32 MiB for later, which no estimate of tensors can know.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
WITH_LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def large_llama(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **SHAPE, **ends)
    folder = tmp_path_factory.mktemp("models") / "large-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def inspected(config: Path) -> dict[str, Any]:
    command = "from axolotl_clo.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "inspect", str(config), "--calibrate", "--json", "--samples", "0"],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1", **GIVEN_BACK},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def check(found: dict[str, Any], within: float = 0.15) -> None:
    parts, measured = found["memory"]["parts"], found["time"]["calibration"]
    estimated = parts["total"] - parts["weights"]
    assert measured["peak"] > 200 * 2**20, "too small a run to say anything"
    assert estimated == pytest.approx(measured["peak"], rel=within)
    assert found["time"]["seconds"] > 0
    assert measured["layout"] == "shared"


@pytest.mark.process
@pytest.mark.parametrize(
    "options", [{"micro_batch_size": 16}, WITH_LORA | {"micro_batch_size": 64}], ids=["attention", "lora-checkpointed"]
)
def test_peak_of_a_cpu_process_is_within_15_percent(
    options: dict[str, Any], write_config: Write, large_llama: Path, parallel_file: Path
) -> None:
    row = max(starter_rows(), key=lambda row: len(row["response"]["de"]))
    write_rows(parallel_file, [row] * 128)  # as large as the largest batch, whichever rows are drawn
    check(inspected(write_config(base_model=str(large_llama), max_steps=None, sequence_len=1024, **options)))


@pytest.mark.gpu
@pytest.mark.process
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, WITH_LORA, {"optimizer": "adamw_torch_fused"}])
def test_peak_on_a_gpu_is_within_15_percent(
    options: dict[str, Any], write_config: Write, large_llama: Path, parallel_file: Path
) -> None:
    row = max(starter_rows(), key=lambda row: len(row["response"]["de"]))
    write_rows(parallel_file, [row] * 128)
    config = write_config(
        base_model=str(large_llama), max_steps=None, sequence_len=1024, bf16=True, micro_batch_size=16, **options
    )
    check(inspected(config))
