"""A run that is killed, interrupted, filled up or disturbed loses nothing and ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from translate.hub_server import Repository, serve

from axolotl_clo.datasets import starter_folder
from axolotl_clo.translate import translate
from axolotl_clo.translate.store import OutputError, Store

ROWS, PART_ROWS, KILLS = 120, 3, 20
# A real translator where there is one, else a real line-in line-out process.
COMMAND = "apertium -u eng-spa" if shutil.which("apertium") else "sed s/the/el/g"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    rows = [json.loads(line) for line in (starter_folder() / "train.jsonl").open(encoding="utf-8")]
    file = tmp_path_factory.mktemp("source") / "rows.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for i in range(ROWS):
            row = rows[i % len(rows)]
            stream.write(
                json.dumps({"prompt": row["prompt"]["en"], "response": f"{row['response']['en']} ({i})"}) + "\n"
            )
    return file


def _arguments(source: Path, out: Path, *more: str) -> list[str]:
    given = [
        "--to",
        "es",
        "--engine",
        "command",
        "--command",
        COMMAND,
        "--part-rows",
        str(PART_ROWS),
        "--out",
        str(out),
    ]
    return [sys.executable, "-m", "axolotl_clo.cli", "translate", str(source), *given, *more]


def _start(source: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _arguments(source, out, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _contents(out: Path) -> dict[str, bytes]:
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name != "lock"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """Every file of a run that nobody disturbed, and its seconds."""
    out, start = tmp_path_factory.mktemp("undisturbed") / "out", time.monotonic()
    subprocess.run(_arguments(source, out), check=True, capture_output=True)
    return _contents(out), time.monotonic() - start


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_twenty_random_moments(source, undisturbed, tmp_path, workers):
    expected, seconds = undisturbed
    parts, ending = tmp_path / "out" / ".work" / "parts", tmp_path / "out" / ".work" / "final"
    chance, killed, kills = random.Random(workers), 0, KILLS if workers == 1 else 5
    for kill in range(kills):
        # Moments are counted in parts first: in seconds alone, a run on a machine that became faster is at its end.
        wanted = len(list(parts.glob("*.parquet"))) + chance.randint(0, 2)
        run = _start(source, tmp_path / "out", "--workers", str(workers))
        while run.poll() is None and not (
            ending.is_dir() if kill >= kills - 2 else len(list(parts.glob("*.parquet"))) >= wanted
        ):
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3) * seconds / kills)
        killed += run.poll() is None
        with suppress(ProcessLookupError):  # it came to its end just now
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
    assert killed >= kills - 2  # the last two may come to their end; else the test has shown nothing
    subprocess.run(_arguments(source, tmp_path / "out", "--workers", str(workers)), check=True, capture_output=True)
    assert _contents(tmp_path / "out") == expected


@pytest.mark.bad_input("long runs")
@pytest.mark.process
def test_a_worker_that_is_killed_ends_the_run_with_a_message_and_nothing_lost(source, undisturbed, tmp_path):
    run = _start(source, tmp_path / "out", "--workers", "2")
    parts = tmp_path / "out" / ".work" / "parts"
    while run.poll() is None and not (parts.is_dir() and list(parts.glob("*.parquet"))):
        time.sleep(0.01)
    children = subprocess.run(
        ["pgrep", "-P", str(run.pid), "-f", "spawn_main"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "a worker process died" in said
    subprocess.run(_arguments(source, tmp_path / "out"), check=True, capture_output=True)
    assert _contents(tmp_path / "out") == undisturbed[0]


@pytest.mark.process
def test_workers_end_with_a_killed_parent(source, tmp_path):
    run = _start(source, tmp_path / "out", "--workers", "2")
    parts = tmp_path / "out" / ".work" / "parts"
    while run.poll() is None and not (parts.is_dir() and list(parts.glob("*.parquet"))):
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    for _ in range(200):
        if subprocess.run(["pgrep", "-g", str(run.pid)], capture_output=True, check=False).returncode == 1:
            return
        time.sleep(0.05)
    raise AssertionError("workers go on without their parent")


@pytest.mark.bad_input("long runs")
@pytest.mark.process
def test_ctrl_c_ends_cleanly_and_the_run_goes_on(source, undisturbed, tmp_path):
    run = _start(source, tmp_path / "out")
    parts = tmp_path / "out" / ".work" / "parts"
    while run.poll() is None and not (parts.is_dir() and list(parts.glob("*.parquet"))):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Finished parts are safe" in said
    assert "Traceback" not in said
    subprocess.run(_arguments(source, tmp_path / "out"), check=True, capture_output=True)
    assert _contents(tmp_path / "out") == undisturbed[0]


@pytest.mark.bad_input("long runs")
@pytest.mark.process
def test_a_full_disk_stops_with_a_message_and_the_run_goes_on(source, undisturbed, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system (unshare -rm)")
    small = tmp_path / "small"
    small.mkdir()
    kept = tmp_path / "kept"
    script = (
        f'mount -t tmpfs -o size=160k none {small} && {{ "$@"; code=$?; '
        f"find {small} -name '*.tmp' | grep . && code=99; cp -a {small}/out {kept}; exit $code; }}"
    )
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *_arguments(source, small / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "no room left to write" in run.stderr
    assert "Traceback" not in run.stderr
    assert list((kept / ".work" / "parts").glob("*.parquet"))
    subprocess.run(_arguments(source, kept), check=True, capture_output=True)
    assert _contents(kept) == undisturbed[0]


def _call(source: Path, out: Path, **options: object) -> dict[str, object]:
    return translate(str(source), to="es", engine="command", out=out, **{"command": "cat", "top": 10, **options})


@pytest.mark.bad_input("long runs")
def test_a_second_process_on_the_same_output_is_refused(source, tmp_path):
    with Store(tmp_path / "out").locked(), pytest.raises(OutputError, match="another process is writing to"):
        _call(source, tmp_path / "out")


@pytest.mark.bad_input("long runs")
def test_a_source_that_changed_is_refused(source, tmp_path):
    mine = tmp_path / "rows.jsonl"
    mine.write_bytes(source.read_bytes())
    _call(mine, tmp_path / "out")
    with mine.open("a") as stream:
        stream.write('{"prompt": "New?", "response": "Yes."}\n')
    with pytest.raises(OutputError, match=r"started with other input \(source fingerprint"):
        _call(mine, tmp_path / "out")


@pytest.mark.bad_input("long runs")
def test_a_hub_dataset_that_changed_is_refused_and_goes_on_at_its_old_commit(source, tmp_path):
    hub = Repository("somebody/english", "train.jsonl", source.read_bytes())
    before, out = hub.sha, tmp_path / "out"
    command = [*_arguments(Path(hub.name), out), "--command", "cat", "--json"]
    with serve(hub) as endpoint:
        here = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}

        def call(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *more], env={**os.environ, **here}, cwd=tmp_path, capture_output=True, text=True
            )

        first = call()
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["source"]["fingerprint"] == before
        assert json.loads(first.stdout)["counts"]["source_rows"] == ROWS
        files = _contents(out)
        hub.commit_content(hub.content + b'{"prompt": "New?", "response": "Yes."}\n')
        second = call()
        assert second.returncode == 1
        assert f'source fingerprint: "{before}" then, "{hub.sha}" now' in second.stderr
        assert "which --revision takes" in second.stderr
        assert _contents(out) == files
        third = call("--revision", before)
        assert third.returncode == 0, third.stderr
        assert json.loads(third.stdout)["counts"] == json.loads(first.stdout)["counts"]


@pytest.mark.bad_input("long runs")
def test_other_options_are_refused_by_name(source, tmp_path):
    _call(source, tmp_path / "out")
    with pytest.raises(OutputError, match=r'--command: "cat" then, "tac" now'):
        _call(source, tmp_path / "out", command="tac")


@pytest.mark.bad_input("long runs")
def test_a_folder_with_other_files_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"--out: .*holds other files"):
        _call(source, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.bad_input("long runs")
def test_a_broken_part_is_named(source, tmp_path):
    _call(source, tmp_path / "out", part_rows=5)
    part = tmp_path / "out" / ".work" / "parts" / "part-000001.parquet"
    before = _contents(tmp_path / "out")
    part.write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"part-000001\.parquet: cannot be read .*delete it"):
        _call(source, tmp_path / "out", part_rows=5)
    part.unlink()
    _call(source, tmp_path / "out", part_rows=5)
    assert _contents(tmp_path / "out") == before
