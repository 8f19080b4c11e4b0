from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hottune.engine import control
from hottune.placement import LIVE_FIELDS, Placement

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
    "working": {"vram_bytes": 917504, "host_bytes": 8392704},
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
    assert (stats.hot.working_vram_bytes, stats.hot.working_host_bytes) == (917504, 8392704)
    assert stats.hot.time_us["cold"] == 79.3
    assert stats.virtual_peak_mib == 3


def test_a_virtual_gpu_without_a_cache_has_a_peak_but_no_counters() -> None:
    stats = control.parse(json.dumps({"version": 1, "enabled": False, "vgpu": {"peak_bytes": 1024**2}}))
    assert stats.hot is None
    assert stats.virtual_peak_mib == 1


def test_the_counters_of_a_complete_device_are_all_read() -> None:
    layer = {"name": "blk.0.ffn_up_exps.weight", "hits": 300, "misses": 100, "evictions": 4}
    times = {"submit": 1.0, "cold": 2.0, "wait": 3.0, "swap": 4.0}
    layer |= {"slots": 7, "uploads": 38, "uploaded_bytes": 4202496, "time_us": times}
    added = {
        "policy": "lru",
        "hysteresis": 1,
        "shared_budget": True,
        "budget_mib": 3.4,
        "upload_mib": 128,
        "evictions": 4,
        "multi": {"blocks": 10, "tokens": 40, "hits": 90, "misses": 30},
        "devices": [{"name": "VGPU0", "layers": 2, "slots": 12, "cache_bytes": 3538944}],
        "layer": [layer, layer | {"slots": 5}],
        "slots": 6.4,
        "trace": {"on": False, "tokens": 0, "bytes": 0},
        "vgpus": [STATS["vgpu"]],
    }
    hot = control.parse(json.dumps(STATS | added)).hot
    assert hot is not None
    assert hot.multi_hit_rate == 0.75
    assert (hot.multi_blocks, hot.multi_tokens) == (10, 40)
    assert (hot.slots, hot.layer_slots, hot.evictions) == (6, [7, 5], 4)
    assert (hot.policy, hot.shared_budget) == ("lru", True)
    assert [(one.name, one.slots) for one in hot.devices] == [("VGPU0", 12)]


def test_an_older_device_has_none_of_the_later_counters() -> None:
    hot = control.parse(json.dumps(STATS)).hot
    assert hot is not None
    assert hot.multi_hit_rate is None
    assert (hot.policy, hot.layer_slots, hot.devices) == ("", [], [])


def test_fewer_places_than_layers_are_still_places() -> None:
    few = STATS | {"slots": 0, "layer": [{"hits": 1, "misses": 1, "slots": n} for n in (1, 0, 0, 0)]}
    none = STATS | {"slots": 0, "layer": [{"hits": 1, "misses": 1, "slots": 0}]}
    slots = [stats.hot.slots for one in (few, none) if (stats := control.parse(json.dumps(one))).hot]
    assert slots == [1, 0]


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
        json.dumps(STATS | {"multi": 3}),
        json.dumps(STATS | {"devices": [{"name": "CUDA0"}]}),
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
            heard.append(connection.recv(1000))
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


def test_a_glance_has_what_moves(tmp_path: Path) -> None:
    path = tmp_path / "hot.sock"
    answers = {
        b'{"version":1,"enabled":true,"hits":3,"misses":1}': control.Glance((3, 1), None),
        b'{"version":1,"enabled":false,"vgpu":{"used_bytes":2097152}}': control.Glance(None, 2.0),
        b'{"version":1,"enabled":true,"hits":3}': None,
        b'{"version":1,"enabled":false,"vgpu":[]}': control.Glance(None, None),
        b'{"version":1,"enabled":false,"vgpu":3}': None,
        b'{"error":"no"}': None,
    }
    for answer, wanted in answers.items():
        thread, asked = serve_once(path, answer + b"\n")
        assert control.glance(path) == wanted
        thread.join()
        assert json.loads(asked[0]) == {"cmd": "stats"}
        path.unlink()
    assert control.glance(path) is None


