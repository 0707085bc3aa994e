"""Models to train: SmolLM2-135M-Instruct with its weights, and shapes of larger models with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

LLAMA_3 = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
# Llama-3.2-1B's and Llama-3-8B's own config.json; `small` is for comparing losses, `tiny` for trying the command out.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": LLAMA_3
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "llama-8b": LLAMA_3
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
    "small": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
}
# 8 B parameters leave no room for the activations of all layers.
CHECKPOINTED = ("llama-8b",)
SMOLLM2 = "SmolLM2-135M"


def write_model(name: str, out: Path, device: str) -> None:
    """Write a model with its tokenizer.

    Args:
        name: `SMOLLM2` or one of `SHAPES`.
        out: folder, which appears once it is complete.
        device: where random weights are drawn, of 8 B parameters sooner on a GPU.
    """
    if name == SMOLLM2:
        from axolotl_clo.quickstart import convert_smollm2

        convert_smollm2(out)
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from axolotl_clo.quickstart import smollm2_tokenizer

    tokenizer, shape = smollm2_tokenizer(), SHAPES[name]
    config = LlamaConfig(
        **{"vocab_size": len(tokenizer), **shape},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(config.dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    partial = out.with_name(f".{out.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)


if __name__ == "__main__":  # a process of its own, which gives all memory back
    write_model(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
