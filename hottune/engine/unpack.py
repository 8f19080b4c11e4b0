"""Unpack one folder of a source archive, trusting nothing that the archive says about paths."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from hottune.engine.space import full_disk_as_error
from hottune.errors import SourceInvalidError, UnsafeArchiveError
from hottune.progress import NoProgress, Progress
from hottune.units import format_bytes

_NEXT = "Do not use this archive; delete it and download it again."


def unpack(archive: Path, target: Path, *, folder: str, progress: Progress | None = None) -> Path:
    """Unpack `<top>/<folder>/` of a tar archive as `target`, all or nothing.

    Every member of the archive is judged before anything is written; files go to a temporary folder beside
    `target`, which is renamed at the end. Permissions are plain (executable or not); owners are ignored.

    Args:
        archive: .tar.gz file, checked against its hash by the caller.
        target: folder to make; must not exist.
        folder: second path component of the members wanted; everything else is left out.
        progress: counts the bytes written.

    Returns:
        `target`.

    Raises:
        UnsafeArchiveError: a path is absolute or climbs out, or a wanted member is a link or a device.
        SourceInvalidError: not a tar archive, or nothing in it under `folder`.
    """
    progress = progress or NoProgress()
    try:
        with tarfile.open(archive) as tar:
            wanted = _wanted(tar, folder)
            total = sum(member.size for member, _ in wanted)
            if not wanted:
                raise SourceInvalidError(f"{archive} holds no folder {folder}/.", next_step=_NEXT)
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                with full_disk_as_error(target.parent, "unpacking"):
                    _write(tar, wanted, fresh, progress, total)
                fresh.chmod(0o755)
                fresh.rename(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise SourceInvalidError(
            f"{archive} is not a readable tar archive ({error}).", next_step=_NEXT
        ) from error
    progress.finish(format_bytes(total))
    return target


def _wanted(tar: tarfile.TarFile, folder: str) -> list[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Judge every member; return those to write, each with its path below the target."""
    wanted = []
    for member in tar:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
            raise UnsafeArchiveError(
                f"The archive wants to write outside its folder: '{member.name}'.", next_step=_NEXT
            )
        if len(path.parts) < 2 or path.parts[1] != folder:
            continue
        # A link inside the folder could be harmless, but a later member could be written through it. The
        # pinned source has none.
        if not (member.isreg() or member.isdir()):
            raise UnsafeArchiveError(
                f"The archive holds a link or a device: '{member.name}'.", next_step=_NEXT
            )
        wanted.append((member, PurePosixPath(*path.parts[2:])))
    return wanted


def _write(
    tar: tarfile.TarFile,
    wanted: list[tuple[tarfile.TarInfo, PurePosixPath]],
    fresh: Path,
    progress: Progress,
    total: int,
) -> None:
    progress.start("Unpacking llama.cpp", total, "bytes")
    done = 0
    for member, relative in wanted:
        path = fresh / relative
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None  # regular files have content
        with content, path.open("wb") as out:
            shutil.copyfileobj(content, out)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)
        done += member.size
        progress.update(done)
