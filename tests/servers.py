"""Servers on loopback that speak the OpenAI protocol: one that says what a test tells it, and `transformers serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SOON = {"Retry-After": "0.01"}
KEY = "sk-test-0123456789abcdef"
GUARD = 120.0  # seconds after which a test fails instead of hanging


@dataclass
class Reply:
    """What the server says: a dict or list as JSON, a string as it is; `never` keeps the client waiting."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    never: bool = False


NEVER = Reply("", never=True)
Script = Callable[[str, int], Reply]


def completion(text: Any, finish: str = "stop", usage: Any = (10, 5)) -> Reply:
    body: dict[str, Any] = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reply(body)


def error(status: int, message: str = "no", headers: dict[str, str] = SOON, **more: Any) -> Reply:
    return Reply({"error": {"message": message, **more}}, status, headers)


def upper(segment: str, nth: int) -> Reply:
    return completion(segment.upper())


class Server:
    """Answers each request by `script(segment, how often it was asked before)`, and counts."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.asked = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def segments(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        segment = body["messages"][-1]["content"]
        with self.lock:
            nth = self.segments.count(segment)
            self.bodies.append(body)
            self.headers.append(request.headers)
            self.paths.append(request.path)
            self.times.append(time.monotonic())
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        self.asked.set()
        reply = self.script(segment, nth)
        with self.lock:
            self.busy -= 1
        if reply.never:
            self.ending.wait()
            return
        content = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        kind = "text/html" if isinstance(reply.body, str) else "application/json"
        request.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **reply.headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content.encode())

    def close(self) -> None:
        self.ending.set()
        self.http.shutdown()
        self.http.server_close()


Serve = Callable[[Script], Server]


# Fixtures; conftest.py makes them known.


@pytest.fixture
def no_openai_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither key nor address of the user's own server, and no proxy before ours."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def openai_key(no_openai_environment: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that the environment holds."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that end with the test."""
    servers: list[Server] = []

    def start(script: Script) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def kill_9(serve: Serve, script: Script, answers: int, arguments: list[str], journal: Path, lines: int) -> list[str]:
    """Kill `axolotl-clo` while it waits for a server that falls silent after so many answers.

    Args:
        arguments: of the command, without `--base-url`.
        journal: where it keeps its results, with so many lines once all of the answers are on disk.

    Returns:
        The questions that were answered.
    """
    answered: list[str] = []
    one_at_a_time, silent = threading.Lock(), threading.Event()

    def falls_silent(question: str, nth: int) -> Reply:
        with one_at_a_time:
            if len(answered) < answers:
                answered.append(question)
                return script(question, nth)
        silent.set()
        return NEVER

    command = [sys.executable, "-m", "axolotl_clo.cli", *arguments, "--base-url", serve(falls_silent).url]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        assert silent.wait(GUARD)
        until = time.monotonic() + GUARD
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    return answered


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """The address of `transformers serve` with a model, on a CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    program = Path(sys.executable).with_name("transformers")
    with log.open("w") as output:
        server = subprocess.Popen([program, "serve", folder, *options], stdout=output, stderr=output)
        try:
            _wait_until_healthy(server, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()


def _wait_until_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not come up: {log.read_text()}")
