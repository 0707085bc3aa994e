"""Parallel examples per second and memory of CLO against Axolotl's `rl: dpo` on the same pairs.

    python tests/benchmarks/training.py [--rows 24] [--epochs 1 3] [--runs clo dpo plain]

Each run is a process of its own: `setup_model_and_trainer` and `Trainer.train` of Axolotl, with the attention-only
scope, the same rows (German, Korean and Swahili starter rows in turn), the same rows per optimizer step, float32,
AdamW. What is timed is `Trainer.train`: for CLO that includes scoring the reference, which DPO does in each step.
Seconds are of the processor, so that other work on the machine disturbs the ratio less; memory is the peak above what
was resident once the model was loaded. The floor is the time of the matrix products that distinct tokens need
(README.md beside this file), at the rate a matrix product of the model's own shape reaches in the same process.

Runs: `clo` as it is by default, `plain` with `share_prompts: false`, `dpo` stock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

TARGETS = ("de", "ko", "sw")
RUNS = ("clo", "plain", "dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4, help="rows per optimizer step")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_measure(Path(given.one), given.threads)))
        return
    print("| epochs | run | rows/CPU s | against dpo | peak MiB above the model | against dpo | time over floor |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        rows = _write_rows(Path(folder) / "rows.jsonl", given.rows)
        model = _write_model(Path(folder) / "model")
        for epochs in given.epochs:
            found = {
                name: [_run(name, epochs, given, rows, model, Path(folder)) for _ in range(given.repeats)]
                for name in reversed(given.runs)
            }
            for name in given.runs:
                print(_line(name, epochs, given.rows * epochs, found), flush=True)


def _line(name: str, epochs: int, rows: int, found: dict[str, list[dict[str, float]]]) -> str:
    def ratios(key: str, swap: bool) -> str:
        if "dpo" not in found:
            return "–"
        pairs = zip(found[name], found["dpo"], strict=True)
        values = [(other[key] / own[key]) if swap else (own[key] / other[key]) for own, other in pairs]
        return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")

    seconds = mean(run["seconds"] for run in found[name])
    peak = mean(run["peak"] for run in found[name])
    over = mean(run["seconds"] / run["floor"] for run in found[name])
    return (
        f"| {epochs} | {name} | {rows / seconds:.3f} | {ratios('seconds', True)} "
        f"| {peak:.0f} | {ratios('peak', False)} | {over:.2f} |"
    )


def _run(name: str, epochs: int, given: Any, rows: Path, model: Path, folder: Path) -> dict[str, float]:
    out = Path(tempfile.mkdtemp(dir=folder))
    pairs = 2 if name == "dpo" else 1  # a row is two pairs
    config: dict[str, Any] = {
        "base_model": str(model),
        "plugins": ["axolotl_clo.CLOPlugin"],
        "rl": "dpo" if name == "dpo" else "clo",
        "clo": {"target_lang": list(TARGETS), "check_language": "off"},
        "datasets": [
            {"path": str(rows), "type": "axolotl_clo.preference" if name == "dpo" else "axolotl_clo.cross_lingual"}
        ],
        "dataset_prepared_path": str(out / "prepared"),
        "output_dir": str(out / "out"),
        "sequence_len": 1024,
        "micro_batch_size": given.batch * pairs,
        "gradient_accumulation_steps": 1,
        "num_epochs": epochs,
        "learning_rate": 1e-5,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "save_strategy": "no",
        "logging_steps": 1,
        "dataset_num_proc": 0,
        "seed": 3,
    }
    if name == "plain":
        config["clo"]["share_prompts"] = False
    file = out / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    threads = str(given.threads)
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(file), "--threads", threads],
        env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure(file: Path, threads: int) -> dict[str, float]:
    import torch
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    torch.set_num_threads(threads)
    cfg = load_cfg(str(file))
    meta = (load_preference_datasets if cfg.rl else load_datasets)(cfg=cfg)
    trainer, model, *_ = setup_model_and_trainer(cfg, meta)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    peak = _resident("VmHWM") - before
    return {"seconds": seconds, "peak": peak, "floor": _floor(model, trainer, cfg)}


def _floor(model: Any, trainer: Any, cfg: Any) -> float:
    """Seconds of the matrix products that distinct tokens need, over all epochs and the reference."""
    import torch

    dataset = trainer.train_dataset
    if "pairs" not in dataset.column_names and "target_chosen" not in dataset.column_names:
        return float("nan")
    tokens = responses = 0
    for row in dataset:
        for side, place in (("source", 0), ("target", 2)):
            prompt = row["prompt_lengths"][place]
            lengths = [len(row[f"{side}_{role}"]) - prompt for role in ("chosen", "rejected")]
            tokens, responses = tokens + prompt + sum(lengths), responses + sum(lengths)
    body = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() == 2)
    head = model.get_output_embeddings().weight.numel()
    # Forward 2 per weight and token; backward to the inputs 2 again, and to the trained weights another 2.
    forward = 2 * (body * tokens + head * responses)
    step = 2 * forward + 2 * trained * tokens
    flops = forward + cfg.num_epochs * step
    width = model.config.hidden_size
    left, right = torch.randn(1024, width), torch.randn(width, 4 * width)
    left @ right
    start = time.process_time()
    for _ in range(50):
        left @ right
    rate = 50 * 2 * left.numel() * right.shape[1] / (time.process_time() - start)
    return flops / rate


def _resident(name: str) -> float:
    """MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _write_rows(file: Path, rows: int) -> Path:
    from axolotl_clo.datasets import starter_folder

    lines = (starter_folder() / "train.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
    with file.open("w", encoding="utf-8") as stream:
        for i, row in enumerate(map(json.loads, lines)):
            languages = ("en", TARGETS[i % len(TARGETS)])
            said = {side: {lang: row[side][lang] for lang in languages} for side in ("prompt", "response")}
            stream.write(json.dumps(said, ensure_ascii=False) + "\n")
    return file


def _write_model(folder: Path) -> Path:
    """SmolLM2-135M-Instruct from the package that `make quickstart` uses."""
    from axolotl_clo.quickstart import convert_smollm2

    convert_smollm2(folder)
    return folder


if __name__ == "__main__":
    main()
