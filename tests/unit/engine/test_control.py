from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from hottune.engine import control

STATS: dict[str, Any] = {
    "version": 1,
    "device": "HOT",
    "enabled": True,
    "cache_device": "VGPU0",
    "k": 8,
    "slots": 6,
    "interval": 60,
    "bypass": 1,
    "layers": 2,
    "tokens": 34,
    "hits": 300,
    "misses": 100,
    "uploads": 38,
    "uploaded_bytes": 4202496,
    "cache_bytes": 3538944,
    "fallback_nodes": 0,
    "fallback_reasons": [],
    "time_us": {"submit": 130.6, "cold": 79.3, "wait": 7.2, "swap": 2.1},
    "layer": [{"hits": 300, "misses": 100}, {"hits": 0, "misses": 0}],
    "vgpu": {"total_bytes": 104857600, "used_bytes": 0, "peak_bytes": 3 * 1024**2},
}


def test_the_devices_counters_become_a_hit_rate_in_all_and_by_layer() -> None:
    stats = control.parse(json.dumps(STATS))
    assert stats.hot is not None
    assert stats.hot.hit_rate == 0.75
    assert stats.hot.layer_hit_rate == [0.75, 0.0]
    assert (stats.hot.slots, stats.hot.uploads, stats.hot.cache_bytes) == (6, 38, 3538944)
    assert stats.hot.time_us["cold"] == 79.3
    assert stats.virtual_peak_mib == 3


def test_a_virtual_gpu_without_a_cache_has_a_peak_but_no_counters() -> None:
    stats = control.parse(json.dumps({"version": 1, "enabled": False, "vgpu": {"peak_bytes": 1024**2}}))
    assert stats.hot is None
    assert stats.virtual_peak_mib == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        json.dumps(STATS | {"version": 2}),
        json.dumps({"version": 1, "enabled": True}),
        json.dumps(STATS | {"hits": None}),
        json.dumps(STATS | {"layer": [7]}),
        json.dumps(STATS | {"vgpu": {"used_bytes": 1}}),
    ],
)
def test_what_is_not_the_devices_answer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        control.parse(text)


def test_a_missing_or_half_written_file_is_no_counters(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    assert control.read_file(path) is None
    path.write_text(json.dumps(STATS)[:50])
    assert control.read_file(path) is None
    path.write_text(json.dumps(STATS))
    assert control.read_file(path) is not None


def test_a_device_that_is_not_there_does_not_answer(tmp_path: Path) -> None:
    assert control.ask(tmp_path / "no.sock") is None


def serve_once(path: Path, answer: bytes | None) -> tuple[threading.Thread, list[bytes]]:
    """Answer one request on a Unix socket; None never answers."""
    heard: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            heard.append(connection.recv(100))
            if answer is not None:
                connection.sendall(answer)
            else:
                connection.recv(100)  # until the caller gives up

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, heard


def test_a_running_device_is_asked_over_its_socket(tmp_path: Path) -> None:
    thread, heard = serve_once(tmp_path / "hot.sock", json.dumps(STATS).encode() + b"\n")
    stats = control.ask(tmp_path / "hot.sock")
    thread.join(5)
    assert heard == [b'{"cmd":"stats"}\n']
    assert stats is not None
    assert stats.hot is not None
    assert stats.hot.hits == 300


def test_a_device_that_hangs_is_given_up_on(tmp_path: Path) -> None:
    thread, _ = serve_once(tmp_path / "hot.sock", None)
    assert control.ask(tmp_path / "hot.sock", timeout_s=0.1) is None
    thread.join(5)
