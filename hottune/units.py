"""Units used across hottune: MiB for memory, tok/s for speed, ms for latency, s for durations.

Field names carry the unit (`vram_peak_mib`, `ttft_ms`, `turn_s`), so values stay plain numbers.
"""

from __future__ import annotations

import re

MIB = 1024 * 1024
_FACTORS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_FACTORS |= {"K": 1024, "M": MIB, "G": 1024**3, "KIB": 1024, "MIB": MIB, "GIB": 1024**3, "TIB": 1024**4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Return the number of bytes in a size such as `24GiB`, `512M` (MiB) or `1.5 GB`.

    Raises:
        ValueError: the text is not a number followed by a known unit.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError(f"'{text}' is not a size; write it like 24GiB, 512MiB or 1.5GB")
    return int(float(match[1]) * factor)


def mib(n_bytes: float) -> float:
    """Convert bytes to MiB."""
    return n_bytes / MIB


def format_bytes(n_bytes: float) -> str:
    """Return a short human size in binary units: `15.9 GiB`, `64 MiB`, `12 KiB`."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or unit in ("B", "KiB") else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def format_seconds(seconds: float) -> str:
    """Return a short human duration: `0.8 s`, `42 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
