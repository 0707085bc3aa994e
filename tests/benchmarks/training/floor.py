"""What a run must cost at least: floating-point operations and bytes, as README.md one folder up counts them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .runs import Run


@dataclass(frozen=True)
class Tokens:
    """Distinct tokens of all rows, and those of them that are scored, in CLO's four sequences or SFT's two."""

    all: int
    scored: int


def count_tokens(cfg: Any, rows: Path, sft: bool) -> Tokens:
    """Tokens of the rows as the run's own config renders them."""
    from axolotl.loaders import load_tokenizer
    from datasets import Dataset

    from axolotl_clo.collator import SEQUENCES
    from axolotl_clo.cross_lingual import CrossLingualStrategy, strategy_options

    strategy = CrossLingualStrategy(**strategy_options(load_tokenizer(cfg), cfg, cfg.datasets[0], held_out=True))
    texts = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    everything = scored = 0
    for row in strategy.wrap_dataset(Dataset.from_list(texts)):
        for chosen, rejected in ((0, 1), (2, 3)):
            prompt = row["prompt_lengths"][chosen]
            places = (chosen,) if sft else (chosen, rejected)
            responses = sum(len(row[SEQUENCES[place]]) - row["prompt_lengths"][place] for place in places)
            everything, scored = everything + prompt + responses, scored + responses
    return Tokens(everything, scored)


def operations(run: Run, model: Any, tokens: Tokens) -> float:
    """Floating-point operations of all epochs, with the reference: 2 per weight and token of each matrix product."""
    matrices = {
        name: p
        for name, p in model.named_parameters()
        if p.dim() == 2 and "embed" not in name and "lm_head" not in name
    }
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in matrices.values())
    trained = sum(p.numel() for p in matrices.values() if p.requires_grad)
    forward = 2 * (body * tokens.all + head.numel() * tokens.scored)
    to_weights = 2 * (trained * tokens.all + head.numel() * head.requires_grad * tokens.scored)
    step = 2 * forward + to_weights  # forward, and backward to what goes into each product
    if run.name == "sft":
        return 2 * run.epochs * step  # each sequence as often as CLO has it
    return forward + run.epochs * step


def memory(run: Run, model: Any, tokens: Tokens) -> float:
    """MiB above the model: gradients and AdamW's two moments of what trains, and what checkpointing keeps of a batch.

    That is the input of each decoder layer.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    config = model.config.get_text_config()
    size = next(model.parameters()).element_size()
    rows = run.batch * (2 if run.name == "sft" else 1)
    kept = config.num_hidden_layers * config.hidden_size * size * tokens.all / run.rows * rows
    return (3 * trained + kept) / 2**20


def rate(model: Any, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product of the model's width and device, as a step computes."""
    like = next(model.parameters())
    cuda = like.device.type == "cuda"
    width = model.config.get_text_config().hidden_size
    options: Any = {"device": like.device, "dtype": dtype}
    left, right = torch.randn(8192 if cuda else 1024, width, **options), torch.randn(width, 4 * width, **options)
    times = 50
    for _ in range(5):
        left @ right
    start = seconds(like.device.type)
    for _ in range(times):
        left @ right
    return times * 2 * left.numel() * right.shape[1] / (seconds(like.device.type) - start)


def seconds(device: str) -> float:
    """A clock: of the processor, so that other work disturbs it less; of the wall where a GPU does the work."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
