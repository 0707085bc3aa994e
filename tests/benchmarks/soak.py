"""Whether memory, open files and logs grow over a long run.

    python -m tests.benchmarks.soak [--steps 2000] [--out soak.svg]        in the root of the repository

trains a Llama of two layers through Axolotl's own `train`, with evaluation, held-out answers, checkpoints and logs on
the way, and notes every few steps what is resident, how many files are open and what the logs take on disk. It prints,
for each, the slope over the steps after the first quarter with its 95 % interval, says whether that is flat, and draws
it.

Flat is a slope whose interval holds 0, or which would come to less than 1 % of the level in as many steps again.
Neighbouring samples are alike, so the slope is fitted to means of blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")

ROWS = 48
WARM_UP = 0.25
BLOCKS = 12
FLAT_SHARE = 0.01
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Sample(NamedTuple):
    """What is held after a step: MiB resident, open files, KiB of logs."""

    step: int
    resident: float
    files: float
    logs: float


class Slope(NamedTuple):
    """Growth by 1,000 steps with its 95 % interval, the level, and whether that is flat."""

    growth: float
    low: float
    high: float
    level: float
    flat: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=10, help="steps between samples")
    parser.add_argument("--out", type=Path, default=Path("soak.svg"), help="the picture; samples go beside it as JSON")
    given = parser.parse_args()
    if given.steps < BLOCKS * given.every / (1 - WARM_UP):
        parser.error(f"--steps: at least {round(BLOCKS * given.every / (1 - WARM_UP))} for {BLOCKS} means of samples")
    with tempfile.TemporaryDirectory() as folder:
        samples = run(Path(folder), given.steps, given.every)
    given.out.with_suffix(".json").write_text(json.dumps([sample._asdict() for sample in samples]))
    given.out.write_text(picture(samples), encoding="utf-8")
    print("| what | level | growth in 1,000 steps | 95 % interval | |\n|---|---:|---:|---:|---|")
    for name, title in TITLES.items():
        of = slope([s.step for s in samples], [getattr(s, name) for s in samples])
        interval = f"{of.low:+.3f} to {of.high:+.3f}"
        print(f"| {title} | {of.level:.1f} | {of.growth:+.3f} | {interval} | {'flat' if of.flat else 'grows'} |")
    print(f"\n{given.steps} steps; drawn in {given.out}")


TITLES = {"resident": "resident memory, MiB", "files": "open files", "logs": "logs on disk, KiB"}


def run(folder: Path, steps: int, every: int) -> list[Sample]:
    """Train and sample."""
    config = _write(folder, steps)
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train
    from transformers import TrainerCallback

    from axolotl_clo.trainer import CLOTrainer

    samples: list[Sample] = []
    out = folder / "out"

    class Sampler(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
            if state.global_step % every == 0:
                samples.append(_sample(state.global_step, out))

    class Sampled(CLOTrainer):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.add_callback(Sampler())

    import axolotl_clo.trainer

    axolotl_clo.trainer.CLOTrainer = Sampled  # type: ignore[misc]
    cfg = load_cfg(str(config))
    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))
    return samples


def _sample(step: int, out: Path) -> Sample:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    logs = sum(file.stat().st_size for file in out.glob("*.log*"))
    return Sample(step, int(found[1]) / 1024, len(list(Path("/proc/self/fd").iterdir())), logs / 1024)


def slope(steps: Sequence[float], values: Sequence[float]) -> Slope:
    """A line through means of blocks of what comes after the warm-up."""
    import numpy as np
    from scipy.stats import linregress, t

    first = int(len(steps) * WARM_UP)
    x, y = (
        np.array([part.mean() for part in np.array_split(np.array(v[first:], float), BLOCKS)]) for v in (steps, values)
    )
    fit = linregress(x, y)
    reach = t.ppf(0.975, BLOCKS - 2) * fit.stderr
    growth, low, high = (1000 * value for value in (fit.slope, fit.slope - reach, fit.slope + reach))
    level = float(y.mean())
    more = fit.slope * (steps[-1] - steps[0])
    return Slope(growth, low, high, level, bool(low <= 0 <= high or abs(more) < FLAT_SHARE * level))


def picture(samples: list[Sample]) -> str:
    """Three charts, one above the other, as one SVG."""
    from axolotl_clo.evaluate.report.svg import Series, lines

    width, height = 760, 210
    style = files("axolotl_clo.evaluate.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    forms: dict[str, Callable[[float], str]] = {"resident": "{:,.1f}".format, "files": "{:,.0f}".format}
    drawn = ""
    for i, (name, title) in enumerate(TITLES.items()):
        points = [(float(sample.step), float(getattr(sample, name))) for sample in samples]
        series = Series(f"{points[-1][1]:,.0f}", i + 1, points, marked=False)
        chart = lines([series], (width, height), ("optimizer steps", title), forms.get(name, "{:,.0f}".format))
        # As a group: browsers do not agree on the size of an SVG in an SVG that a style sheet sizes.
        place = f'<g class="chart" transform="translate(0 {i * (height + 16)})">'
        drawn += re.sub(r"<svg [^>]*>", place, str(chart), count=1).replace("</svg>", "</g>")
    whole = len(TITLES) * (height + 16)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}">'
        f"<style>{style}</style><rect width='100%' height='100%' fill='var(--paper)'/>{drawn}</svg>"
    )


def _write(folder: Path, steps: int) -> Path:
    """A model, rows and a config; everything that a long run does in between comes ten times."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from axolotl_clo.datasets import starter_folder

    lines = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()[:ROWS]
    rows = [json.loads(line) for line in lines]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(
        [text for row in rows for side in ("prompt", "response") for text in row[side].values()], learn
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **shape, **ends))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = {
        "base_model": str(folder / "model"),
        "plugins": ["axolotl_clo.CLOPlugin"],
        "rl": "clo",
        "clo": {"target_lang": "de", "eval_answers": 2},
        "datasets": [{"path": str(folder / "rows.jsonl"), "type": "axolotl_clo.cross_lingual"}],
        "val_set_size": 4,
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": 512,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "num_epochs": 1000,
        "optimizer": "adamw_torch",
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "bf16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "logging_steps": 10,
        "eval_steps": max(steps // 10, 1),
        "save_steps": max(steps // 10, 1),
        "save_total_limit": 2,
        "dataset_num_proc": 0,
        "seed": 3,
    }
    file = folder / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file


if __name__ == "__main__":
    sys.exit(main())
