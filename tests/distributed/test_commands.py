"""The commands as typed: ZeRO-3 on two processes, two hosts, and Ray's workers."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT, make_tiny_llama, train, weights
from engines import needs_deepspeed

from axolotl_clo.checkpoints import TERMINATED, problem_of

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(torch.cuda.is_available(), reason="CPU processes are for machines without a GPU"),
]

Write = Callable[..., Path]

AXOLOTL = str(Path(sys.executable).parent / "axolotl")
ON_CPU = ["--bf16", "false", "--attn-implementation", "sdpa"]


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **more}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def assert_only_attention_moved(before: Path, after: Path) -> None:
    old, new = weights(before), weights(after)
    assert {name for name in old if not torch.equal(old[name], new[name])} == {n for n in old if ".self_attn." in n}


@needs_deepspeed
def test_zero3_on_two_processes_as_typed(tiny_llama: Path, tmp_path: Path) -> None:
    """The dry run of the README, on the config that a user would rent GPUs for."""
    command = [AXOLOTL, "train", "example_configs/clo_ko.yml", "--deepspeed", "example_configs/deepspeed/zero3.json"]
    command += ["--base-model", str(tiny_llama), *ON_CPU, "--max-steps", "2"]
    command += ["--output-dir", str(tmp_path / "out"), "--dataset-prepared-path", str(tmp_path / "prepared")]
    command += ["--launcher", "torchrun", "--", "--nproc_per_node=2", f"--master_port={free_port()}"]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-3000:]
    assert "clo: 2 processes train DeepSpeedEngine, ZeRO-3" in output
    assert_only_attention_moved(tiny_llama, tmp_path / "out")


@pytest.mark.bad_input("distributed")
@pytest.mark.parametrize("line", ["deepspeed", "fsdp_config", None])
def test_processes_that_would_not_find_one_another_are_refused(
    line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from axolotl_clo.cpu_processes import join_cpu_processes

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    with pytest.raises(ValueError, match="2 processes were started and no CUDA device is there"):
        join_cpu_processes({line: "x"} if line else {})


@pytest.mark.bad_input("long runs")
def test_a_rank_without_memory_ends_the_run_with_a_message(write_config: Write, tmp_path: Path) -> None:
    """And the other rank ends as well, though it waits for gradients that never come."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    model = make_tiny_llama(tmp_path / "wide", **wide, num_key_value_heads=4)
    config = write_config(base_model=str(model), max_steps=10_000, num_epochs=10_000, dataloader_num_workers=0)
    command = [AXOLOTL, "train", str(config), "--launcher", "torchrun", "--", "--nproc_per_node=2"]
    log = tmp_path / "log"
    # Blocks that are freed go back to the system, so that each step has to ask for them again.
    env = environment(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    with log.open("w") as stream:
        command += [f"--master_port={free_port()}"]
        launcher = psutil.Popen(command, env=env, stdout=stream, stderr=stream)
    started = []
    try:
        while log.read_text(errors="replace").count("'loss'") < 3:
            assert launcher.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
        started = launcher.children(recursive=True)
        (rank,) = (p for p in started if p.environ().get("RANK") == "1" and "RANK" not in p.parent().environ())
        sizes = []
        while len(sizes) < 5000:  # over several steps
            sizes.append(rank.memory_info().vms)
            time.sleep(0.001)
        rank.rlimit(psutil.RLIMIT_AS, 2 * ((min(sizes) + max(sizes)) // 2,))
        assert launcher.wait(timeout=300) != 0
        assert psutil.wait_procs(started, timeout=60)[1] == []
    finally:
        for process in (launcher, *started):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    said = log.read_text(errors="replace")
    found = re.search(r"rank 1 ran out of memory in step \d+, in a micro-batch of \d rows and \d+ tokens", said)
    assert found, said[-3000:]


@pytest.mark.distributed
@needs_deepspeed
def test_two_hosts_by_rendezvous(write_config: Write, tiny_llama: Path, tmp_path: Path) -> None:
    """Two agents, as on two hosts, each with two processes, that meet at an address."""
    config = write_config(deepspeed="example_configs/deepspeed/zero2.json", micro_batch_size=1)
    port = free_port()
    rendezvous = ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=clo"]
    command = [AXOLOTL, "train", str(config), "--launcher", "torchrun", "--", "--nnodes=2", "--nproc_per_node=2"]
    logs = [tmp_path / f"host{host}.log" for host in range(2)]
    agents = []
    for log in logs:
        with log.open("w") as stream:
            agents.append(
                subprocess.Popen([*command, *rendezvous], cwd=ROOT, env=environment(), stdout=stream, stderr=stream)
            )
    codes = [agent.wait(timeout=900) for agent in agents]
    output = "\n".join(log.read_text() for log in logs)
    assert codes == [0, 0], output[-3000:]
    assert "clo: 4 processes train DeepSpeedEngine, ZeRO-2" in output
    assert_only_attention_moved(tiny_llama, tmp_path / "out")


@pytest.mark.distributed
def test_options_reach_rays_workers(write_config: Write, tmp_path: Path) -> None:
    """Two workers of Axolotl's Ray launcher end where one process does, with options that are not the defaults."""
    options = {"clo": {"target_lang": "de", "beta": 0.4, "nll_weight": 0.2, "layers": "1"}, "max_steps": 3}
    train(write_config(**options, output_dir=str(tmp_path / "one")))
    config = write_config("ray.yml", **options, micro_batch_size=2, output_dir=str(tmp_path / "two"))
    script = Path(__file__).parent / "ray_on_cpu.py"
    result = subprocess.run(
        [sys.executable, str(script), str(config)],
        env=environment(RAY_TRAIN_V2_ENABLED="1", RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="600"),
        capture_output=True,
        text=True,
        timeout=900,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-5000:]
    assert "clo: 2 processes train DistributedDataParallel" in output
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, atol=1e-5, rtol=0)


# ---- SIGTERM through launchers ----

STEPS = 200


def called_off(command: list[str], output: Path) -> tuple[int, str, int]:
    """Start training, send SIGTERM to what was started after its first steps, and see a whole checkpoint.

    Returns:
        Exit status, what was said, and after which step the checkpoint is.
    """
    log = output.with_suffix(".log")
    with log.open("w") as stream:
        launcher = psutil.Popen(command, env=environment(), stdout=stream, stderr=stream)
    started = []
    try:
        while log.read_text(errors="replace").count("'loss'") < 2:
            assert launcher.poll() is None, log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)
        started = launcher.children(recursive=True)
        launcher.terminate()
        status = launcher.wait(timeout=120)
    finally:
        for process in (launcher, *started):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    said = log.read_text(errors="replace")
    (checkpoint,) = output.glob("checkpoint-*")
    assert problem_of(checkpoint) is None, said[-3000:]
    assert not (output / "model.safetensors").exists()
    return status, said, int(checkpoint.name.rpartition("-")[2])


def long_run(write_config: Write, **options: Any) -> str:
    options |= {"max_steps": STEPS, "num_epochs": STEPS, "save_strategy": "steps", "save_steps": STEPS}
    clo = {"target_lang": "de", "eval_answers": 0}
    return str(write_config(clo=clo, auto_resume_from_checkpoints=True, **options))


def test_sigterm_to_one_process_as_typed(write_config: Write, tmp_path: Path) -> None:
    """`--launcher python` trains in the process that the user started: the signal is its own."""
    command = [AXOLOTL, "train", long_run(write_config), "--launcher", "python"]
    status, said, step = called_off(command, tmp_path / "out")
    assert status == TERMINATED == 143
    assert f"SIGTERM came; checkpoint-{step} is written" in said


@pytest.mark.distributed
def test_sigterm_to_torchrun_reaches_its_ranks_and_the_command_goes_on(write_config: Write, tmp_path: Path) -> None:
    """It sends the signal on, waits for the ranks to write their checkpoint, and ends with a status of its own."""
    command = [AXOLOTL, "train", long_run(write_config, micro_batch_size=2), "--launcher", "torchrun", "--"]
    command += ["--nproc_per_node=2", f"--master_port={free_port()}"]
    status, said, step = called_off(command, tmp_path / "out")
    assert status == 1
    assert f"SIGTERM came; checkpoint-{step} is written" in said
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    assert (tmp_path / "out" / "model.safetensors").exists()
    history = json.loads((tmp_path / "out" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    steps = [entry["step"] for entry in history if "loss" in entry]
    assert steps == list(range(1, STEPS + 1)), "no step is missing, and none was taken twice"
