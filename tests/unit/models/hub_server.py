"""A small Hugging Face Hub on 127.0.0.1: as much of its HTTP interface as hottune asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub holds, how it misbehaves, and what it was asked."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    cut_after: int | None = None  # bytes of a file sent before the connection breaks
    cuts_left: int = 0
    resumes: bool = True  # answers Range with 206
    lies_about_checksums: bool = False
    fails_with: int | None = None  # HTTP status of every API answer
    weights: dict[str, int] = field(default_factory=dict)  # file -> zeros after its content: a sparse file
    bytes_sent: int = 0  # of files, as far as the other side took them
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range

    def sent(self, method: str, part: str) -> list[str]:
        """Return the Range headers ("" for none) of all requests for paths with `part` in them."""
        return [ranged for verb, path, ranged in list(self.requests) if verb == method and part in path]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # who reads only a header hangs up in the middle
            super().handle()

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(("GET", url.path, self.headers.get("Range", "")))
        if url.path.startswith("/api/"):
            self.answer_api(url.path, parse_qs(url.query))
        elif "/resolve/" in url.path:
            self.redirect(url.path)
        elif url.path.startswith("/cdn/"):
            self.send_file(url.path.removeprefix("/cdn/"))
        else:
            self.answer(404, {})

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def allowed(self, repo: str) -> bool:
        if repo not in self.hub.repos:
            self.answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        elif repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer(401, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        else:
            return True
        return False

    def answer_api(self, path: str, query: dict[str, list[str]]) -> None:
        if self.hub.fails_with:
            self.answer(self.hub.fails_with, {"error": "trouble"})
        elif path == "/api/models":
            words = query.get("search", [""])[0].lower()
            found = [name for name in self.hub.repos if words in name.lower()]
            limit = int(query.get("limit", ["100"])[0])
            self.answer(200, [self.summary(name) for name in found][:limit])
        else:
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if self.allowed(repo):
                if revision not in ("", "main", COMMIT):
                    self.answer(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
                    return
                siblings = [self.sibling(*item) for item in self.hub.repos[repo].items()]
                self.answer(200, self.summary(repo) | {"sha": COMMIT, "siblings": siblings})

    def summary(self, repo: str) -> dict[str, object]:
        updated = "2026-03-04T05:06:07.000Z"
        return {
            "id": repo,
            "modelId": repo,
            "downloads": 1234,
            "likes": 5,
            "lastModified": updated,
            "tags": [],
        }

    def sibling(self, name: str, content: bytes) -> dict[str, object]:
        sha256 = hashlib.sha256(b"other" if self.hub.lies_about_checksums else content).hexdigest()
        size = len(content) + self.hub.weights.get(name, 0)
        facts: dict[str, object] = {"rfilename": name, "size": size, "blobId": "b" * 40}
        if name.endswith(".gguf"):
            facts["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        return facts

    def redirect(self, path: str) -> None:
        """Send to the file store, as the hub does for large files."""
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        if not self.allowed(repo):
            return
        _, _, name = rest.partition("/")
        self.answer(302, {}, {"Location": f"{self.hub.url}/cdn/{repo}/{name}", "X-Repo-Commit": COMMIT})

    def send_file(self, path: str) -> None:
        owner, name, file = unquote(path).split("/", 2)
        content = self.hub.repos[f"{owner}/{name}"][file]
        size = len(content) + self.hub.weights.get(file, 0)
        ranged = self.headers.get("Range", "") if self.hub.resumes else ""
        first, _, last = ranged.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(size, int(last) + 1 if last else size)
        if start >= size:
            self.answer(416, {})
            return
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(end - start))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if self.hub.cut_after is not None and self.hub.cuts_left > 0:
            self.hub.cuts_left -= 1
            end = min(end, start + self.hub.cut_after)
            self.close_connection = True
        self.send_part(content, start, end)

    def send_part(self, content: bytes, start: int, end: int) -> None:
        """Send a file's bytes from start to end; what lies beyond its content is zeros."""
        while start < end:
            piece = content[start : min(end, start + 65536)] or bytes(min(end - start, 65536))
            self.wfile.write(piece)
            self.hub.bytes_sent += len(piece)
            start += len(piece)
