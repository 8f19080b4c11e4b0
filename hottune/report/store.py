"""Writing a report's files."""

from __future__ import annotations

import os
from pathlib import Path

from hottune.report.interface import Format, render_bytes
from hottune.report.names import file_stem
from hottune.report.schema import Report


def save(report: Report, folder: Path, *, png: bool = False, link: str = "") -> list[Path]:
    """Write `<study>.json`, `.md` and `.html` into the folder, which is created, and return their paths.

    Each file is replaced whole or not at all.

    Args:
        report: what to write.
        folder: where.
        png: also write `<study>.png`, the main chart.
        link: address of the result file, for the Markdown; "" = its name alone.
    """
    formats = {"json": Format.JSON, "md": Format.MARKDOWN, "html": Format.HTML}
    formats |= {"png": Format.PNG} if png else {}
    stem = file_stem(report.study)
    return [
        write_bytes(folder / f"{stem}.{ending}", render_bytes(report, format, link=link))
        for ending, format in formats.items()
    ]


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file so that a reader, or a crash, never sees half of it; return the path.

    What a link leads to is replaced, not the link. A device or a pipe (/dev/stdout) is written to as it is.

    Raises:
        OSError: the folder cannot be created or written, or the path is a folder.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as special:  # a folder refuses
            special.write(data)
        return path
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
