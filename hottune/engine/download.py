"""Fetch the pinned source archive through the Python index that the user has configured."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections import deque
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from hottune.engine.pin import Pin
from hottune.engine.space import full_disk_as_error
from hottune.engine.steps import run_step
from hottune.errors import ChecksumError, IndexUnreachableError, SourceInvalidError
from hottune.progress import NoProgress, Progress
from hottune.units import format_bytes

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, pin: Pin) -> None:
    """Check that a file is the pinned archive, byte for byte. The file is never removed or changed.

    Raises:
        SourceInvalidError: there is no such file.
        ChecksumError: it is another file.
    """
    if not path.is_file():
        raise SourceInvalidError(f"There is no file {path}.", next_step="Check the path after --sdist.")
    found = sha256_of(path)
    if found != pin.sha256:
        raise ChecksumError(
            f"{path} is not the pinned {pin.package} {pin.version}: sha256 {found} instead of {pin.sha256}.",
            "The download was damaged, or the archive was replaced.",
            f"Get {pin.archive_name} again; nothing of this file was unpacked.",
        )


def fetch_sdist(
    pin: Pin, *, cache_dir: Path, sdist: Path | None = None, progress: Progress | None = None
) -> Path:
    """Return the pinned source archive: the user's own, the cached one, or a fresh download.

    Args:
        pin: what to fetch.
        cache_dir: hottune's cache folder; the archive is kept under `downloads/`.
        sdist: a file that the user already has; used where it lies.
        progress: shows the download.

    Raises:
        ChecksumError: the archive is not the pinned one.
        IndexUnreachableError: the index cannot be reached or does not have the package.
    """
    progress = progress or NoProgress()
    if sdist is not None:
        verify(sdist, pin)
        return sdist
    kept = cache_dir / "downloads" / pin.archive_name
    if kept.is_file():
        if sha256_of(kept) == pin.sha256:
            return kept
        progress.say(f"{kept} is damaged; downloading it again.")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with (
        full_disk_as_error(kept.parent, "the download"),
        tempfile.TemporaryDirectory(prefix=".download-", dir=kept.parent) as folder,
    ):
        fresh = _pip_download(pin, Path(folder), kept.parent / "download.log", progress)
        verify(fresh, pin)
        fresh.replace(kept)
    progress.finish(format_bytes(kept.stat().st_size))
    return kept


def _pip_download(pin: Pin, folder: Path, log: Path, progress: Progress) -> Path:
    """Download the archive into `folder` with pip.

    pip runs a source package's own build script to learn its metadata; with the hash in the requirement it
    refuses a wrong archive before that.
    """
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8")
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--require-hashes",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    argv += ["--no-input", "--progress-bar", _progress_style()]
    argv += ["--no-binary", pin.package, "--dest", str(folder), "--requirement", str(requirement)]
    said: deque[str] = deque(maxlen=40)

    def on_line(line: str) -> None:
        if match := _RAW_PROGRESS.fullmatch(line.strip()):
            progress.update(int(match[1]), int(match[2]))
        elif line.strip():
            said.append(line.strip())

    progress.start(f"Downloading {pin.package} {pin.version}", None, "bytes")
    log.unlink(missing_ok=True)
    code = run_step(argv, log=log, on_line=on_line)
    archive = folder / pin.archive_name
    if code == 0 and archive.is_file():
        return archive
    raise _download_error(pin, list(said), log)


def _download_error(pin: Pin, said: list[str], log: Path) -> ChecksumError | IndexUnreachableError:
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        got = next((line.split()[-1] for line in said if line.startswith("Got")), "another")
        return ChecksumError(
            f"The index sent another {pin.package} {pin.version}: sha256 {got} instead of {pin.sha256}.",
            "The download was damaged, or the archive was replaced.",
            "Try again; if it stays so, do not use that index. Nothing was unpacked.",
        )
    errors = [line for line in said if line.startswith("ERROR:")]
    last = (errors or said or ["pip said nothing."])[-1]
    return IndexUnreachableError(
        f"The Python index did not give {pin.package} {pin.version}. pip's last line: {last}",
        f"The index cannot be reached, or does not carry the package (whole log: {log}).",
        f"Check pip's index setting, or use --git {pin.repository}@{pin.build}, --source or --sdist.",
    )


def _progress_style() -> str:
    # "raw" (machine-readable lines) came with pip 24.1; older ones can only be silent in a pipe.
    return "raw" if Version(metadata.version("pip")) >= Version("24.1") else "off"
