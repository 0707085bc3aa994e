"""The count of bad inputs counts what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TESTS = """
import pytest

@pytest.mark.bad_input("data")
@pytest.mark.parametrize("row", [1, 2, 3])
def test_rows(row):
    assert row < 3

@pytest.mark.bad_input("config")
def test_option():
    pass

@pytest.mark.bad_input("config")
def test_not_here():
    pytest.skip("no such program")

@pytest.fixture
def leaves_something():
    yield
    raise RuntimeError

@pytest.mark.bad_input("tasks")
def test_something_is_left(leaves_something):
    pass

def test_good_input():
    pass
"""


def count(folder: Path, tests: str, *options: str) -> tuple[int, str]:
    (folder / "test_some.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    bad_input(area)\n")
    command = [sys.executable, "-m", "tests.bad_inputs", "--rootdir", str(folder), "-c", str(folder / "pytest.ini")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [*command, *options, str(folder)]
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def rows(output: str) -> dict[str, list[int]]:
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {name.partition(":")[0]: [int(n) for n in numbers] for name, *numbers in lines[1:]}


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_what_is_tried_and_refused_is_counted_by_area(options: tuple[str, ...], tmp_path: Path) -> None:
    code, output = count(tmp_path, TESTS, *options)
    assert code == 1
    found = rows(output)
    assert found["data"] == [3, 2, 1, 0]
    assert found["config"] == [2, 1, 0, 1]
    assert found["tasks"] == [1, 0, 1, 0]
    assert found["distributed"] == [0, 0, 0, 0]
    assert found["all"] == [6, 3, 2, 1]


def test_collecting_runs_nothing(tmp_path: Path) -> None:
    code, output = count(tmp_path, TESTS, "--collect")
    assert code == 0
    assert rows(output)["all"] == [6]


def test_an_area_that_is_none_is_named(tmp_path: Path) -> None:
    code, output = count(tmp_path, TESTS.replace('"tasks"', '"taks"'))
    assert code != 0
    assert "test_something_is_left" in output
    assert "long runs" in output
