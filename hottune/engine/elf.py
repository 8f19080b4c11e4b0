"""Which shared libraries an ELF file asks for: enough of the format to tell two kinds of llama.cpp apart."""

from __future__ import annotations

import struct
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed_libraries(path: Path) -> list[str] | None:
    """Return the names a 64-bit ELF file lists as needed (DT_NEEDED); None when it is no such file.

    Format: System V ABI, chapters 4 and 5 (Executable and Linking Format).
    """
    data = path.read_bytes()
    if data[:5] != b"\x7fELF\x02" or len(data) < 64:
        return None
    order = "<" if data[5] == 1 else ">"
    try:
        return _needed(data, order)
    except (struct.error, ValueError):
        return None  # cut off or damaged


def _needed(data: bytes, order: str) -> list[str]:
    (table,) = struct.unpack_from(order + "Q", data, 32)
    entry_size, count = struct.unpack_from(order + "HH", data, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic = (0, 0)
    for i in range(count):
        kind, _, offset, address, _, size = struct.unpack_from(order + "IIQQQQ", data, table + i * entry_size)
        if kind == _PT_LOAD:
            loads.append((address, size, offset))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, size)
    names: list[int] = []
    strings = 0
    for position in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from(order + "qQ", data, position)
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = next((at - start + value for start, n, at in loads if start <= value < start + n), 0)
    return [
        data[strings + name : data.index(b"\0", strings + name)].decode(errors="replace") for name in names
    ]
