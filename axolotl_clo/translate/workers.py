"""Where parts are translated: in this process, in several on this machine, or in a Ray cluster.

Workers only compute. The process that was started writes what they return, so a worker may die at any moment.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import islice
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from axolotl_clo.translate.engines import EngineError
from axolotl_clo.translate.sources import SourceRow
from axolotl_clo.translate.translator import Cost, Task, Translator

AHEAD = 2  # parts in flight for each worker, so that none waits for the next
FEWEST_CALLS = 10  # for each worker, from which on it is worth starting

Out = TypeVar("Out")


class Part(NamedTuple):
    """Source rows that are translated and committed together."""

    number: int
    rows: list[SourceRow]


class Result(NamedTuple):
    """A translated part."""

    number: int
    table: pa.Table
    cost: Cost


def visible_gpus() -> list[str]:
    """Indices of the GPUs this process may use."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [gpu for gpu in named.split(",") if gpu]
    return [str(gpu) for gpu in range(torch.cuda.device_count())]


def here(task: Task, parts: Iterable[Part]) -> Iterator[Result]:
    """Translate in this process, one part after the other."""
    translator = Translator(task)
    try:
        for part in parts:
            yield Result(part.number, *translator.part(part.rows))
    finally:
        translator.close()


def processes(task: Task, parts: Iterable[Part], workers: int) -> Iterator[Result]:
    """Translate in processes of this machine, each with a GPU of its own where there are several; in no order.

    Raises:
        EngineError: an engine cannot go on, or a worker died.
    """
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(task, slots))
    left = iter(parts)
    try:
        running = {pool.submit(_work, part) for part in islice(left, workers)}
        gpus = visible_gpus()  # takes as long as the workers take to start
        for i in range(workers):
            slots.put(gpus[i % len(gpus)] if gpus else None)
        while True:
            running |= {pool.submit(_work, part) for part in islice(left, workers * AHEAD - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise _died() from error
    finally:
        _end(pool)


def in_order(call: Callable[[int], Out], count: int, workers: int) -> Iterator[Out]:
    """``call(0)``, ``call(1)`` and so on, in processes of this machine where there is enough to do for several.

    Args:
        call: can be pickled.
        count: how many calls.
        workers: processes.

    Raises:
        EngineError: a worker died.
    """
    if workers == 1 or count < workers * FEWEST_CALLS:
        yield from map(call, range(count))
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_caller, initargs=(call,)
    )
    left, running = iter(range(count)), deque[Future[Out]]()
    try:
        while True:
            running.extend(pool.submit(_call, i) for i in islice(left, workers * AHEAD - len(running)))
            if not running:
                return
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise _died() from error
    finally:
        _end(pool)


def _died() -> EngineError:
    return EngineError(
        "a worker process died, of too little memory perhaps: finished parts are safe; run the same command again "
        "with fewer --workers"
    )


def _end(pool: ProcessPoolExecutor) -> None:
    children = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for child in children:  # they may be in the middle of something nobody wants
        child.terminate()


_CALL: Any = None


def _start_caller(call: Any) -> None:
    global _CALL
    _live_with_parent()
    _CALL = call


def _call(i: int) -> Any:
    return _CALL(i)


_TRANSLATOR: Translator | None = None
_START_ERROR: Exception | None = None


def _start_worker(task: Task, slots: Any) -> None:
    global _TRANSLATOR, _START_ERROR
    _live_with_parent()
    if (gpu := slots.get()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        _TRANSLATOR = Translator(task)
    except Exception as error:
        _START_ERROR = error  # raised with the first part: an error here would only break the pool


def _live_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # nosec B101 # tells the type checker
    wait_for([parent.sentinel])
    os._exit(1)


def _work(part: Part) -> Result:
    if _TRANSLATOR is None:
        raise _START_ERROR or EngineError("the worker has no engine")
    return Result(part.number, *_TRANSLATOR.part(part.rows))


class _RayWorker:
    """An engine in an actor of Ray Data; takes one part at a time."""

    def __init__(self, task: Task) -> None:
        self._translator = Translator(task)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (number,), (rows,) = batch["number"], batch["rows"]
        table, cost = self._translator.part([SourceRow(**row) for row in rows])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return {
            "number": [int(number)],
            "table": [sink.getvalue().to_pybytes()],
            "seconds": [cost.seconds],
            "tokens": [cost.tokens],
        }


def ray_cluster(task: Task, parts: Iterable[Part], address: str, workers: int | None) -> Iterator[Result]:
    """Translate in a Ray cluster by Ray Data, one actor for each GPU (or CPU) unless `workers` says; in no order.

    The source's text is handed to the cluster at once and lies in Ray's object store, which spills to disk.

    Raises:
        ValueError: Ray is not installed.
        EngineError: the cluster cannot be reached, or an engine cannot go on.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine-workers: Ray is not installed; pip install 'axolotl-clo[ray]'") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(f"--engine-workers: no Ray cluster at {address} ({error})") from error
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    items = [{"number": part.number, "rows": [asdict(row) for row in part.rows]} for part in parts]
    if not items:
        return
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _RayWorker,
        fn_constructor_args=(task,),
        batch_size=1,
        concurrency=workers or gpus or int(there.get("CPU", 1)),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    try:
        for row in dataset.iter_rows():
            with pa.ipc.open_stream(row["table"]) as reader:
                yield Result(row["number"], reader.read_all(), Cost(row["seconds"], row["tokens"]))
    except ray.exceptions.RayError as error:
        raise EngineError(f"--engine-workers: {error}") from error
