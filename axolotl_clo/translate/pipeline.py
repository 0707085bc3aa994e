"""The run: source rows in parts through an engine into a folder, from where it stopped before."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from axolotl_clo.redact import public_url, redact_options
from axolotl_clo.translate.engines import EngineOptions
from axolotl_clo.translate.engines.languages import normalise
from axolotl_clo.translate.publish import Publisher
from axolotl_clo.translate.quality import Thresholds
from axolotl_clo.translate.sources import Source, SourceOptions, SourceRow
from axolotl_clo.translate.store import Store
from axolotl_clo.translate.translator import Cost, Task, Translator
from axolotl_clo.translate.workers import Part, Result, here, processes, ray_cluster, visible_gpus

PART_ROWS = 200
PREVIEW_ROWS = 10
ESTIMATE_FROM = 8  # rows
SAMPLE = -1  # number of the part that is only timed
_SAME_RESULT = {"device", "batch_size", "concurrency", "timeout", "retries", "token_budget", "api_key_env", "extra"}


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: rows that are finished, those of earlier runs too.
        total: rows of the source, None where it does not say.
        failed: rows of this run that cannot be used or could not be translated.
        new: rows finished by this run.
        tokens: tokens this run used at a server.
    """

    done: int
    total: int | None
    failed: int
    new: int
    tokens: int


@dataclass(frozen=True)
class Estimate:
    """What the whole run will take, from a few of its rows.

    Attributes:
        rows: rows left to translate.
        seconds: time for them with the workers asked for.
        tokens: tokens for them at a server, 0 for other engines.
    """

    rows: int
    seconds: float
    tokens: int


@dataclass(frozen=True)
class RunOptions:
    """How the work is divided.

    Attributes:
        part_rows: source rows that are committed together: what a kill can cost.
        workers: processes; None is one for each GPU, and one without.
        engine_workers: `ray://HOST:PORT` (or `local` for a cluster on this machine) where a Ray cluster does the work.
        round_trip: translate back and compare with the source (chrF); doubles the work.
    """

    part_rows: int = PART_ROWS
    workers: int | None = None
    engine_workers: str | None = None
    round_trip: bool = False


