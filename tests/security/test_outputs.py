"""What the commands write and say: kinds of files, secrets, and whose texts.

Everything a user may run on a CPU is run once, on a few rows, with a marked secret in every place where one can stand.
"""

from __future__ import annotations

import json
import os
import pickletools
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_RUN, starter_rows, train, write_rows
from servers import Reply, Server, completion, error

SECRETS = {
    "OPENAI_API_KEY": "sk-proj-MARKED-openai-0123456789",
    "HF_TOKEN": "hf_MARKEDhuggingface0123456789abc",
    "WANDB_API_KEY": "MARKEDwandb0123456789abcdef0123456789abcd",
    "DEEPL_AUTH_KEY": "MARKED-deepl-0123456789:fx",
}
PASSWORD, QUERY, CONFIG = "MARKED-password-0123", "MARKED-query-0123456789", "MARKED-config-0123456789"
MARK = "MARKED"
# The Trainer's own state of a checkpoint, which it reads back with `weights_only=True`.
TRAINERS_OWN = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}
HELD_OUT = starter_rows()[100:104]


@dataclass
class Commands:
    """The folder all commands wrote to, what each said, and what a server was sent."""

    folder: Path
    said: dict[str, str]
    server: Server


@contextmanager
def recorded(file: Path) -> Iterator[None]:
    """All that is written to stdout and stderr, by whatever library, in a file."""
    sys.stdout.flush(), sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    streams = sys.stdout, sys.stderr
    with file.open("w", encoding="utf-8") as sink:
        for stream in (1, 2):
            os.dup2(sink.fileno(), stream)
        sys.stdout = sys.stderr = sink
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)


def command(*arguments: Any) -> int:
    """Run `axolotl-clo` as its entry point does; returns its exit code."""
    from axolotl_clo.cli import main

    before, sys.argv = sys.argv, ["axolotl-clo", *map(str, arguments)]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def answer(question: str, nth: int) -> Reply:
    if "answer_1" in question:
        better = {"language_1": "de", "language_2": "de", "reason": "So.", "better": 1}
        return completion(json.dumps(better))
    return completion(question[::-1])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("ran")
    logs = tmp_path_factory.mktemp("logs")
    patch = pytest.MonkeyPatch()
    for name, value in SECRETS.items():
        patch.setenv(name, value)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv("AXOLOTL_DATASET_NUM_PROC", "0")  # else a process is started to save eight rows
    server = Server(answer)
    angry = Server(lambda question, nth: error(401, " ".join((*SECRETS.values(), PASSWORD, QUERY))))
    said: dict[str, str] = {}

    def run(title: str, call: Callable[[], Any]) -> None:
        with recorded(logs / "log"):
            found = call()
        said[title] = (logs / "log").read_text(encoding="utf-8")
        assert found in (None, int(title.startswith("refused"))), said[title]

    def address(of: Server) -> str:
        return f"{of.url.replace('//', f'//user:{PASSWORD}@')}?api_key={QUERY}"

    rows = [{"prompt": row["prompt"]["en"], "response": row["response"]["en"]} for row in starter_rows()[:6]]
    source, own = folder / "in" / "rows.jsonl", f"sh -c cat --auth-key {SECRETS['DEEPL_AUTH_KEY']}"
    source.parent.mkdir()
    write_rows(source, rows)
    options = ["--to", "de", "--no-filter", "--engine"]
    asked = ["--base-url", address(server), "--model", "m"]
    try:
        by_command = ["translate", source, *options, "command", "--command", own, "--out", folder / "by-command"]
        run("translate", lambda: command(*by_command))
        run("translate once more", lambda: command(*by_command))
        run("dry run", lambda: command(*by_command[:-2], "--dry-run"))
        run(
            "translate by a server",
            lambda: command("translate", source, *options, "openai", *asked, "--out", folder / "b"),
        )
        run("inspect", lambda: command("inspect", folder / "by-command"))
        config = {
            "base_model": str(tiny_llama),
            "hub_token": CONFIG,
            "plugins": ["axolotl_clo.CLOPlugin"],
            "rl": "clo",
            "clo": {"target_lang": "de"},
            "datasets": [
                {
                    "path": str(write_rows(source.with_name("a.jsonl"), starter_rows()[:8])),
                    "type": "axolotl_clo.cross_lingual",
                }
            ],
            "test_datasets": [
                {
                    "path": str(write_rows(source.with_name("b.jsonl"), HELD_OUT)),
                    "type": "axolotl_clo.cross_lingual",
                    "split": "train",
                }
            ],
            "dataset_prepared_path": str(folder / "prepared"),
            "output_dir": str(folder / "trained"),
            **SMALL_RUN,
            "save_steps": 1,
            "eval_steps": 1,
        }
        file = source.with_name("config.yml")
        file.write_text(json.dumps(config, indent=1))
        run("train", lambda: train(file) and None)
        generate = ["generate", "starter:de", "--top", "2", "--max-new-tokens", "8"]
        run("generate", lambda: command(*generate, "--model", folder / "trained", "--out", folder / "answers/a.jsonl"))
        run("generate by a server", lambda: command(*generate, *asked, "--out", folder / "answers/b.jsonl"))
        judge = ["judge", folder / "answers/a.jsonl", folder / "answers/b.jsonl", *asked]
        run("judge", lambda: command(*judge, "--out", folder / "judged", "--yes"))
        shutil.copy(file, folder / "trained" / "config.yml")
        run(
            "report",
            lambda: command(
                "report", folder / "trained", folder / "answers", folder / "judged", "--out", folder / "report"
            ),
        )
        refused = ["--base-url", address(angry), "--model", "m", "--retries", "0"]
        run("refused: key", lambda: command(*generate, *refused, "--out", folder / "c.jsonl"))
        run("refused: judge", lambda: command(*judge[:3], *refused, "--out", folder / "d", "--yes"))
        run(
            "refused: engine", lambda: command("translate", source, *options, "openai", *refused, "--out", folder / "e")
        )
        fails = f"sh -c 'echo {SECRETS['DEEPL_AUTH_KEY']} >&2; exit 3' --auth-key {PASSWORD}"
        run(
            "refused: command",
            lambda: command("translate", source, *options, "command", "--command", fails, "--out", folder / "f"),
        )
        by_key = ["--api-key-env", SECRETS["OPENAI_API_KEY"]]
        run("refused: key as a name", lambda: command(*generate, *asked, *by_key, "--out", folder / "g.jsonl"))
        yield Commands(folder, said, server)
    finally:
        server.close()
        angry.close()
        patch.undo()


