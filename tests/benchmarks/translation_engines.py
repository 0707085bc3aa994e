"""Rows per second of the CTranslate2 engine against the transformers engine: same weights, rows, beams and cores.

    python tests/benchmarks/translation_engines.py --shape 418M --rows 64

The model has M2M100's architecture and random weights, so every translation is as long as it may be. With real weights
translations end apart, which spares CTranslate2 work and transformers none: the ratio here is rather too small.
The engines' own options are measured (batches as each cuts them); tokenizing is left out, being the same. Rows per
CPU second tell the engines apart on a machine that is not idle, best with one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "translate"))

from tiny_models import m2m100_tokenizer, m2m100_vocabulary, starter_rows

from axolotl_clo.translate.engines import EngineOptions, open_engine


@dataclass(frozen=True)
class Shape:
    """Size of an M2M100 model."""

    width: int
    layers: int
    pieces: int


SHAPES = {"small": Shape(512, 6, 32_004), "418M": Shape(1024, 12, 128_004)}
RUNS = [("transformers", "float32"), ("ctranslate2", "float32"), ("ctranslate2", "int8")]


def make_model(folder: Path, shape: Shape) -> int:
    """Save a model with random weights and its tokenizer; returns its parameters."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    tokenizer = m2m100_tokenizer(folder, shape.pieces)
    config = M2M100Config(
        vocab_size=m2m100_vocabulary(tokenizer),
        d_model=shape.width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_attention_heads=shape.width // 64,
        decoder_attention_heads=shape.width // 64,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        init_std=0.05,  # wide enough that rounding seldom changes which token is best
    )
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def rows(count: int) -> list[str]:
    """English sentences of the starter rows, repeated where there are too few."""
    sentences = [part for row in starter_rows() for part in row["response"]["en"].split(". ") if part.strip()]
    return [sentences[i % len(sentences)] for i in range(count)]


@dataclass(frozen=True)
class Measured:
    """What an engine took, in seconds, and the token ids it wrote."""

    opening: float
    translating: float
    cpu: float
    outputs: list[list[int]]


def measure(options: EngineOptions, engine_name: str, segments: list[str]) -> Measured:
    """Open an engine and let it translate the segments."""
    start = time.perf_counter()
    engine: Any = open_engine(engine_name, options)
    opened = time.perf_counter()
    encoded = [ids for ids in engine.codec.encode(segments, "en", "ko") if isinstance(ids, list)]
    forced = engine.codec.forced_token("ko")
    engine._generate(encoded[:2], forced)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    outputs = [
        ids
        for start_row in range(0, len(encoded), engine.batch)
        for ids in engine._generate(encoded[start_row : start_row + engine.batch], forced)
    ]
    ended, cpu_ended = time.perf_counter(), time.process_time()
    engine.close()
    return Measured(opened - start, ended - begun, cpu_ended - cpu_begun, outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="418M")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a translation")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=None, help="for both engines; each one's own by default")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    segments = rows(arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        model = Path(folder) / "model"
        size = make_model(model, SHAPES[arguments.shape])
        print(
            f"M2M100 {arguments.shape}, {size / 1e6:.0f}M parameters, {arguments.rows} rows, {arguments.tokens} tokens "
            f"each, beam {arguments.beam_size}, {arguments.threads} threads"
        )
        columns = f"{'rows/s':>9}{'ratio':>7}{'rows/CPU s':>12}{'ratio':>7}"
        print(f"{'engine':<14}{'dtype':<10}{'open s':>8}{columns}  same tokens")
        first: Measured | None = None
        for name, dtype in RUNS:
            options = EngineOptions(
                model=str(model),
                device="cpu",
                dtype=dtype,
                beam_size=arguments.beam_size,
                batch_size=arguments.batch_size,
                max_new_tokens=arguments.tokens,
            )
            measured = measure(options, name, segments)
            first = first or measured
            count = len(measured.outputs)
            same = sum(ours == theirs for ours, theirs in zip(measured.outputs, first.outputs, strict=True))
            print(
                f"{name:<14}{dtype:<10}{measured.opening:>8.1f}"
                f"{count / measured.translating:>9.2f}{first.translating / measured.translating:>7.2f}"
                f"{count / measured.cpu:>12.2f}{first.cpu / measured.cpu:>7.2f}  {same} of {count}",
                flush=True,
            )


if __name__ == "__main__":
    main()