def test_a_device_that_hangs_is_given_up_on(tmp_path: Path) -> None:
    thread, _ = serve_once(tmp_path / "hot.sock", None)
    assert control.ask(tmp_path / "hot.sock", timeout_s=0.1) is None
    thread.join(5)


def hot(**changes: Any) -> Placement:
    return Placement(**({"n_cpu_moe": 2, "hot_k": 8, "threads": 1} | changes))


def test_only_what_changes_is_set_and_by_the_devices_own_names(tmp_path: Path) -> None:
    thread, heard = serve_once(tmp_path / "hot.sock", json.dumps(STATS).encode() + b"\n")
    new = hot(hot_k=6, policy="lru", shared_budget=True, prefill_bypass=8, rebalance_interval=20)
    control.set_live(tmp_path / "hot.sock", hot(), new)
    thread.join(5)
    assert json.loads(heard[0]) == {
        "cmd": "set",
        "k": 6,
        "interval": 20,
        "policy": "lru",
        "shared_budget": True,
        "bypass": 8,
    }


def test_every_live_field_has_its_name_in_the_protocol() -> None:
    assert set(control.LIVE_KEYS) == LIVE_FIELDS


def test_without_a_change_the_device_is_not_asked(tmp_path: Path) -> None:
    control.set_live(tmp_path / "nobody.sock", hot(), hot())


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (control.reset, {"cmd": "reset"}),
        (
            lambda at: control.save_profile(at, Path("/p/x.json")),
            {"cmd": "save_profile", "path": "/p/x.json"},
        ),
        (lambda at: control.start_trace(at, Path("/p/t")), {"cmd": "start_trace", "path": "/p/t"}),
        (
            lambda at: control.start_trace(at, Path("/p/t"), weights=True),
            {"cmd": "start_trace", "path": "/p/t", "weights": True},
        ),
        (control.stop_trace, {"cmd": "stop_trace"}),
    ],
)
def test_requests_are_the_protocols_and_anything_but_ok_is_an_error(
    tmp_path: Path, call: Callable[[Path], None], line: dict[str, object]
) -> None:
    thread, heard = serve_once(tmp_path / "ok.sock", b'{"ok":true}\n')
    call(tmp_path / "ok.sock")
    thread.join(5)
    assert json.loads(heard[0]) == line
    serve_once(tmp_path / "other.sock", json.dumps(STATS).encode() + b"\n")
    with pytest.raises(control.ControlError, match="answered"):
        call(tmp_path / "other.sock")


def test_the_traces_tokens_are_read_from_the_counters(tmp_path: Path) -> None:
    serve_once(tmp_path / "hot.sock", b'{"trace":{"on":true,"tokens":12,"bytes":99}}\n')
    assert control.traced_tokens(tmp_path / "hot.sock") == 12
    serve_once(tmp_path / "old.sock", b'{"trace":null}\n')
    with pytest.raises(control.ControlError, match="lack the trace's tokens"):
        control.traced_tokens(tmp_path / "old.sock")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'{"error":"interval: 1..1000000"}\n', r"refused .*interval: 1\.\.1000000"),
        (b"nonsense\n", "not JSON"),
        (b"[]\n", "no object"),
        (b"", "not JSON"),
    ],
)
def test_an_error_of_the_device_is_told(tmp_path: Path, answer: bytes, said: str) -> None:
    serve_once(tmp_path / "hot.sock", answer)
    with pytest.raises(control.ControlError, match=said):
        control.request(tmp_path / "hot.sock", {"cmd": "set", "interval": 0})


def test_a_device_that_is_gone_or_hangs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(control.ControlError, match="does not answer"):
        control.reset(tmp_path / "no.sock")
    serve_once(tmp_path / "hot.sock", None)
    with pytest.raises(control.ControlError, match="does not answer"):
        control.request(tmp_path / "hot.sock", {"cmd": "reset"}, timeout_s=0.1)
