"""Translation by a command that reads one segment per line and writes one translation per line, such as Apertium.

The command is started without a shell, once per batch: `~`, `$VAR`, `|` and `;` mean nothing. Who needs them writes
them into a script, or says `sh -c '...'`. Text goes in and comes out as UTF-8.

Apertium (tried with 3.8.3, eng-spa) treats a batch as one running text: a line without a full stop flows into the next,
so that of the lines "I saw the red" and "car" the first becomes "Vi el coche" (`-f line` does the same, and takes full
stops away besides). So it gets each line with a full stop more, which is taken away again, and `-u`, without which it
marks words it does not know with `*`.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess  # nosec B404 # no shell is used
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from axolotl_clo.redact import redact_options
from axolotl_clo.translate.engines import EngineError, EngineOptions, Failure

_CHUNK = 1 << 16  # bytes
_STDERR_KEPT = 4096  # bytes; the last lines say why a command failed
_LINE_END = {"apertium": " ."}  # what keeps a program's lines apart
_ADDED = {"apertium": "-u"}  # an option without which a program's output is no clean text
_POLL = 0.02  # seconds between looks at whether the command has ended


class CommandEngine:
    """A command for one pair of languages, and one more for the reverse direction where round trips are wanted.

    Which languages a command translates between cannot be known: the first pair that is asked for is taken to be
    what `command` does, and its reverse what `back_command` does.

    Args:
        options: of which `command`, `back_command`, `batch_size` (lines per call, 500) and `timeout` (seconds per
            call) count. The commands stand in `describe()` and so in the manifest, less the secrets that can be told.

    Raises:
        ValueError: an option is missing or cannot be read.
        EngineError: a command is not there.
    """

    unit = "sentence"
    max_chars = 1000

    def __init__(self, options: EngineOptions) -> None:
        self.batch = 500 if options.batch_size is None else options.batch_size
        if self.batch < 1:
            raise ValueError(f"--batch-size: expected at least 1, found {self.batch}")
        if not options.timeout > 0:
            raise ValueError(f"--timeout: expected more than 0 seconds, found {options.timeout}")
        self._options = options
        self._command = _split("--command", options.command or "")
        self._back = None if options.back_command is None else _split("--back-command", options.back_command)
        self._pair: tuple[str, str] | None = None

    def describe(self) -> dict[str, Any]:
        """The commands as the user gave them, without secrets."""
        back = self._options.back_command
        return {
            "engine": "command",
            "command": redact_options(self._options.command or ""),
            "back_command": back and redact_options(back),
            "batch_size": self.batch,
        }

    def check(self, source: str, target: str) -> None:
        """Accept any pair at first, and after that only this pair and, given `back_command`, its reverse.

        Raises:
            ValueError: there is no command for the pair.
        """
        self._for(source, target)

    def translate(self, segments: Sequence[str], source: str, target: str) -> list[str | Failure]:
        """Run the command once over all segments but the blank ones, which come back as they are.

        Raises:
            ValueError: there is no command for the pair.
            EngineError: the command fails, hangs, or does not write one line per line.
        """
        option, argv = self._for(source, target)
        results = [_without_command(segment) for segment in segments]
        sent = [i for i, result in enumerate(results) if result is None]
        end = _LINE_END.get(Path(argv[0]).name, "")
        lines = _run(option, argv, [segments[i] + end for i in sent], self._options.timeout) if sent else []
        for i, line in zip(sent, lines, strict=True):
            results[i] = line.strip().removesuffix(end.strip()).strip() or Failure("the command wrote an empty line")
        return [result for result in results if result is not None]

    def close(self) -> None:
        """Nothing is held: each call ends its own process."""

    def _for(self, source: str, target: str) -> tuple[str, list[str]]:
        """The option and the command for a pair."""
        self._pair = self._pair or (source, target)
        if (source, target) == self._pair:
            return "--command", self._command
        if (target, source) != self._pair:
            pair = " to ".join(self._pair)
            raise ValueError(f"--command: it is in use from {pair}; {source} to {target} needs a run of its own")
        if self._back is None:
            raise ValueError(f"--back-command: needed to translate {source} to {target}, found none")
        return "--back-command", self._back


def _split(option: str, command: str) -> list[str]:
    """The words of a command whose program exists."""
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"{option}: cannot be split into words: {error}; found {redact_options(command)!r}") from None
    if not argv:
        raise ValueError(f"{option}: expected a command such as 'apertium eng-spa', found none")
    if (more := _ADDED.get(Path(argv[0]).name)) and more not in argv:
        argv.insert(1, more)
    if shutil.which(argv[0]) is None:
        raise EngineError(
            f"{option}: no program {argv[0]!r} on PATH that may be executed; install it or give its full path "
            "(no shell is used: ~ and $VAR are not replaced)"
        )
    return argv


def _without_command(segment: str) -> str | Failure | None:
    """What becomes of a segment that cannot be a line of its own or need not be one; None for all others."""
    if not segment.strip():
        return segment
    if any(sign in segment for sign in "\n\r\0"):
        return Failure("holds a line break or NUL, and a command gets one segment per line")
    try:
        segment.encode()
    except UnicodeEncodeError:
        return Failure("holds half of a surrogate pair, which UTF-8 cannot write")
    return None


def _run(option: str, argv: list[str], lines: Sequence[str], timeout: float) -> list[str]:
    """Run a command over lines, and see that it ended well and wrote as many."""
    name = redact_options(f"{option}: {shlex.join(argv)!r}")
    # A file cannot block or break as a pipe does where the command reads late, or not at all.
    with tempfile.TemporaryFile() as stdin:
        stdin.write("".join(f"{line}\n" for line in lines).encode())
        limit = 10 * stdin.tell() + _CHUNK  # bytes; no translation is that much longer
        stdin.seek(0)
        try:
            # A session of its own: all that the command starts can be ended with it, and none asks a terminal.
            process = subprocess.Popen(  # nosec B603 # no shell; the program is the user's --command
                argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise EngineError(f"{name} cannot be started: {error.strerror}") from error
    try:
        out, err, why = _read(process, len(lines), limit, timeout)
    finally:
        _end(process)
    said = err.decode(errors="replace").strip().splitlines()[-5:]
    stderr = f"; the end of its stderr: {redact_options(' | '.join(said))}" if said else "; its stderr is empty"
    why = why or _failed(process.returncode)
    if why:
        raise EngineError(f"{name} {why}{stderr}")
    try:
        text = out.decode()
    except UnicodeDecodeError as error:
        raise EngineError(f"{name} wrote bytes that are not UTF-8: {error.reason} at byte {error.start}") from None
    found = text.removesuffix("\n").split("\n") if text else []
    if len(found) != len(lines):
        raise EngineError(
            f"{name} got {len(lines)} lines and wrote {len(found)}; it must write one line for each line it reads"
            f"{stderr}"
        )
    return found


def _read(process: subprocess.Popen[bytes], lines: int, limit: int, timeout: float) -> tuple[bytes, bytes, str | None]:
    """All of stdout, the end of stderr, and why reading was given up, if it was. The process is not yet reaped.

    What the command started may outlive it and hold its stdout open: it is waited for only while lines are missing.
    """
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + timeout
    why = None
    with selectors.DefaultSelector() as selector:
        for pipe, buffer in ((process.stdout, out), (process.stderr, err)):
            assert pipe is not None  # nosec B101 # tells the type checker
            selector.register(pipe, selectors.EVENT_READ, buffer)
        while why is None:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            ready = selector.select(_POLL)
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            del err[:-_STDERR_KEPT]
            more = any(key.data is out for key in selector.get_map().values())
            if ended and not ready and (not more or out.count(b"\n") >= lines):
                break
            if len(out) > limit:
                why = f"wrote over {limit} bytes for {lines} lines and was killed"
            elif time.monotonic() >= deadline:
                why = f"did not end within {timeout:g} seconds (--timeout) and was killed"
    return bytes(out), bytes(err), why


def _failed(code: int) -> str | None:
    if code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}" if code else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group; as its leader is reaped only after, the number cannot yet belong to another."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