def written(ran: Commands) -> list[Path]:
    inputs = {ran.folder / "in", ran.folder / "trained" / "config.yml"}
    return [f for f in sorted(ran.folder.rglob("*")) if f.is_file() and not inputs & {f, *f.parents}]


def test_the_secrets_were_in_use(ran: Commands) -> None:
    """Else their absence would prove nothing."""
    assert all(QUERY in path for path in ran.server.paths)
    assert all(header["Authorization"].startswith("Basic ") for header in ran.server.headers)
    assert CONFIG in (ran.folder / "in" / "config.yml").read_text()


def test_no_file_holds_a_secret(ran: Commands) -> None:
    files = written(ran)
    assert len(files) > 30
    assert [str(file) for file in files if MARK.encode() in file.read_bytes()] == []


def test_nothing_that_is_said_holds_a_secret(ran: Commands) -> None:
    assert {title for title, text in ran.said.items() if MARK in text} == set()
    for title in ran.said:
        if title.startswith("refused"):
            assert "error:" in ran.said[title]


def test_the_card_and_the_page_show_the_config_without_its_secret(ran: Commands) -> None:
    for file in (ran.folder / "trained" / "README.md", ran.folder / "report" / "report.html"):
        text = file.read_text(encoding="utf-8")
        assert "hub_token" in text
        assert "(hidden)" in text


def test_training_says_nothing_of_its_rows_unless_asked(ran: Commands) -> None:
    rows = [*starter_rows()[:8], *HELD_OUT]
    texts = [row[side][lang] for row in rows for side in ("prompt", "response") for lang in ("en", "de")]
    flat = " ".join(ran.said["train"].split())
    assert "clo/fidelity_target" in flat
    assert [text for text in texts if text[:30] in flat] == []


# ---- kinds of files ----


def kind(content: bytes) -> str:
    """What a file is, by its content."""
    if content[:4] == content[-4:] == b"PAR1":
        return "parquet"
    if content[:6] == b"ARROW1" or content[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    size = int.from_bytes(content[:8], "little")  # of the header
    if content[8:10] == b'{"' and size < len(content):
        header = json.loads(content[8 : 8 + size])
        assert all("dtype" in value for name, value in header.items() if name != "__metadata__")
        return "safetensors"
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return "unknown"
    if "\0" in text or _is_pickle(content):
        return "unknown"
    return "text"


def _is_pickle(content: bytes) -> bool:
    try:
        return bool(list(pickletools.genops(content)))  # to the end, which each pickle has
    except Exception:
        return False


def test_all_that_is_written_is_safetensors_parquet_arrow_or_text(ran: Commands) -> None:
    files = [file for file in written(ran) if file.name not in TRAINERS_OWN]
    kinds = {str(file.relative_to(ran.folder)): kind(file.read_bytes()) for file in files}
    assert {name: found for name, found in kinds.items() if found == "unknown"} == {}
    assert not [file for file in files if zipfile.is_zipfile(file)]
    endings = {(Path(name).suffix, found) for name, found in kinds.items()}
    assert {(".safetensors", "safetensors"), (".parquet", "parquet"), (".jsonl", "text"), (".html", "text")} <= endings
    assert {Path(name).suffix for name, found in kinds.items() if found == "arrow"} <= {".arrow"}


def test_the_trainers_own_state_is_all_that_is_pickled(ran: Commands) -> None:
    import torch

    pickled = [f for f in written(ran) if f.name in TRAINERS_OWN]
    assert {f.name for f in pickled} == TRAINERS_OWN
    for file in pickled:
        if file.name in ("optimizer.pt", "scheduler.pt"):
            torch.load(file, weights_only=True)


def test_the_kinds_are_told_apart(tmp_path: Path) -> None:
    import pickle

    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    assert kind((tmp_path / "a.pt").read_bytes()) == "unknown"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert kind(pickle.dumps({"a": [1, 2.5, "x"]}, protocol)) == "unknown"
    assert kind(b'{"a": 1}\n') == kind("Grüße.\n".encode()) == kind(b"") == "text"
