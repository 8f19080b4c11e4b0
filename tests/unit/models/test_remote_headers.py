"""Headers read over HTTP: how little is transferred, and every way a server can get in the way."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gguf_builder import write_small_gguf
from hub_server import Hub, running_hub

from hottune.errors import DownloadError, ModelCorruptError, ModelNotFoundError, RepoNotFoundError
from hottune.models import remote_read
from hottune.models.hub_download import RemoteFile
from hottune.models.huggingface import remote_headers
from hottune.models.remote_headers import is_url, url_headers
from hottune.models.shape_of import moe_shape

REPO = "owner/Large-GGUF"
FILE = "Large-Q4_K_M.gguf"
GB = 10**9


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(remote_read, "_PAUSE_S", 0.001)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, small: bytes) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos[REPO] = {FILE: small}
        yield hub


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    write_small_gguf(tmp_path / "small.gguf", tokens=60_000)  # a header of about a MiB
    return (tmp_path / "small.gguf").read_bytes()


def of_20_gb(tmp_path: Path, hub: Hub) -> int:
    """Put a 20 GB file on the hub: a true header of a million tokens, and zeros for weights."""
    path = tmp_path / "large.gguf"
    write_small_gguf(path, tokens=500_000, weights=1)
    header = path.read_bytes()[: 12 << 20]
    hub.repos[REPO] = {FILE: header}
    hub.weights[FILE] = 20 * GB - len(header)
    return 20 * GB


def test_the_header_of_a_20_gb_file_costs_less_than_20_mb(hub: Hub, tmp_path: Path) -> None:
    size = of_20_gb(tmp_path, hub)
    found = remote_headers(REPO)
    assert found.size_bytes == size
    assert moe_shape(found.headers).n_experts == 4
    assert found.headers[0].data_offset > 5_000_000
    assert found.headers[0].data_offset <= found.bytes_read <= hub.bytes_sent
    assert hub.bytes_sent < 20_000_000


def test_a_server_that_ignores_ranges_is_cut_off_early(hub: Hub, tmp_path: Path) -> None:
    of_20_gb(tmp_path, hub)
    hub.resumes = False
    found = url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")
    assert found.size_bytes == 20 * GB
    assert found.headers[0].data_offset <= hub.bytes_sent < 40_000_000  # what the sockets hold comes on top


def test_a_url_through_a_redirect_and_a_query(hub: Hub, small: bytes) -> None:
    found = url_headers(f"{hub.url}/{REPO}/resolve/main/{FILE}?download=true")
    assert (found.name, found.size_bytes) == ("Large-Q4_K_M", len(small))
    assert moe_shape(found.headers).n_layers == 2


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, small: bytes) -> None:
    hub.cut_after, hub.cuts_left = 300_000, 3
    found = url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")
    assert found.headers[0].end == len(small)
    firsts = [ranged.split("-")[0] for ranged in hub.sent("GET", "/cdn/")]
    assert firsts[:4] == ["bytes=0", "bytes=300000", "bytes=600000", "bytes=900000"]


def test_without_ranges_a_broken_connection_begins_again_and_drops_what_was_had(
    hub: Hub, small: bytes
) -> None:
    hub.resumes, hub.cut_after, hub.cuts_left = False, 400_000, 1
    assert url_headers(f"{hub.url}/cdn/{REPO}/{FILE}").headers[0].end == len(small)


def test_a_connection_that_never_brings_a_byte_ends_as_an_error(hub: Hub) -> None:
    hub.cut_after, hub.cuts_left = 0, 1000
    with pytest.raises(DownloadError, match="cannot be read"):
        url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")
    assert len(hub.sent("GET", "/cdn/")) < 10


def test_all_parts_of_a_split_model_are_read(hub: Hub, small: bytes) -> None:
    names = [f"Big model-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    rest = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    hub.repos[REPO] = dict(zip(names, (small, rest, rest), strict=True))
    for found in (
        remote_headers(REPO, "Q8_0"),
        url_headers(f"{hub.url}/{REPO}/resolve/main/{names[1].replace(' ', '%20')}"),
    ):
        assert found.name == "Big model-Q8_0"
        assert [len(header.tensors) > 0 for header in found.headers] == [True, False, False]
        assert found.size_bytes == len(small) + 2 * len(rest)


def test_a_file_that_is_shorter_than_its_header_promises_is_an_error(hub: Hub, small: bytes) -> None:
    hub.repos[REPO] = {FILE: small[:-1]}
    for read in (lambda: remote_headers(REPO), lambda: url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")):
        with pytest.raises(ModelCorruptError, match="on the server, its header promises"):
            read()


@pytest.mark.parametrize("content", [b"", b"<html>", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 5, 5)])
def test_what_is_no_model_is_a_corrupt_one(hub: Hub, content: bytes) -> None:
    hub.repos[REPO] = {FILE: content}
    with pytest.raises(ModelCorruptError):
        url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")


def test_a_text_of_a_petabyte_fetches_nothing_more(hub: Hub) -> None:
    hub.repos[REPO] = {FILE: b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 50)}
    hub.weights[FILE] = 20 * GB
    with pytest.raises(ModelCorruptError, match="a text of"):
        url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")
    assert hub.bytes_sent < 8_000_000


def test_zeros_that_pass_for_a_header_end_soon(hub: Hub) -> None:
    """An array of arrays: in a file of zeros every twelve bytes are an empty one."""
    start = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1 << 24)
    hub.repos[REPO] = {FILE: start}
    hub.weights[FILE] = 1 << 20
    with pytest.raises(ModelCorruptError):
        url_headers(f"{hub.url}/cdn/{REPO}/{FILE}")


@pytest.mark.parametrize("argument", ["http://127.0.0.1:9/m.gguf", "http://[::1/m.gguf"])
def test_addresses_that_lead_nowhere(argument: str) -> None:
    with pytest.raises((DownloadError, ModelNotFoundError)):
        url_headers(argument)


def test_an_address_that_names_no_gguf_file_says_so(hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"does not name a \.gguf file"):
        url_headers(f"{hub.url}/{REPO}")


def test_a_missing_file_is_not_retried(hub: Hub) -> None:
    with pytest.raises(RepoNotFoundError, match="404"):
        url_headers(f"{hub.url}/nowhere/m.gguf")
    assert len(hub.sent("GET", "/nowhere")) == 1


def test_secrets_in_an_address_are_not_shown(hub: Hub) -> None:
    address = hub.url.replace("http://", "http://me:pass@") + "/nowhere/m.gguf?signature=abc"
    with pytest.raises(RepoNotFoundError) as caught:
        url_headers(address)
    assert "nowhere/m.gguf" in caught.value.what
    assert "pass" not in caught.value.what
    assert "abc" not in caught.value.what


@pytest.mark.parametrize(
    ("argument", "answer"), [("HTTPS://x/y.gguf", True), ("owner/repo", False), ("/a/http.gguf", False)]
)
def test_what_a_url_is(argument: str, answer: bool) -> None:
    assert is_url(argument) is answer


class TestStrangeServers:
    """Servers that answer ranges in ways of their own."""

    def read_all(self, url: str, size: int | None = None) -> bytes:
        with remote_read.opened(RemoteFile(f"{url}/m.gguf", size), {}) as reader:
            return b"".join(iter(reader.read, b""))

    def test_an_answer_of_unknown_length(self) -> None:
        def chunked(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            for _ in range(30):
                handler.wfile.write(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
            handler.wfile.write(b"0\r\n\r\n")

        with serving(chunked) as url:
            assert self.read_all(url) == b"x" * 3_000_000

    def test_a_range_that_was_not_asked_for(self) -> None:
        def wrong(handler: BaseHTTPRequestHandler) -> None:
            respond(handler, 206, b"abc", {"Content-Range": "bytes 5-7/10"})

        with serving(wrong) as url, pytest.raises(DownloadError, match="not asked for"):
            self.read_all(url)

    def test_a_file_of_another_size_than_announced(self) -> None:
        def other(handler: BaseHTTPRequestHandler) -> None:
            respond(handler, 206, b"abc", {"Content-Range": "bytes 0-2/3"})

        with serving(other) as url, pytest.raises(DownloadError, match="3 bytes, 9 were announced"):
            self.read_all(url, size=9)

    def test_trouble_that_passes_is_waited_for(self) -> None:
        calls: list[int] = []

        def busy(handler: BaseHTTPRequestHandler) -> None:
            calls.append(1)
            if len(calls) < 3:
                respond(handler, 503, b"busy")
            else:
                respond(handler, 200, b"abc")

        with serving(busy) as url:
            assert self.read_all(url) == b"abc"

    def test_redirects_without_end(self) -> None:
        def around(handler: BaseHTTPRequestHandler) -> None:
            respond(handler, 302, b"", {"Location": "/m.gguf"})

        with serving(around) as url, pytest.raises(DownloadError):
            self.read_all(url)


def respond(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for key, value in (headers or {}).items():
        handler.send_header(key, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answer(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
