"""The hot-expert device's counters: from the file it writes at the end, or asked for over its socket."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hottune.outcomes import HotStats
from hottune.units import mib


@dataclass(frozen=True)
class DeviceStats:
    """What the device library counted: the cache's part, the virtual GPU's part, either may be absent."""

    hot: HotStats | None
    virtual_peak_mib: float | None


def read_file(path: Path) -> DeviceStats | None:
    """Return the counters the device left behind, or None when it wrote none (not loaded, or killed)."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def ask(socket_path: Path, *, timeout_s: float = 5.0) -> DeviceStats | None:
    """Ask a running device for its counters, or return None when it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.sendall(b'{"cmd":"stats"}\n')
            with connection.makefile("r", encoding="utf-8") as answer:
                return parse(answer.readline())
    except (OSError, ValueError):
        return None


def parse(text: str) -> DeviceStats:
    """Read the device's JSON.

    Raises:
        ValueError: not JSON, not of version 1, or a counter is missing or no number.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("version") != 1:
        raise ValueError("not the statistics of a device that this hottune knows")
    virtual = data.get("vgpu")
    try:
        return DeviceStats(
            hot=_hot(data) if data.get("enabled") else None,
            virtual_peak_mib=mib(float(virtual["peak_bytes"])) if virtual else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the device's statistics lack or garble {error}") from error


def _hot(data: dict[str, Any]) -> HotStats:
    layers = [(int(layer["hits"]), int(layer["misses"])) for layer in data.get("layer", [])]
    return HotStats(
        slots=int(data["slots"]),
        layers=int(data["layers"]),
        hits=int(data["hits"]),
        misses=int(data["misses"]),
        uploads=int(data["uploads"]),
        uploaded_bytes=int(data["uploaded_bytes"]),
        cache_bytes=int(data["cache_bytes"]),
        fallback_nodes=int(data.get("fallback_nodes", 0)),
        layer_hit_rate=[hits / (hits + misses) if hits + misses else 0.0 for hits, misses in layers],
        time_us={str(phase): float(value) for phase, value in data.get("time_us", {}).items()},
    )
