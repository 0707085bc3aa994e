"""The command engine against real processes: Apertium where it is installed, and small programs that misbehave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from axolotl_clo.translate.engines import Engine, EngineError, EngineOptions, Failure, open_engine
from axolotl_clo.translate.engines.command import CommandEngine

UPPER = "tr a-z A-Z"
GUARD = 60.0  # seconds after which a test fails instead of hanging

Script = Callable[[str], str]


def engine(command: str, **options: Any) -> CommandEngine:
    return CommandEngine(EngineOptions(command=command, **{"timeout": GUARD, **options}))


def run(command: str, segments: list[str], **options: Any) -> list[str | Failure]:
    return engine(command, **options).translate(segments, "en", "es")


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Writes a Python program and gives the command that runs it."""

    def write(source: str) -> str:
        file = tmp_path / "program.py"
        file.write_text(f"import os, signal, subprocess, sys, time\n{source}\n", encoding="utf-8")
        return f"{sys.executable} -S {file}"

    return write


def wait_until_gone(pid: int) -> None:
    """Returns once no process has this number, or only one that nobody has reaped."""
    for _ in range(int(GUARD / 0.05)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def wait_for(file: Path) -> str:
    for _ in range(int(GUARD / 0.05)):
        if file.exists() and file.read_text():
            return file.read_text()
        time.sleep(0.05)
    pytest.fail(f"{file.name} never came")


def test_is_an_engine_under_its_name() -> None:
    opened = open_engine("command", EngineOptions(command=UPPER))
    assert isinstance(opened, Engine)
    assert (opened.unit, opened.max_chars, opened.batch) == ("sentence", 1000, 500)
    assert opened.describe()["command"] == UPPER
    opened.close()


def test_one_translation_per_segment_in_order() -> None:
    assert run(UPPER, ["one", "two", "three"]) == ["ONE", "TWO", "THREE"]


def test_no_segments_start_no_command(tmp_path: Path) -> None:
    assert run(f"touch {tmp_path / 'started'}", []) == []
    assert not (tmp_path / "started").exists()


def test_text_is_utf8_both_ways_and_only_newlines_end_lines() -> None:
    segments = ["ẹ̀kọ́ 한국어 中文 🦎", "a\u2028b\x0bc\x85d\x0ce\x1cf", "tab\there {0} [b] ^c$ \\d *e"]
    assert run("cat", segments) == segments


def test_outer_spaces_are_taken_away() -> None:
    assert run("sed 's/.*/ [&]  /'", ["a  b", "c"]) == ["[a  b]", "[c]"]


def test_blank_segments_come_back_and_are_not_sent() -> None:
    assert run("sed 's/.*/not blank/'", ["", "one", "  ", "two"]) == ["", "not blank", "  ", "not blank"]


def test_the_last_newline_may_lack_and_lines_may_end_as_on_windows() -> None:
    assert run("printf 'A\\nB'", ["a", "b"]) == ["A", "B"]
    assert run("printf 'A\\r\\nB\\r\\n'", ["a", "b"]) == ["A", "B"]


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize("segment", ["a\nb", "a\rb", "a\0b", "a\ud800b"])
def test_a_segment_that_cannot_be_one_line_fails_alone(segment: str) -> None:
    first, second, third = run(UPPER, ["one", segment, "two"])
    assert (first, third) == ("ONE", "TWO")
    assert isinstance(second, Failure)


@pytest.mark.bad_input("translate")
def test_an_empty_line_is_a_failure_of_that_segment() -> None:
    assert run("sed s/b//", ["a", "b", "c"]) == ["a", Failure("the command wrote an empty line"), "c"]


def test_no_shell_is_used(tmp_path: Path) -> None:
    file = tmp_path / "made-by-a-shell"
    words = f"; touch {file} && $(touch {file}) `touch {file}` | touch {file} > {file}"
    assert run(f"{sys.executable} -c 'import sys; print(sys.argv[1:])' {words}", ["a"]) == [str(words.split())]
    assert not file.exists()


def test_the_reverse_direction_is_the_back_command() -> None:
    both = engine("sed s/a/b/", back_command="sed s/b/a/")
    both.check("en", "es")
    both.check("es", "en")
    assert both.translate(["a"], "en", "es") == ["b"]
    assert both.translate(["b"], "es", "en") == ["a"]


@pytest.mark.bad_input("translate")
def test_the_reverse_direction_needs_a_back_command() -> None:
    forward = engine(UPPER)
    forward.check("en", "es")
    with pytest.raises(ValueError, match="--back-command: needed to translate es to en"):
        forward.check("es", "en")
    with pytest.raises(ValueError, match="--back-command"):
        forward.translate(["a"], "es", "en")


@pytest.mark.bad_input("translate")
def test_a_command_serves_one_pair() -> None:
    forward = engine(UPPER, back_command=UPPER)
    forward.check("en", "es")
    with pytest.raises(ValueError, match="--command: it is in use from en to es; en to fr needs"):
        forward.check("en", "fr")


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--command: expected a command such as"),
        ({"command": "  "}, "--command: expected a command such as"),
        ({"command": "sed 's/a"}, "--command: cannot be split into words: No closing quotation"),
        ({"command": UPPER, "back_command": ""}, "--back-command: expected a command"),
        ({"command": UPPER, "batch_size": 0}, "--batch-size: expected at least 1, found 0"),
        ({"command": UPPER, "timeout": 0.0}, "--timeout: expected more than 0 seconds"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CommandEngine(EngineOptions(**options))


@pytest.mark.bad_input("translate")
def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    plain_file = tmp_path / "not-executable"
    plain_file.write_text("text")
    with pytest.raises(EngineError, match=r"--command: no program 'no-such-translator' on PATH"):
        engine("no-such-translator eng-spa")
    with pytest.raises(EngineError, match=r"--back-command: no program .*not-executable' on PATH"):
        engine(UPPER, back_command=str(plain_file))


@pytest.mark.bad_input("translate")
def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match=r"program' cannot be started: No such file"):
        run(str(program), ["a"])


@pytest.mark.bad_input("translate")
def test_an_exit_code_is_an_error_even_with_all_lines(script: Script) -> None:
    command = script("for line in sys.stdin: print(line, end='')\nsys.exit('line one\\nno such mode')")
    with pytest.raises(EngineError, match=r"--command: .* ended with exit code 1; .*: line one \| no such mode$"):
        run(command, ["a", "b"])


@pytest.mark.bad_input("translate")
def test_death_by_signal_is_named(script: Script) -> None:
    with pytest.raises(EngineError, match=r"was ended by signal 11 \(Segmentation fault\); its stderr is empty"):
        run(script("os.kill(os.getpid(), signal.SIGSEGV)"), ["a"])


@pytest.mark.bad_input("translate")
@pytest.mark.parametrize(
    ("command", "wrote"), [("sed d", 0), ("sed 1d", 1), ("sed p", 4), ("printf one", 1), ("sed G", 4)]
)
def test_a_wrong_number_of_lines_is_an_error(command: str, wrote: int) -> None:
    with pytest.raises(EngineError, match=f"got 2 lines and wrote {wrote}; it must write one line for each"):
        run(command, ["a", "b"])


@pytest.mark.bad_input("translate")
def test_output_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(EngineError, match="not UTF-8: invalid continuation byte at byte 2"):
        run("printf 'A\\n\\351B\\n'", ["a", "b"])


@pytest.mark.bad_input("translate")
def test_a_command_that_hangs_is_killed_though_it_ignores_sigterm(script: Script, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = script(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "print('still loading', file=sys.stderr, flush=True)\ntime.sleep(1000)"
    )
    with pytest.raises(EngineError, match=r"did not end within 5 seconds \(--timeout\).* still loading"):
        run(command, ["a"], timeout=5.0)
    wait_until_gone(int(pid.read_text()))


def test_what_a_hanging_command_started_is_killed_with_it(script: Script, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = script(
        f"child = subprocess.Popen(['sleep', '1000'])\nopen({str(pid)!r}, 'w').write(str(child.pid))\nchild.wait()"
    )
    with pytest.raises(EngineError, match="did not end within"):
        run(command, ["a"], timeout=5.0)
    wait_until_gone(int(pid.read_text()))


def test_what_outlives_the_command_neither_blocks_nor_stays(script: Script, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = script(
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\nprint('A', flush=True)"
    )
    assert run(command, ["a"]) == ["A"]
    wait_until_gone(int(pid.read_text()))


def test_lines_that_come_after_the_command_has_ended_are_waited_for(script: Script) -> None:
    assert run(script("subprocess.Popen(['sh', '-c', 'sleep 0.5; echo A'])"), ["a"]) == ["A"]


def test_stdin_may_stay_unread_and_pipes_may_be_full(script: Script) -> None:
    segments = ["x" * 1000] * 2000
    command = script(
        "sys.stderr.write('noise\\n' * 100_000)\n"
        "for i in range(2000): print('y' * 1000)\n"
        "sys.stderr.write('noise\\n' * 100_000)"
    )
    assert run(command, segments) == ["y" * 1000] * 2000


def test_a_big_batch_goes_through_a_command_that_answers_line_by_line() -> None:
    segments = [f"{i} " + "word " * 150 + "." for i in range(5000)]
    assert run("cat", segments) == segments


@pytest.mark.bad_input("translate")
def test_output_without_end_is_stopped_far_from_the_timeout() -> None:
    with pytest.raises(EngineError, match="wrote over 65556 bytes for 1 lines and was killed"):
        run("yes", ["a"], timeout=100_000.0)


def test_stderr_is_kept_in_its_last_lines_only(script: Script) -> None:
    with pytest.raises(EngineError) as error:
        run(script("for i in range(100_000): print('warning', i, file=sys.stderr)\nsys.exit(3)"), ["a"])
    assert "warning 99999" in str(error.value)
    assert len(str(error.value)) < 1000
    with pytest.raises(EngineError) as error:
        run(script("sys.exit('x' * 1_000_000)"), ["a"])
    assert len(str(error.value)) < 5000


def test_control_c_leaves_no_command_behind(tmp_path: Path) -> None:
    pid, program = tmp_path / "pid", tmp_path / "hangs.sh"
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $$ $! > {pid}\nwait\n")
    program.chmod(0o755)
    code = (
        "from axolotl_clo.translate.engines import EngineOptions, open_engine\n"
        f"open_engine('command', EngineOptions(command={str(program)!r})).translate(['a'], 'en', 'es')"
    )
    run_of_ours = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    pids = [int(number) for number in wait_for(pid).split()]
    assert len(pids) == 2
    run_of_ours.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in run_of_ours.communicate(timeout=GUARD)[1]
    for number in pids:
        wait_until_gone(number)


def test_no_file_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        run(UPPER, ["a"])
    with pytest.raises(EngineError):
        run("sed d", ["a"])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def apertium_has(direction: str) -> bool:
    if shutil.which("apertium") is None:
        return False
    listed = subprocess.run(["apertium", "-l"], capture_output=True, text=True, check=False)
    return direction in listed.stdout.split()


needs_apertium = pytest.mark.skipif(not apertium_has("eng-spa"), reason="apertium with eng-spa is not installed")
"""As the engine's documentation gives it."""


@needs_apertium
def test_apertium_translates_there_and_back() -> None:
    both = engine("apertium eng-spa", back_command="apertium spa-eng")
    there = both.translate(["The house is big.", "I see the dog."], "en", "es")
    assert there == ["La casa es grande.", "Veo el perro."]
    assert both.translate([str(text) for text in there], "es", "en") == ["The house is big.", "I see the dog."]


@needs_apertium
def test_apertium_keeps_the_lines_whatever_is_in_them() -> None:
    signs = ["[x] ]y[ ^z$ \\w", "{0} and {1}", "/a/ <b> @c ~d #e +f", "[", "]", "^", "$", "\\", "^unknown/word$", "..."]
    segments = [sign for sign in signs for _ in range(3)]
    found = run("apertium -u eng-spa", segments)
    assert len(found) == len(segments)
    assert all(isinstance(text, str) for text in found)
    assert "{0}" in str(found[3])


@needs_apertium
def test_apertium_does_not_mix_lines_and_leaves_no_marks() -> None:
    together = ["I saw the red", "car"]
    assert run("apertium eng-spa", together) == [run("apertium eng-spa", [line])[0] for line in together]
    assert "*" not in str(run("apertium eng-spa", ["The zorglub sleeps."])[0])


@pytest.mark.bad_input("translate")
@needs_apertium
def test_apertium_names_a_direction_it_does_not_have() -> None:
    with pytest.raises(EngineError, match=r"ended with exit code 1; .*Mode eng-xyz does not exist"):
        run("apertium eng-xyz", ["a"])