class Run:
    """A source, what is to be done with it, and how; made by `translate` and the command alike."""

    def __init__(self, source: str, *, to: str | Sequence[str], from_: str = "en", engine: str, **options: Any) -> None:
        """
        Args:
            source: file, folder or hub dataset.
            to: target languages.
            from_: language of the source.
            engine: name of the engine.
            options: fields of `SourceOptions`, `EngineOptions`, `Thresholds` and `RunOptions`.

        Raises:
            ValueError: names the option at fault and what is accepted.
        """
        parts = _split_options(options)
        self.how: RunOptions = parts[RunOptions]
        self.thresholds: Thresholds = parts[Thresholds]
        asked = to.split(",") if isinstance(to, str) else list(to)
        targets = tuple(dict.fromkeys(normalise(code.strip()) for code in asked if code.strip()))
        spoken = normalise(from_)
        if not targets or spoken in targets:
            raise ValueError(f"--to: one or more languages other than {spoken} (--from) are accepted, got {to!r}")
        if self.how.part_rows < 1 or (self.how.workers is not None and self.how.workers < 1):
            raise ValueError("--part-rows, --workers: 1 or more is accepted")
        self.task = Task(engine, parts[EngineOptions], spoken, targets, self.how.round_trip)
        self.source = Source(source, parts[SourceOptions])

    def preview(self) -> tuple[pa.Table, Estimate | None]:
        """The first rows translated, and what the whole would take; nothing is written."""
        rows = list(islice(self.source.rows(), PREVIEW_ROWS))
        translator = Translator(self.task)
        try:
            table, cost = translator.part(rows)
        finally:
            translator.close()
        return table, self._estimate(len(rows), cost, self.source.total)

    def run(
        self,
        out: Path,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_estimate: Callable[[Estimate], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Translate what is not done yet, then filter and publish; returns the manifest.

        Raises:
            OutputError: the output cannot be written, or belongs to another run or process.
            EngineError: the engine cannot go on; what is finished stays.
        """
        store = Store(out)
        with store.locked():
            store.claim(self._identity())
            parts = self._translate(store, on_progress, on_estimate)
            publisher = Publisher(
                store,
                parts,
                self.task.source,
                self.task.targets,
                self.thresholds,
                self.source.multi_turn,
                1 if self.how.engine_workers else self.workers,
            )
            return publisher.publish(self._told())

    def _translate(
        self, store: Store, on_progress: Callable[[Progress], None], on_estimate: Callable[[Estimate], None]
    ) -> int:
        """Make the parts that are missing; returns how many parts there are."""
        parts = before = 0
        sampled = False

        def missing() -> Iterator[Part]:
            nonlocal parts, before, sampled
            for part in _parts(self.source.rows(), self.how.part_rows):
                parts += 1
                if store.done(part.number):
                    before += len(part.rows)
                    continue
                if not sampled and (self.source.total or 0) - before > 2 * self.how.part_rows:
                    sampled = True
                    yield Part(SAMPLE, part.rows[:ESTIMATE_FROM])
                yield part

        new = failed = tokens = 0
        for number, table, cost in self._work(missing()):
            tokens += cost.tokens
            if number == SAMPLE:
                left = None if self.source.total is None else self.source.total - before
                if estimate := self._estimate(len(table), cost, left):
                    on_estimate(estimate)
                continue
            store.write_part(number, table)
            new += len(table)
            failed += _failed(table, self.task.targets)
            on_progress(Progress(before + new, self.source.total, failed, new, tokens))
        return parts

    def _work(self, parts: Iterable[Part]) -> Iterator[Result]:
        parts = iter(parts)
        first = next(parts, None)
        if first is None:
            return iter(())  # all done: no engine is needed
        parts = chain([first], parts)
        if self.how.engine_workers:
            return ray_cluster(self.task, parts, self.how.engine_workers, self.how.workers)
        workers = self.workers
        return here(self.task, parts) if workers == 1 else processes(self.task, parts, workers)

    @property
    def workers(self) -> int:
        """Processes that translate at a time."""
        if self.how.workers is not None:
            return self.how.workers
        return max(1, len(visible_gpus())) if self.task.engine in ("transformers", "ctranslate2") else 1

    def _estimate(self, rows: int, cost: Cost, left: int | None) -> Estimate | None:
        if left is None or not rows:
            return None
        return Estimate(left, cost.seconds / rows * left / self.workers, round(cost.tokens / rows * left))

    def _identity(self) -> dict[str, Any]:
        """What must not change between a run and the one that goes on with it; all that shapes a translation."""
        options = {key: value for key, value in asdict(self.task.options).items() if key not in _SAME_RESULT}
        hide = {"base_url": public_url, "command": redact_options, "back_command": redact_options}
        options |= {key: clean(options[key]) for key, clean in hide.items() if options[key]}
        source = self.source.describe()
        del source["revision"]  # the fingerprint is its commit, so that `--revision` goes on where the hub has moved on
        return {
            **{f"source {key}": value for key, value in source.items()},
            **{f"--{key.replace('_', '-')}": value for key, value in options.items()},
            "--engine": self.task.engine,
            "--from": self.task.source,
            "--to": list(self.task.targets),
            "--part-rows": self.how.part_rows,
            "--round-trip": self.how.round_trip,
        }

    def _told(self) -> dict[str, Any]:
        """What the manifest says of this run besides its results."""
        return {
            "source": self.source.describe(),
            "left_out": dict(sorted(self.source.left_out.items())),
            "options": {"part_rows": self.how.part_rows, "round_trip": self.how.round_trip},
            "versions": {
                name: _version(name) for name in ("axolotl-clo", "datasets", "pyarrow", "sentencex", "py3langid")
            },
        }


def translate(
    source: str,
    *,
    to: str | Sequence[str],
    out: str | Path,
    from_: str = "en",
    engine: str = "transformers",
    **options: Any,
) -> dict[str, Any]:
    """Translate instruction data into parallel data; goes on where an earlier call with the same arguments stopped.

    Args:
        source: file, folder or hub dataset with the rows.
        to: target language or languages (`ko`, `"sw,yo"` or a list).
        out: folder of the output.
        from_: language of the source.
        engine: `transformers`, `ctranslate2`, `openai`, `command`, or one of another package.
        options: every other option of `axolotl-clo translate`, with `_` for `-`.

    Returns:
        The manifest: source, engine, options, counts and versions.

    Raises:
        ValueError: an option, a language or the source is wrong; names it and what is accepted.
        EngineError: the engine cannot go on; what is finished stays.
        OutputError: the output cannot be written, or belongs to another run or process.
    """
    return Run(source, to=to, from_=from_, engine=engine, **options).run(Path(out))


def _split_options(given: dict[str, Any]) -> dict[type, Any]:
    """Each of the option classes with those of the given options that are its own."""
    classes: tuple[type, ...] = (SourceOptions, EngineOptions, Thresholds, RunOptions)
    known = {field.name: kind for kind in classes for field in fields(kind)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"no option {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return {kind: kind(**{name: value for name, value in given.items() if known[name] is kind}) for kind in classes}


def _parts(rows: Iterable[SourceRow], size: int) -> Iterator[Part]:
    left = iter(rows)
    number = 0
    while chunk := list(islice(left, size)):
        yield Part(number, chunk)
        number += 1


def _failed(table: pa.Table, targets: Sequence[str]) -> int:
    """Rows without a translation into any of the languages."""
    missing = [table[f"{target}.scores"].is_null() for target in targets]
    return sum(all(flags) for flags in zip(*(column.to_pylist() for column in missing), strict=True))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
