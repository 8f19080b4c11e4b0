"""Speed of the memory modules, from the firmware's tables, where this user may read them.

Structure type 17 of the SMBIOS specification (DMTF DSP0134, section 7.18). Most systems let only root read
the tables; then there is no answer.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_TABLES = "sys/firmware/dmi/tables/DMI"
_MEMORY_DEVICE, _END = 17, 127
_TYPES = {0x18: "DDR3", 0x1A: "DDR4", 0x1E: "LPDDR4", 0x22: "DDR5", 0x23: "LPDDR5"}
_SIZE_AT, _TYPE_AT, _SPEED_AT, _CONFIGURED_AT = 0x0C, 0x12, 0x15, 0x20


def ram_speed(root: Path = _ROOT) -> str:
    """Return the modules with the speed they run at, like '2 x DDR5 at 5600 MT/s'; "" where nobody tells."""
    try:
        table = (root / _TABLES).read_bytes()
    except OSError:
        return ""
    modules = Counter(module for one in _structures(table) if (module := _module(one)))
    return ", ".join(f"{count} x {module}" for module, count in sorted(modules.items()))


def _structures(table: bytes) -> Iterator[bytes]:
    """Yield the formatted part of each memory device's structure; stop where the table makes no sense."""
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        if kind == _END or length < 4:
            return
        if kind == _MEMORY_DEVICE:
            yield table[at : at + length]
        end = table.find(b"\0\0", at + length)  # its strings, which two zeros end
        if end < 0:
            return
        at = end + 2


def _module(structure: bytes) -> str:
    """Return 'DDR5 at 5600 MT/s' for a slot with a module of known speed, else ""."""
    if len(structure) < _SPEED_AT + 2 or _word(structure, _SIZE_AT) == 0:
        return ""
    speed = _word(structure, _SPEED_AT)
    if len(structure) >= _CONFIGURED_AT + 2:
        speed = _word(structure, _CONFIGURED_AT) or speed  # what it runs at, not what it could
    if speed in (0, 0xFFFF):
        return ""
    return f"{_TYPES.get(structure[_TYPE_AT], 'module')} at {speed} MT/s"


def _word(structure: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", structure, at)[0])
