"""The hot-expert device while it runs and after: its counters, and requests over its control socket.

The protocol is one line of JSON each way; `vendor/llama.cpp/ggml-hot/src/control.h` describes it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hottune.outcomes import CacheDevice, HotStats
from hottune.placement import Placement
from hottune.units import mib

#: How a "set" request names the fields of a placement that the device changes while it runs.
LIVE_KEYS = {
    "hot_k": "k",
    "rebalance_interval": "interval",
    "policy": "policy",
    "shared_budget": "shared_budget",
    "upload_mib": "upload_mib",
    "prefill_bypass": "bypass",
}
#: A change waits for the batch that is being computed, and new slots are allocated and zeroed.
TIMEOUT_S = 30.0


class ControlError(Exception):
    """The device refused a request, or did not answer it as the protocol says."""


@dataclass(frozen=True)
class DeviceStats:
    """What the device library counted: the cache's part, the virtual GPU's part, either may be absent."""

    hot: HotStats | None
    virtual_peak_mib: float | None
    #: Tokens that went through the cache.
    tokens: int = 0


@dataclass(frozen=True)
class Glance:
    """What moves while a server is driven."""

    #: Hits and misses of the cache so far; None where there is no cache.
    counts: tuple[int, int] | None
    #: VRAM that is in use on a virtual GPU, MiB; None on a real one.
    virtual_mib: float | None


def read_file(path: Path) -> DeviceStats | None:
    """Return the counters the device left behind, or None when it wrote none (not loaded, or killed)."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def ask(socket_path: Path, *, timeout_s: float = 5.0) -> DeviceStats | None:
    """Ask a running device for its counters, or return None when it does not answer."""
    try:
        return _parse(request(socket_path, {"cmd": "stats"}, timeout_s=timeout_s))
    except (ControlError, ValueError):
        return None


def glance(socket_path: Path, *, timeout_s: float = 5.0) -> Glance | None:
    """Ask a running device for the little that a timeline needs; None when it does not answer."""
    try:
        answer = request(socket_path, {"cmd": "stats"}, timeout_s=timeout_s)
        virtual = answer.get("vgpu")
        return Glance(
            counts=(int(answer["hits"]), int(answer["misses"])) if answer.get("enabled") else None,
            virtual_mib=mib(float(virtual["used_bytes"])) if virtual else None,
        )
    except (ControlError, KeyError, TypeError, ValueError):
        return None


