"""A stand-in for OpenAI-compatible servers, for their quirks and refusals alone; it computes nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeOpenAi:
    """Answers /v1/models and both completion routes on a free loopback port; change its fields."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = [{"id": "owner/some-model", "owned_by": "tests"}]
        self.routes = {"/v1/completions", "/v1/chat/completions"}
        self.tokenize = False
        self.unknown_fields: set[str] = set()  # refused with 400
        self.refusals: list[tuple[int, dict[str, str], Any]] = []  # next answers: status, headers, body
        self.key: str | None = None
        self.usage = True
        self.usage_with_choices = False  # usage in a chunk that has choices, too
        self.cached = 0
        self.tokens_a_chunk = 1
        self.takes_ignore_eos = True
        self.early = 5  # tokens after which it ends by itself
        self.early_reason = "stop"
        self.prefix = b"data: "
        self.comments = False
        self.role_first = True
        self.reasoning: str | None = None  # field that the first half of an answer comes in
        self.stop_after: int | None = None  # chunks after which the connection is cut
        self.error_after: int | None = None  # chunks after which an error event comes
        self.whole = False  # no stream, one document
        self.token_s = 0.002
        self.prefill_s = 0.01
        self.words_a_token = 1
        self.extra_tokens = 3  # what a template adds to a prompt
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for path, body, _ in self.requests if path.endswith("completions")]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def events(self, body: dict[str, Any], chat: bool) -> Iterator[bytes]:
        n_output = body["max_tokens"]
        if not (self.takes_ignore_eos and body.get("ignore_eos")):
            n_output = min(n_output, self.early)
        if chat and self.role_first:
            yield self.chunk({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        time.sleep(self.prefill_s)
        made = 0
        for index in range(-(-n_output // self.tokens_a_chunk)):
            if index == self.stop_after:
                return
            if index == self.error_after:
                yield self.prefix + json.dumps({"error": {"message": "out of blocks"}}).encode()
                return
            n_here = min(self.tokens_a_chunk, n_output - made)
            made += n_here
            piece = " ".join(f"w{made}" for _ in range(n_here)) + " "
            if not chat:
                yield self.chunk({"text": piece, "finish_reason": None})
            elif self.reasoning and made <= n_output / 2:
                yield self.chunk({"delta": {self.reasoning: piece}, "finish_reason": None})
            else:
                yield self.chunk({"delta": {"content": piece}, "finish_reason": None})
            time.sleep(self.token_s)
        reason = "length" if n_output == body["max_tokens"] else self.early_reason
        last = {"text": "", "finish_reason": reason} if not chat else {"delta": {}, "finish_reason": reason}
        usage = None
        if self.usage and body.get("stream_options"):
            text = body["messages"][0]["content"] if chat else body["prompt"]
            usage = {
                "prompt_tokens": self.count(text) + (self.extra_tokens if chat else 0),
                "completion_tokens": n_output,
                "prompt_tokens_details": {"cached_tokens": self.cached},
            }
        if usage and self.usage_with_choices:
            yield self.chunk(last, usage=usage)
        else:
            yield self.chunk(last)
            if usage:
                yield self.prefix + json.dumps({"choices": [], "usage": usage}).encode()
        yield self.prefix + b"[DONE]"

    def chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        return self.prefix + json.dumps({"choices": [{"index": 0, **choice}], "usage": None} | more).encode()

    def count(self, text: str) -> int:
        return len(text.split()) // self.words_a_token


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOpenAi
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._locked():
            return
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": self.fake.models})
        else:
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.requests.append((self.path, body, dict(self.headers)))
        if self._locked():
            return
        if self.path == "/tokenize" and self.fake.tokenize:
            self._json(200, {"tokens": list(range(self.fake.count(body["prompt"])))})
        elif self.path not in self.fake.routes:
            self._json(404, {"detail": "Not Found"})
        elif self.fake.refusals:
            status, headers, answer = self.fake.refusals.pop(0)
            self._json(status, answer, headers)
        elif wrong := sorted(self.fake.unknown_fields & set(body)):
            self._json(400, {"error": {"message": f"Unrecognized request argument: {wrong[0]}"}})
        elif self.fake.whole:
            self._json(200, {"choices": [{"text": "all at once"}]})
        else:
            self._stream(body)

    def _locked(self) -> bool:
        if self.fake.key and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self._json(401, {"error": {"message": "Invalid API key"}})
            return True
        return False

    def _json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for event in self.fake.events(body, chat="chat" in self.path):
            data = event + b"\n\n"
            if self.fake.comments:
                data = b": keep-alive\n\n" + data
            try:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            except OSError:  # the client gave up, as some tests want it to
                break
        else:
            if self.fake.stop_after is None:
                self.wfile.write(b"0\r\n\r\n")
