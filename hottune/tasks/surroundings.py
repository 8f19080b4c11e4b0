"""What else goes on on this machine while hottune measures."""

from __future__ import annotations

import psutil

from hottune.report.schema import WarningNote
from hottune.stats import NoteCode, note
from hottune.units import MIB, format_bytes

BUSY_PERCENT = 20.0
SWAP_BYTES = 256 * MIB


def surroundings(watch_s: float = 0.5) -> list[WarningNote]:
    """Return warnings about other load, swap and battery, as they are before the first server.

    Args:
        watch_s: seconds to watch the processor.
    """
    found: list[tuple[str, str]] = []
    busy = psutil.cpu_percent(interval=watch_s)
    if busy > BUSY_PERCENT:
        found.append(
            note(NoteCode.OTHER_LOAD, percent=round(busy), device="processor", when="before hottune began")
        )
    swap = psutil.swap_memory().used
    if swap > SWAP_BYTES:
        found.append(note(NoteCode.SWAP_IN_USE, used=format_bytes(swap)))
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and not battery.power_plugged:
        found.append(note(NoteCode.BATTERY))
    return [WarningNote(code=code, text=text) for code, text in found]
