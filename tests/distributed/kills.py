"""Kills training at a moment, lets it go on, and keeps what came out; imports Axolotl once and forks.

python kills.py JOBS.json      a list of {"config", "folder", "processes", "kill"}; "kill" as in `moment_came`
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import run_cases

from axolotl_clo.checkpoints import problem_of

PATIENCE = 300.0
GRACE = 5.0  # seconds for the other ranks to end by themselves


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train until the moment, kill one rank, start again until the end."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    kill = job.get("kill")
    found: dict[str, Any] = {"kill": kill, "killed": False}
    if kill is not None:
        found["killed"] = attempt(job, folder, kill)
        found["left"] = {p.name: problem_of(p) for p in sorted((folder / "out").glob("checkpoint-*"))}
    start = time.monotonic()
    attempt(job, folder, None)
    return found | {"seconds": time.monotonic() - start, "ended": (folder / "rank0.json").exists()}


def attempt(job: dict[str, Any], folder: Path, kill: dict[str, Any] | None) -> bool:
    """One start of all ranks; whether one was killed before they ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    start = time.monotonic()
    for rank in range(job["processes"]):
        child = os.fork()
        if child == 0:
            run_cases.become_rank(job, folder, rank, port)
        ranks.append(child)
    killed = 0.0
    while ranks and time.monotonic() < start + PATIENCE:
        ranks = [child for child in ranks if os.waitpid(child, os.WNOHANG)[0] == 0]
        if ranks and kill and not killed and moment_came(kill, folder, time.monotonic() - start):
            os.kill(random.choice(ranks), signal.SIGKILL)
            killed = time.monotonic()
        if killed and time.monotonic() > killed + GRACE:
            break
        time.sleep(0.001 if kill else 0.05)
    for child in ranks:  # as a launcher does, none is left waiting for one that is gone
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if ranks and not killed:
        raise TimeoutError(f"{folder.name}: {len(ranks)} ranks did not end")
    return bool(killed)


def moment_came(kill: dict[str, Any], folder: Path, seconds: float) -> bool:
    """Whether to kill now: `after` seconds, or while `writing` a checkpoint or the reference cache."""
    if "after" in kill:
        return bool(seconds >= kill["after"])
    if kill["writing"] == "reference":
        return any((folder / "prepared").glob("*/reference/*"))
    begun = sorted((folder / "out").glob("checkpoint-*"))
    return len(begun) > kill["whole"] and not (begun[-1] / "trainer_state.json").exists()


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    run_cases.warm_up()
    undisturbed = PATIENCE
    for job in jobs:
        random.seed(job["folder"])
        if job.get("kill") and "share" in job["kill"]:  # of the time of the run that nothing disturbed
            job["kill"] = {"after": job["kill"]["share"] * undisturbed}
        found = run(job)
        if not job.get("kill"):
            undisturbed = found["seconds"]
        (Path(job["folder"]) / "found.json").write_text(json.dumps(found))
        print(job["folder"], found, flush=True)


if __name__ == "__main__":
    main()
