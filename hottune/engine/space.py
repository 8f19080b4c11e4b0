"""Free disk space, looked at before work that would fail half-way without it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hottune.errors import NoSpaceError
from hottune.units import format_bytes

_NEXT = "Free some space, or point HOTTUNE_CACHE at a larger disk."


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Check that the disk of `folder` (which may not exist yet) has `needed_bytes` free.

    Raises:
        NoSpaceError: it has not.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise NoSpaceError(
            f"Only {format_bytes(free)} are free in {folder}, {purpose} needs {format_bytes(needed_bytes)}.",
            next_step=_NEXT,
        )


@contextmanager
def full_disk_as_error(folder: Path, purpose: str) -> Iterator[None]:
    """Turn the system's "no space left" and "quota exceeded" into NoSpaceError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"The disk of {folder} filled up during {purpose}.", next_step=_NEXT
            ) from error
        raise
