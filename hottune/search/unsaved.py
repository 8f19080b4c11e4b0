"""What was measured while the storage was away: kept in a file beside the study until the next run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hottune.errors import StorageError


def save(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record and bring it to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; none when there is no file.

    A last line that was cut off (the process was killed while it wrote) is left out.

    Raises:
        StorageError: the file is not ours, or damaged.
    """
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise StorageError(
                f"{path} cannot be read: line {number + 1} is damaged.",
                "It holds measurements that the storage did not take when they were made.",
                "Mend that line or move the file away.",
            ) from error
    return records
