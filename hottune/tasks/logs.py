"""Where the log of a fresh server lies."""

from __future__ import annotations

import time
from pathlib import Path


def new_log(folder: Path) -> Path:
    """Return a path for the next log, named after the time, so that the last by name is the newest."""
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 1000:03d}.log"
