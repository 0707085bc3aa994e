"""Processes that do runs, and the queue in front of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from axolotl_clo.compare.plan import Run
from axolotl_clo.compare.training import attempt

TAIL_LINES = 15


class Workers:
    """Processes that each take one run after another: importing Axolotl takes longer than a short run.

    Args:
        jobs: how many at a time.
        threads: CPU threads of each, unless the environment's OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs, self.threads = jobs, threads
        self._idle: list[tuple[Any, Connection]] = []
        self._busy: dict[Connection, tuple[Any, Run]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._idle:
            connection.close()  # an idle worker then ends by itself
            process.join(timeout=10)
        for process, _other in [*self._idle, *self._busy.values()]:
            process.terminate()
            process.join()

    def results(self, runs: Iterable[Run], on_start: Callable[[list[str]], None]) -> Iterator[tuple[Run, str | None]]:
        """Each run as it ends, with what went wrong, or None.

        Args:
            runs: to be done, started in their order.
            on_start: called with the names of the runs in hand whenever they change.
        """
        waiting = deque(runs)
        while waiting or self._busy:
            while waiting and len(self._busy) < self.jobs:
                process, connection = self._idle.pop() if self._idle else self._start()
                if not process.is_alive():
                    continue
                run = waiting.popleft()
                connection.send(run)
                self._busy[connection] = (process, run)
            on_start([run.name for _, run in self._busy.values()])
            # A process that dies closes its end, unless one of its own children holds it: hence the time limit.
            ready = wait(list(self._busy), timeout=5)
            for connection, (process, run) in list(self._busy.items()):
                if connection not in ready and process.is_alive():
                    continue
                del self._busy[connection]
                try:
                    if not connection.poll():
                        raise EOFError
                    error = connection.recv()
                    self._idle.append((process, connection))
                except (EOFError, ConnectionError):
                    process.join()
                    error = f"its process ended with exit code {process.exitcode}"
                    error += ", probably for want of memory" if process.exitcode == -9 else ""
                yield run, error

    def _start(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.threads))
        process.start()
        theirs.close()
        return process, ours


def _work(connection: Connection, threads: int) -> None:
    """A worker's life: take a run, do it, say what went wrong."""
    # Before torch is imported; accelerate would give a CPU process one thread.
    for name, value in {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Rows are few: datasets would start a process, with its imports, to save them.
        "AXOLOTL_DATASET_NUM_PROC": "0",
    }.items():
        os.environ.setdefault(name, value)
    while True:
        try:
            run = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        connection.send(attempt(run))


class Queue:
    """Does the runs that have no result yet, shows a progress bar and remembers what failed, by name."""

    def __init__(self, workers: Workers, bar: Any) -> None:
        self.workers, self.bar = workers, bar
        self.failed: dict[str, str] = {}

    def finish(self, runs: Sequence[Run]) -> list[dict[str, Any] | None]:
        """The result of each run in their order, None where it failed."""
        missing = [run for run in runs if run.result() is None]
        self.bar.update(len(runs) - len(missing))
        for run, error in self.workers.results(missing, lambda names: self.bar.set_postfix_str(", ".join(names))):
            if error is None:
                seconds = json.loads((run.folder / "scores.json").read_text(encoding="utf-8"))["seconds"]
                line = f"✓ {run.name}: trained in {seconds['train']:.0f} s, scored in {seconds['score']:.0f} s"
            else:
                line = f"✗ {run.name}: {error}"
                self.failed[run.name] = f"{error}\n{_tail(run.folder / 'log.txt')}"
            self.bar.write(line, sys.stderr)
            self.bar.update()
        return [run.result() for run in runs]


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-TAIL_LINES:])
