"""Runs cases of distributed training: imports Axolotl once, then forks the ranks of one case after the other."""

from __future__ import annotations

import faulthandler
import functools
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import axolotl.cli.train
import axolotl.common.datasets
import axolotl.train
import torch
from axolotl.loaders.model import ModelLoader  # noqa: F401
from conftest import load_config
from transformers import TrainerCallback

from axolotl_clo.plugin import CLOPlugin

# Seconds after which a case is taken to hang; a busy machine may need minutes for one.
TIMEOUT = 900


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.monotonic() - self.begun)


def run_case(case: dict[str, Any], folder: Path) -> None:
    """Fork the ranks of a case and wait for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = case["processes"]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            become_rank(case, folder, rank, port)
        children.append(child)
    deadline = time.monotonic() + TIMEOUT
    failed = 0
    while children:
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.remove(child)
                failed |= status
        if children and (failed or time.monotonic() > deadline):
            for child in children:
                os.kill(child, signal.SIGUSR1)  # prints where it stands
            time.sleep(1)
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            break
        time.sleep(0.05)


def become_rank(case: dict[str, Any], folder: Path, rank: int, port: int) -> None:
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    world = str(case["processes"])
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if case["processes"] > 1 and not case.get("apart"):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    faulthandler.register(signal.SIGUSR1)
    code = 1
    try:
        result = train(case, rank)
        (folder / f"rank{rank}.json").write_text(json.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(case: dict[str, Any], rank: int) -> dict[str, Any]:
    """What `axolotl train` runs after the launcher; returns what the rank ran on and what it logged."""
    from axolotl.cli.args import TrainerCliArgs

    seen: dict[str, Any] = {}
    training = axolotl.train.train

    def train_and_keep(**arguments: Any) -> Any:
        seen["trainer"] = (result := training(**arguments))[2]
        return result

    torch.manual_seed(0)
    axolotl.train.train = train_and_keep
    own = Path(case["folder"]) / f"apart{rank}"
    apart = {"output_dir": str(own), "dataset_prepared_path": str(own / "prepared")} if case.get("apart") else {}
    cfg = load_config(Path(case["config"]), **apart)
    clock = Clock()
    CLOPlugin.add_callbacks_post_trainer = lambda *_: [clock]
    axolotl.cli.train.do_train(cfg, TrainerCliArgs())
    trainer = seen["trainer"]
    state, parameters = trainer.accelerator.state, list(trainer.model.parameters())
    rows = trainer.train_dataset.sort("row")
    return {
        "distributed_type": state.distributed_type.value,
        "processes": state.num_processes,
        "rank": state.process_index,
        "wrapper": type(trainer.model_wrapped).__name__,
        "parameters": sorted({type(p).__name__ for p in parameters}),
        "partitioned": all(hasattr(p, "ds_id") for p in parameters),
        "plain": [name for name, p in trainer.model.named_parameters() if type(p) is torch.nn.Parameter],
        "trainable": sum(p.requires_grad for p in parameters),
        "reference": rows["reference_log_probs"][:] if "reference_log_probs" in rows.column_names else [],
        "history": trainer.state.log_history,
        "step_seconds": clock.seconds,
    }


def warm_up() -> None:
    """What every rank would do once more, done before the forks: mostly building Axolotl's config model."""
    from axolotl.integrations.base import PluginManager
    from axolotl.utils import config

    PluginManager.get_instance().register("axolotl_clo.CLOPlugin")
    config.merge_input_args = functools.cache(config.merge_input_args)
    config.merge_input_args()
    gc.collect()
    gc.freeze()  # or each rank's garbage collector copies the pages of what was imported


if __name__ == "__main__":
    warm_up()
    cases = json.loads(Path(sys.argv[1]).read_text())
    for case in cases:
        folder = Path(case["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        run_case(case, folder)
        print(f"{folder.name}: {time.monotonic() - start:.1f} s", flush=True)
