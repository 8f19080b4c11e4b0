"""Writing a report's files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hottune.report.interface import Format, render
from hottune.report.schema import Report


def file_stem(study: str) -> str:
    """Return a study's name as a safe file name: nothing that leaves the folder or hides the file."""
    return re.sub(r"[^\w.+-]+", "-", study).strip("-.") or "study"


def save(report: Report, folder: Path) -> list[Path]:
    """Write `<study>.json`, `.md` and `.html` into the folder, which is created, and return their paths.

    Each file is replaced whole or not at all.
    """
    stem = file_stem(report.study)
    formats = {"json": Format.JSON, "md": Format.MARKDOWN, "html": Format.HTML}
    return [
        write_text(folder / f"{stem}.{ending}", render(report, format)) for ending, format in formats.items()
    ]


def write_text(path: Path, text: str) -> Path:
    """Write a file so that a reader, or a crash, never sees half of it; return the path.

    Raises:
        OSError: the folder cannot be created or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
