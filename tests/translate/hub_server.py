"""A server on loopback that speaks the part of the hub's protocol that reading a dataset takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Repository:
    """A dataset repository with one file.

    Attributes:
        sha: its newest commit.
        commits: the file's content at each commit.
    """

    def __init__(self, name: str, file: str, content: bytes) -> None:
        self.name, self.file = name, file
        self.commits: dict[str, bytes] = {}
        self.commit_content(content)

    @property
    def content(self) -> bytes:
        return self.commits[self.sha]

    def commit_content(self, content: bytes) -> None:
        """Replace the file's content by a new commit."""
        self.sha = hashlib.sha1(content).hexdigest()
        self.commits[self.sha] = content

    def entry(self, commit: str) -> dict[str, object]:
        """What the hub says of the file."""
        return {"type": "file", "path": self.file, "size": len(self.commits[commit]), "oid": commit}


@contextmanager
def serve(repository: Repository) -> Iterator[str]:
    """Serve it; gives the endpoint for `HF_ENDPOINT`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repository))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(repository: Repository) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            commit = next((commit for commit in repository.commits if f"/{commit}" in path), repository.sha)
            what, _, rest = path.replace(f"/{commit}", "").partition(f"datasets/{repository.name}")
            if what == "/api/" and rest in ("", "/revision"):
                siblings = [{"rfilename": repository.file}]
                self._json({"id": repository.name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
            elif what == "/api/" and rest.startswith("/tree"):
                self._json([repository.entry(commit)] if rest == "/tree" else [])
            elif what == "/" and rest == f"/resolve/{repository.file}":
                self._file(commit)
            else:
                self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def _json(self, value: object) -> None:
            self._send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

        def _file(self, commit: str) -> None:
            content, status = repository.commits[commit], 200
            headers = {"Accept-Ranges": "bytes", "ETag": f'"{commit}"', "X-Repo-Commit": commit}
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last) + 1 if last else len(content), len(content))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
                content, status = content[start:stop], 206
            self._send(content, status, headers)

        def _send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler
