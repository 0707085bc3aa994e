"""Results that are kept one by one while a command works, so that it can be killed at any moment and go on.

FILE.partial     what the run is, then a line for each result, in the order they came; each is on disk before the next
FILE             all results in their own order, written whole when the last one is there
ABOUT            what the run was, beside FILE; written last
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axolotl_clo.translate.store import OutputError, Store, held, what_changed

_HEAD = b'{"run": '


class Journal:
    """The results of one run.

    Args:
        file: where all results stand in the end.
        about: where it says what the run was.
        run: all that shapes the results, as JSON types and without secrets; a run goes on only with the same.
    """

    def __init__(self, file: Path, about: Path, run: Mapping[str, Any]) -> None:
        self.file, self.about = file, about
        self.partial = file.with_name(f"{file.name}.partial")
        self._run = json.loads(json.dumps(run))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the files for this process; the system frees them when the process ends, however it ends.

        Raises:
            OutputError: another process holds them, the folder cannot be made, or the file belongs to something else.
        """
        with self._writing():
            self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.partial.is_symlink():
            raise OutputError(f"--out: {self.partial} is a link; remove it, or give another --out")
        with held(self.file.with_name(f".{self.file.name}.lock"), self.file):
            if self.file.is_dir() or (self.file.exists() and not self.about.exists() and not self.partial.exists()):
                raise OutputError(f"--out: {self.file} is there and not of this command; give a name that is free")
            yield

    def finished(self) -> dict[str, Any] | None:
        """What the run was, where it is finished; None where there is work left.

        Raises:
            OutputError: another run was finished here; names what differs.
        """
        if not self.about.is_file() or self.partial.exists():
            return None
        about: dict[str, Any] = json.loads(self.about.read_text(encoding="utf-8"))
        self._check(about.get("run") or {})
        return about

    def results(self) -> list[dict[str, Any]]:
        """What an earlier start of this run has left; a line that was being written when it was killed is cut off.

        Raises:
            OutputError: another run has left it; names what differs.
        """
        if not self.partial.is_file():
            return []
        content, good = self.partial.read_bytes(), 0
        if not content.startswith(_HEAD) and not _HEAD.startswith(content):
            raise OutputError(f"--out: {self.partial} is there and not of this command; move it, or give another --out")
        lines: list[dict[str, Any]] = []
        for line in content.splitlines(keepends=True):
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
            if not line.endswith(b"\n"):
                lines.pop()
                break
            good += len(line)
        if lines:
            self._check(lines[0].get("run") or {})
        if good < len(content):
            with self._writing():
                os.truncate(self.partial, good)
        return lines[1:]

    def append(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Put results on disk.

        Raises:
            OutputError: they cannot be written.
        """
        with self._writing(), self.partial.open("ab") as stream:
            first = [] if stream.tell() else [{"run": self._run}]
            stream.write("".join(_line(result) for result in [*first, *results]).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, results: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
        """Write all results and what the run was, which is given back; a kill in between costs nothing."""
        store = Store(self.file.parent)
        whole = {**about, "run": self._run}
        store.write_text(self.file, "".join(_line(result) for result in results))
        store.write_text(self.about, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        with self._writing():
            self.partial.unlink(missing_ok=True)
        return whole

    def _check(self, before: Mapping[str, Any]) -> None:
        if changes := what_changed(before, self._run):
            raise OutputError(
                f"--out: {self.file} was started with other input ({changes}). Give what it was started with, or "
                "another --out"
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"--out: cannot write {self.file} ({error.strerror or error}). What is finished is safe in "
                f"{self.partial.name}; the same command goes on from there"
            ) from error


def _line(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False) + "\n"
