"""What runs on several processes is described here: engines, scopes, and the configs of all cases.

A case is one training run of 20 steps on a small Llama. All cases of a scope take the same steps of four rows each,
from 13 rows, so that the last step of an epoch has one row and some ranks have none; answers differ in length, so ranks
have different numbers of tokens; gradients are clipped at a norm that they exceed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_RUN

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="needs deepspeed, which compiles its part for CPUs with g++",
)
ROOT = Path(__file__).parents[2]
DEEPSPEED = ROOT / "example_configs" / "deepspeed"
STEPS, ROWS, HELD_OUT = 20, 16, 3


@dataclass(frozen=True)
class Engine:
    """A way to spread training over processes.

    Attributes:
        options: lines of the config.
        distributed_type: as Accelerate names it when it is at work.
        wrapper: class of the model that takes the steps.
        parameter: class of its parameters.
        partitioned: whether DeepSpeed keeps a part of each parameter.
        sharded: which of weights, gradients and optimizer states the ranks share, for the table.
    """

    options: dict[str, Any]
    distributed_type: str
    wrapper: str
    parameter: str = "Parameter"
    partitioned: bool = False
    sharded: str = ""


def _deepspeed(stage: int, file: str, sharded: str) -> Engine:
    options = {"deepspeed": str(DEEPSPEED / f"{file}.json")}
    return Engine(options, "DEEPSPEED", "DeepSpeedEngine", partitioned=stage == 3, sharded=sharded)


_EXAMPLE = yaml.safe_load((ROOT / "example_configs" / "clo_ko_fsdp2.yml").read_text(encoding="utf-8"))
FSDP2 = {name: value for name, value in _EXAMPLE.items() if name.startswith("fsdp")}


def _fsdp2(**changed: Any) -> Engine:
    options = {**FSDP2, "fsdp_config": {**FSDP2["fsdp_config"], **changed}}
    return Engine(options, "FSDP", "FSDPLlamaForCausalLM", "DTensor", sharded="optimizer, gradients, weights")


ENGINES = {
    "one process": Engine({}, "NO", "LlamaForCausalLM"),
    "ddp": Engine({}, "MULTI_CPU", "DistributedDataParallel", sharded="–"),
    "zero1": _deepspeed(1, "zero1", "optimizer"),
    "zero2": _deepspeed(2, "zero2", "optimizer, gradients"),
    "zero3": _deepspeed(3, "zero3", "optimizer, gradients, weights"),
    "fsdp2": _fsdp2(),
    "zero1_offload": _deepspeed(1, "zero1_offload", "optimizer"),
    "zero2_offload": _deepspeed(2, "zero2_offload", "optimizer, gradients"),
    "zero3_offload": _deepspeed(3, "zero3_offload", "optimizer, gradients, weights"),
    "fsdp2, activations kept": _fsdp2(activation_checkpointing=False),  # as the other engines here keep them
}
# Under FSDP an adapter cannot be saved from modules that recompute their activations.
LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}
SCOPES: dict[str, dict[str, Any]] = {
    "attention": {},
    "lora": LORA,
    "lora, reference by the adapter": {**LORA, "clo": {"target_lang": "de", "reference": "adapter", "eval_answers": 1}},
    "all": {"clo": {"target_lang": "de", "train_modules": "all", "eval_answers": 1}},
    "attention, bf16": {"bf16": True},
}


@dataclass(frozen=True)
class Case:
    """One run: an engine, a scope and a number of processes."""

    engine: str
    scope: str
    processes: int = 2

    @property
    def name(self) -> str:
        return "-".join(f"{self.engine} {self.scope} {self.processes}".replace(",", "").split())


# Few enough for every change; the rest is `make test-distributed`.
EVERY = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
USUAL = [Case(engine, "attention") for engine in EVERY] + [Case(engine, "lora") for engine in ("ddp", "zero3", "fsdp2")]
FURTHER = [
    *(Case(engine, "attention", 4) for engine in EVERY),
    *(Case(f"{engine}_offload", "attention") for engine in EVERY if engine.startswith("zero")),  # FSDP2's pins memory
    *(Case(engine, "lora") for engine in ("zero1", "zero2")),
    *(Case(engine, "lora, reference by the adapter") for engine in ("ddp", "zero3", "fsdp2")),
    *(Case(engine, "all") for engine in EVERY),
    *(Case(engine, "attention, bf16") for engine in ("ddp", "zero2", "zero3", "fsdp2")),
]


def baseline(scope: str) -> Case:
    return Case("one process", scope, 1)


def write_config(case: Case, base_model: Path, rows: Path, folder: Path, options: dict[str, Any]) -> Path:
    """The YAML of a case; rows are prepared and the reference is computed by each case anew."""
    # Four rows a step in all cases: processes × rows of a micro-batch × accumulation.
    micro, accumulated = {1: (2, 2), 2: (1, 2), 4: (1, 1)}[case.processes]
    config: dict[str, Any] = {
        "base_model": str(base_model),
        "plugins": ["axolotl_clo.CLOPlugin"],
        "rl": "clo",
        "clo": {"target_lang": "de", "eval_answers": 1},
        "datasets": [{"path": str(rows), "type": "axolotl_clo.cross_lingual"}],
        "dataset_prepared_path": str(folder / "prepared"),
        "val_set_size": HELD_OUT / ROWS,
        "eval_steps": STEPS // 2,
        "output_dir": str(folder / "out"),
        **SMALL_RUN,
        "micro_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "max_steps": STEPS,
        "num_epochs": STEPS,
        "max_grad_norm": 0.5,
        "save_strategy": "no",
        **ENGINES[case.engine].options,
        **SCOPES[case.scope],
        **options,
    }
    if config.get("adapter") and "fsdp_config" in config:
        config["fsdp_config"] = {**config["fsdp_config"], "activation_checkpointing": False}
        config["gradient_checkpointing"] = True
    file = folder / "config.yml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(
        yaml.safe_dump({k: v for k, v in config.items() if v is not None}, allow_unicode=True), encoding="utf-8"
    )
    return file


def run(cases: list[Case], base_model: Path, rows: Path, folder: Path, **options: Any) -> None:
    """Run cases one after the other, in processes of their own; see `equality.Run` for what they leave behind.

    Several processes of the engine "one process" are that many runs at once which know nothing of one another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for case in cases:
        own = folder / case.name
        config = write_config(case, base_model, rows, own, options)
        apart = case.engine == "one process"
        jobs.append({"config": str(config), "folder": str(own), "processes": case.processes, "apart": apart})
    start("run_cases.py", jobs, folder)


def start(script: str, jobs: list[dict[str, Any]], folder: Path) -> None:
    """Run a script of this folder on jobs, in a process of its own; its log lies beside them."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (folder / script).with_suffix(".log").open("w") as log:
        command = [sys.executable, str(Path(__file__).parent / script), str(file)]
        subprocess.run(command, env=env, stdout=log, stderr=log, check=True)
