"""One live process for a study, or a GPU: a lock that the kernel lets go when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hottune.errors import StorageError, StudyBusyError


@contextmanager
def study_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file of a study or a GPU; it carries the holder's process id for people to read.

    The file stays behind: removing it would race with the next holder.

    Args:
        path: of the lock file.
        what: it stands for, as the subject of the message.

    Raises:
        StudyBusyError: another live process holds it.
        StorageError: the lock file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"The lock file {path} cannot be made.", str(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise StudyBusyError(
                f"{what} is in use by another hottune (process {holder}).",
                "Two runs at once would disturb each other's measurements.",
                "Wait for it or stop it.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
