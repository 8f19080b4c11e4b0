"""Download a large file over HTTP so that nothing received is ever lost.

`hf_hub_download` of huggingface_hub 2 deletes an unfinished file when it fails or its process ends; at 60 GB
that can be a night of work. Here the received bytes stay in `<name>.partial`; the next run asks for the rest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import httpx

from hottune.engine.space import full_disk_as_error
from hottune.errors import DownloadError, RepoNotFoundError
from hottune.units import format_bytes

_ATTEMPTS = 4  # in a row that bring no new byte
_PAUSE_S = 1.0  # before the next attempt, times the failures in a row
_TIMEOUT_S = 30.0
_CHUNK = 1 << 20
_AGAIN = "Run the same command again: it continues where it stopped."


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        url: of the file; redirects are followed.
        size: in bytes; None when the server did not say.
        sha256: of the content, in hex; "" when unknown.
    """

    url: str
    size: int | None
    sha256: str = ""

    @property
    def shown(self) -> str:
        """The address without what may be secret: user, password, and the query (signatures)."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def partial_path(target: Path) -> Path:
    """Return where the received part of `target` lies until it is complete."""
    return target.with_name(f"{target.name}.partial")


def received_bytes(target: Path) -> int:
    """Return how much of `target` is on this machine already."""
    for path in (target, partial_path(target)):
        if path.is_file():
            return path.stat().st_size
    return 0


def download(
    remote: RemoteFile,
    target: Path,
    *,
    headers: Mapping[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    """Fetch `remote` to `target`, from where an earlier attempt stopped; `target` appears only when complete.

    Args:
        remote: the file.
        target: where it goes; complete files are left as they are.
        headers: sent along, for example with a token; they do not follow a redirect to another host.
        on_bytes: told the bytes of the file that are here, again and again.

    Raises:
        DownloadError: the connection broke again and again, or the content is not what was announced.
        RepoNotFoundError: the server refuses the file or does not have it.
        NoSpaceError: the disk filled up.
    """
    if target.is_file() and (remote.size is None or target.stat().st_size == remote.size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(target)
    failures = 0
    with (
        full_disk_as_error(target.parent, f"downloading {target.name}"),
        partial.open("ab", buffering=_CHUNK) as file,
        httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client,
    ):
        while remote.size is None or file.tell() < remote.size:
            before = file.tell()
            try:
                _receive(client, remote, file, headers, on_bytes)
                if remote.size is None:
                    break
                trouble = "the connection was closed early"
            except httpx.HTTPError as error:
                trouble = str(error) or type(error).__name__
            failures = 0 if file.tell() > before else failures + 1
            if failures >= _ATTEMPTS:
                raise _stopped(target, file.tell(), remote.size, trouble)
            if file.tell() != remote.size:
                time.sleep(_PAUSE_S * max(1, failures))
    _check(remote, partial, target.name)
    partial.replace(target)


def refuse(remote: RemoteFile, response: httpx.Response) -> None:
    """Raise for an answer that is no file; 416 (the range is not there) is left to the caller."""
    if response.status_code in (401, 403, 404, 410):
        raise RepoNotFoundError(
            f"{remote.shown} cannot be had: HTTP {response.status_code}.",
            "The file was removed, or the repository needs a token.",
            "Log in with `hf auth login` or set HF_TOKEN, and accept the model's licence on its page.",
        )
    if response.status_code != 416:
        response.raise_for_status()


def _receive(
    client: httpx.Client,
    remote: RemoteFile,
    file: BinaryIO,
    headers: Mapping[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    have = file.tell()
    wanted = dict(headers) | {"Accept-Encoding": "identity"}
    if have:
        wanted["Range"] = f"bytes={have}-"
    with client.stream("GET", remote.url, headers=wanted) as response:
        refuse(remote, response)
        if response.status_code == 416:
            _start_over(file)  # what is here is no beginning of that file
            raise httpx.HTTPError("the server has less of the file than was received")
        if have and response.status_code != 206:
            _start_over(file)  # the server does not resume
        for chunk in response.iter_raw():  # as it comes: a fixed size would drop a last, shorter piece
            file.write(chunk)
            on_bytes(file.tell())


def _start_over(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _check(remote: RemoteFile, partial: Path, name: str) -> None:
    size = partial.stat().st_size
    wrong = ""
    if remote.size is not None and size != remote.size:
        wrong = f"it has {size} bytes instead of {remote.size}"
    elif remote.sha256:
        with partial.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != remote.sha256.lower():
                wrong = "its checksum is not the announced one"
    if wrong:
        partial.unlink()
        raise DownloadError(
            f"The download of {name} is not right: {wrong}.",
            "It was damaged on the way, or changed meanwhile.",
            "Run the same command again: it starts this file afresh.",
        )


def _stopped(target: Path, have: int, size: int | None, trouble: str) -> DownloadError:
    of = f" of {format_bytes(size)}" if size else ""
    return DownloadError(
        f"The download of {target.name} stopped after {format_bytes(have)}{of}: {trouble}.",
        "The network or the hub is in trouble.",
        _AGAIN,
    )