def request(socket_path: Path, what: Mapping[str, object], *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Send one request to a running device and return its answer.

    Raises:
        ControlError: it does not answer in time, answers with an error, or with something that is no object.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.sendall(json.dumps(what, separators=(",", ":")).encode() + b"\n")
            with connection.makefile("r", encoding="utf-8") as lines:
                line = lines.readline()
    except (OSError, ValueError) as error:
        raise ControlError(f"the device does not answer: {error or type(error).__name__}") from error
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ControlError(f"the device's answer is not JSON: {line[:80]!r}") from error
    if not isinstance(answer, dict):
        raise ControlError(f"the device's answer is no object: {line[:80]!r}")
    if "error" in answer:
        raise ControlError(f"the device refused {json.dumps(what)}: {answer['error']}")
    return answer


def set_live(socket_path: Path, old: Placement, new: Placement) -> None:
    """Change what differs between two placements in a running device; no restart may be needed for it.

    Raises:
        ControlError: as `request`.
    """
    changed = {
        key: getattr(new, field)
        for field, key in LIVE_KEYS.items()
        if getattr(old, field) != getattr(new, field)
    }
    if changed:
        request(socket_path, {"cmd": "set"} | changed)


def reset(socket_path: Path) -> None:
    """Set the device's counters to zero, and a virtual GPU's peak to what is in use.

    Raises:
        ControlError: as `request`.
    """
    _expect_ok(socket_path, {"cmd": "reset"})


def save_profile(socket_path: Path, path: Path) -> None:
    """Let the device write how often each expert was used, as a profile for a later start.

    Args:
        socket_path: of the device.
        path: file to write; absolute, for the server may run in another folder.

    Raises:
        ControlError: as `request`.
    """
    _expect_ok(socket_path, {"cmd": "save_profile", "path": str(path.absolute())})


def start_trace(socket_path: Path, path: Path, *, weights: bool = False) -> None:
    """Let the device write the router's choices, token by token, until `stop_trace`.

    Args:
        socket_path: of the device.
        path: file to write; absolute, for the server may run in another folder.
        weights: write the router's weights, too.

    Raises:
        ControlError: as `request`.
    """
    wanted: dict[str, object] = {"cmd": "start_trace", "path": str(path.absolute())}
    _expect_ok(socket_path, wanted | ({"weights": True} if weights else {}))


def stop_trace(socket_path: Path) -> None:
    """End the trace; harmless when there is none.

    Raises:
        ControlError: as `request`; also when the disk was full.
    """
    _expect_ok(socket_path, {"cmd": "stop_trace"})


def traced_tokens(socket_path: Path) -> int:
    """Return how many tokens the trace that runs, or ran last, has.

    Raises:
        ControlError: as `request`; also when the answer has no such number.
    """
    answer = request(socket_path, {"cmd": "stats"})
    try:
        return int(answer["trace"]["tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError(f"the device's statistics lack the trace's tokens: {answer!s:.80}") from error


def _expect_ok(socket_path: Path, what: Mapping[str, object]) -> None:
    answer = request(socket_path, what)
    if answer.get("ok") is not True:
        raise ControlError(f"the device answered {json.dumps(what)} with {json.dumps(answer)[:80]}")


def parse(text: str) -> DeviceStats:
    """Read the device's JSON.

    Raises:
        ValueError: not JSON, not of version 1, or a counter is missing or no number.
    """
    return _parse(json.loads(text))


def _parse(data: object) -> DeviceStats:
    if not isinstance(data, dict) or data.get("version") != 1:
        raise ValueError("not the statistics of a device that this hottune knows")
    virtual = data.get("vgpu")
    try:
        return DeviceStats(
            hot=_hot(data) if data.get("enabled") else None,
            virtual_peak_mib=mib(float(virtual["peak_bytes"])) if virtual else None,
            tokens=int(data.get("tokens", 0)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the device's statistics lack or garble {error}") from error


def _hot(data: dict[str, Any]) -> HotStats:
    by_layer = data.get("layer", [])
    layers = [(int(layer["hits"]), int(layer["misses"])) for layer in by_layer]
    layer_slots = [int(layer["slots"]) for layer in by_layer if "slots" in layer]
    slots = float(data["slots"])
    multi, stream = data.get("multi", {}), data.get("stream", {})
    working = data.get("working", {})
    return HotStats(
        slots=max(round(slots), 1 if slots > 0 or any(layer_slots) else 0),  # 0 means no place at all
        layers=int(data["layers"]),
        hits=int(data["hits"]),
        misses=int(data["misses"]),
        uploads=int(data["uploads"]),
        uploaded_bytes=int(data["uploaded_bytes"]),
        fetched_bytes=int(data.get("fetched_bytes", 0)),
        cache_bytes=int(data["cache_bytes"]),
        fallback_nodes=int(data.get("fallback_nodes", 0)),
        layer_hit_rate=[hits / (hits + misses) if hits + misses else 0.0 for hits, misses in layers],
        layer_slots=layer_slots,
        time_us={str(phase): float(value) for phase, value in data.get("time_us", {}).items()},
        policy=str(data.get("policy", "")),
        shared_budget=bool(data.get("shared_budget", False)),
        evictions=int(data.get("evictions", 0)),
        stream_blocks=int(stream.get("blocks", 0)),
        stream_bytes=int(stream.get("uploaded_bytes", 0)),
        stream_buffer_bytes=int(stream.get("buffer_bytes", 0)),
        working_vram_bytes=int(working.get("vram_bytes", 0)),
        working_host_bytes=int(working.get("host_bytes", 0)),
        multi_blocks=int(multi.get("blocks", 0)),
        multi_tokens=int(multi.get("tokens", 0)),
        multi_hits=int(multi.get("hits", 0)),
        multi_misses=int(multi.get("misses", 0)),
        devices=[
            CacheDevice(
                name=str(one["name"]),
                layers=int(one["layers"]),
                slots=int(one["slots"]),
                cache_bytes=int(one["cache_bytes"]),
            )
            for one in data.get("devices", [])
        ],
    )
