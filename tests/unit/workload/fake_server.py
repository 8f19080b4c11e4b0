"""A stand-in for llama-server that tokenizes words and streams whatever a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer:
    """Answers /tokenize and /completion on a free loopback port; change its fields to make it misbehave."""

    def __init__(self) -> None:
        self.tokenize_status = 200
        self.tokenize_answer: Any = None  # None: one token a word, after a beginning-of-sequence 1
        self.completion_status = 200
        self.stop_after: int | None = None  # tokens after which the connection is cut
        self.silent_after: int | None = None  # tokens after which nothing more comes
        self.ping_forever = False  # comments instead of tokens
        self.error_after: int | None = None  # tokens after which an error event comes
        self.unsent: set[int] = set()  # tokens without an event of their own, like half a character
        self.timings: dict[str, Any] = {}  # overrides of the final timings
        self.final: dict[str, Any] = {}  # overrides of the final event
        self.piece = "wörd\u2028 "  # holds a line separator that is none of HTTP's
        self.split_writes = False  # break every event in the middle
        self.token_delay_s = 0.0
        self.begin = [1]  # what stands before any text
        self.fails_alone: int | None = None  # which request is refused, counted from 1
        self.top: list[Any] = [{"id": 7, "logprob": -0.5}, {"id": 3, "logprob": -1.5}]  # expected next
        self.window = 0  # goes on with what it processed only beyond so many tokens
        self.requests: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0  # requests being answered
        self._lock = threading.Lock()
        self._released = threading.Event()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()

    def wait_until_closed(self) -> None:
        self._released.wait(10)

    def next_token(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """Answer a request for one token and its probabilities; a prompt that goes on costs one step."""
        n_prompt = len(body["prompt"])
        processed = 1 if body["cache_prompt"] and number > 1 and n_prompt > self.window else n_prompt
        return {
            "content": "x",
            "timings": {"prompt_n": processed},
            "completion_probabilities": [{"id": 7, "top_logprobs": self.top}] * body["n_predict"],
        }

    def events(self, body: dict[str, Any]) -> Iterator[str]:
        n_output = body["n_predict"]
        pending = ""
        for index in range(1, n_output + 1):
            if index - 1 == self.stop_after:
                return
            if index - 1 == self.silent_after:
                self.wait_until_closed()
                return
            if index - 1 == self.error_after:
                yield "data: " + json.dumps({"error": {"code": 500, "message": "Compute error."}})
                return
            if self.token_delay_s:
                time.sleep(self.token_delay_s)
            pending += self.piece
            if index not in self.unsent:
                event = {"content": pending, "tokens": [index], "stop": False, "tokens_predicted": index}
                pending = ""
                yield "data: " + json.dumps(event, ensure_ascii=False)
        timings = {"cache_n": 0, "prompt_n": len(body["prompt"]), "prompt_ms": 20.0}
        timings |= {"predicted_n": n_output, "predicted_ms": 40.0} | self.timings
        final = {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "truncated": False}
        final |= {"tokens_predicted": n_output, "timings": timings} | self.final
        yield "data: " + json.dumps(final)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            n_words = len(body["content"].split())
            answer = self.fake.tokenize_answer or {"tokens": [*self.fake.begin, *range(100, 100 + n_words)]}
            self._json(self.fake.tokenize_status, answer)
            return
        with self.fake._lock:
            self.fake.requests.append(body)
            number = len(self.fake.requests)
            self.fake.at_once += 1
            self.fake.most_at_once = max(self.fake.most_at_once, self.fake.at_once)
        try:
            if self.fake.completion_status != 200 or number == self.fake.fails_alone:
                status = self.fake.completion_status if self.fake.completion_status != 200 else 503
                self._json(status, {"error": {"code": status, "message": "out of slots"}})
            elif body.get("stream"):
                self._stream(body)
            else:
                self._json(200, self.fake.next_token(body, number))
        finally:
            with self.fake._lock:
                self.fake.at_once -= 1

    def _json(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while self.fake.ping_forever and not self.fake._released.wait(0.01):
            self._chunk(b":\n\n")
        self.gone = False
        for event in self.fake.events(body):
            data = event.encode() + b"\n\n"
            middle = len(data) // 2 if self.fake.split_writes else len(data)
            for part in (data[:middle], data[middle:]):
                if part:
                    self._chunk(part)
            if self.gone:
                break
        self.close_connection = True
        if self.fake.stop_after is None:
            self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:  # the client gave up, as some tests want it to
            self.fake.ping_forever = False
            self.gone = True
