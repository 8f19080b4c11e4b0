"""One process at a time: a lock on a file, released by the system however its holder ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hottune.progress import Progress


@contextmanager
def only_one(path: Path, progress: Progress, *, purpose: str) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, say so and wait.

    Args:
        path: made when missing, and left in place (removing it would let two holders in).
        progress: told when there is something to wait for.
        purpose: what the other process is doing: "building llama.cpp".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"Another hottune is {purpose}; waiting for it.")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
