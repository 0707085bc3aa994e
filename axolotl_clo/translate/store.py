"""What a translation run keeps on disk, so that it can be killed at any moment and go on.

    OUT/.work/run.json          what the run was started with
    OUT/.work/parts/*.parquet   finished parts: translations of so many source rows each, with their scores
    OUT/data/*.parquet          the rows that passed
    OUT/rejected.jsonl          those that did not, with reason and scores
    OUT/manifest.json           source, engine, options, counts; written last
    OUT/README.md               dataset card

Every file is written beside its place, flushed to disk and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputError(RuntimeError):
    """The output cannot be written, or belongs to another run; the message says what to do."""


@contextmanager
def held(lock_file: Path, out: Path) -> Iterator[None]:
    """Hold a lock for this process; the system frees it when the process ends, however it ends.

    Args:
        lock_file: in a folder that is there.
        out: what it guards, for the message.

    Raises:
        OutputError: another process holds it, or it is no file that can be locked, such as a link.
    """
    lock = FileLock(lock_file, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"--out: another process is writing to {out}; wait for it, or give another --out") from error
    except OSError as error:
        raise OutputError(f"--out: {lock_file} cannot be locked ({error.strerror}); remove it") from error
    try:
        yield
    finally:
        lock.release()


class Store:
    """The folder of one run."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out / ".work"
        self.parts = self.work / "parts"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system frees it when the process ends, however it ends.

        Raises:
            OutputError: another process holds it, or the folder cannot be made.
        """
        with self._writing():
            if self.out.exists() and not self.out.is_dir():
                raise OutputError(f"--out: {self.out} is a file; a folder, or a name that is free, is accepted")
            if self.out.is_dir() and any(self.out.iterdir()) and not self.work.is_dir():
                raise OutputError(
                    f"--out: {self.out} holds other files; an empty folder, or a name that is free, is accepted"
                )
            for place in (self.work, self.parts, self.work / "final", self.out / "data"):
                if place.is_symlink():
                    raise OutputError(
                        f"--out: {place} is a link, so what is written would lie elsewhere; remove the link, or give "
                        "another --out (which may be a link itself)"
                    )
            self.parts.mkdir(parents=True, exist_ok=True)
        with held(self.work / "lock", self.out):
            for left in self.work.rglob("*.tmp"):  # of a run that was killed
                left.unlink()
            yield

    def claim(self, started_with: dict[str, Any]) -> None:
        """Say what this run is, or check that it is the run the folder was started with.

        Raises:
            OutputError: names the options that differ.
        """
        file = self.work / "run.json"
        now = json.loads(json.dumps(started_with))
        if not file.is_file():
            self.write_text(file, json.dumps(now, indent=1, sort_keys=True, ensure_ascii=False))
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        if changes := what_changed(before, now):
            raise OutputError(
                f"--out: {self.out} was started with other input ({changes}). Give what it was started with to go on "
                "(a hub dataset's fingerprint is a commit, which --revision takes), or another --out to start anew"
            )

    def done(self, part: int) -> bool:
        """Whether a part is finished."""
        return self._part(part).is_file()

    def write_part(self, part: int, table: pa.Table) -> None:
        """Commit the rows of a part."""
        with self.appending(self._part(part), table.schema) as writer:
            writer.write_table(table)

    def read_part(self, part: int) -> pa.Table:
        """The rows of a finished part.

        Raises:
            OutputError: it cannot be read; says which file to delete.
        """
        file = self._part(part)
        try:
            return pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise OutputError(
                f"{file}: cannot be read ({error}); delete it and run the same command again, which makes it anew"
            ) from error

    @contextmanager
    def appending(self, file: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """A Parquet file to be written in pieces, which appears when it is complete."""
        temporary = _beside(file)
        with self._writing(temporary):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # a link of that name would be followed
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                yield writer
            _place(temporary, file)

    @contextmanager
    def appending_text(self, file: Path) -> Iterator[IO[str]]:
        """A text file to be written in pieces, which appears when it is complete."""
        temporary = _beside(file)
        with self._writing(temporary):
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # a link of that name would be followed
            with temporary.open("w", encoding="utf-8", newline="\n") as stream:
                yield stream
            _place(temporary, file)

    def write_text(self, file: Path, text: str) -> None:
        """Write one text file, whole or not at all."""
        with self.appending_text(file) as stream:
            stream.write(text)

    def publish(self, files: Path) -> None:
        """Put the finished files of a folder in `.work` into their place, the manifest last.

        A kill in between leaves no manifest, and the next run does it again.
        """
        with self._writing():
            (self.out / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(self.out / "data", ignore_errors=True)
            for name in ("data", "rejected.jsonl", "README.md", "manifest.json"):
                if (files / name).exists():  # there is no data where nothing passed
                    (files / name).replace(self.out / name)
            shutil.rmtree(files)

    def _part(self, part: int) -> Path:
        return self.parts / f"part-{part:06d}.parquet"

    @contextmanager
    def _writing(self, temporary: Path | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            if error.errno in _FULL:
                raise OutputError(
                    f"--out: no room left to write in {self.out} ({error.strerror}). Finished parts are safe: make "
                    "room and run the same command again"
                ) from error
            raise OutputError(f"--out: cannot write in {self.out} ({error.strerror or error})") from error


def _beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.tmp")


def _place(temporary: Path, file: Path) -> None:
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(file)


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What a run was started with that differs now, in words; empty where nothing does."""
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return "; ".join(f"{key}: {_short(before.get(key))} then, {_short(now.get(key))} now" for key in differ)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
