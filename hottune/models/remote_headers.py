"""The headers of a model that lies elsewhere: on the Hugging Face Hub, or at any http(s) address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from hottune.errors import ModelNotFoundError
from hottune.models.gguf_header import GgufHeader, read_header
from hottune.models.hub_download import RemoteFile
from hottune.models.names import part_name, split_part
from hottune.models.remote_read import as_file, opened

_MOST_PARTS = 500


@dataclass(frozen=True)
class RemoteHeaders:
    """What was learned without a download.

    Attributes:
        name: short name of the model.
        size_bytes: all parts together; by its header for a part whose size the server did not say.
        headers: of all parts, in order.
        bytes_read: content that came over the network for it.
    """

    name: str
    size_bytes: int
    headers: tuple[GgufHeader, ...]
    bytes_read: int


def is_url(argument: str) -> bool:
    """Tell whether a MODEL argument is an http(s) address."""
    return argument.lower().startswith(("http://", "https://"))


def url_headers(url: str) -> RemoteHeaders:
    """Return the headers of the model at an address; of a split one, of all its parts.

    Raises:
        ModelNotFoundError: the address does not lead to a .gguf file.
        RepoNotFoundError: the server refuses the file or does not have it.
        DownloadError: the server cannot be reached.
        ModelCorruptError: what lies there is no GGUF, is damaged or too short.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ModelNotFoundError(f"'{url}' is no URL: {error}.", "", "Check it.") from error
    folder, _, last = parts.path.rpartition("/")
    file = unquote(last)
    if not file.lower().endswith(".gguf"):
        raise ModelNotFoundError(
            f"{url} does not name a .gguf file.", "", "Give the address of the file itself, or owner/repo."
        )
    split = split_part(file)
    names = [file]
    if split is not None and 1 < split[2] <= _MOST_PARTS:
        names = [part_name(split[0], number, split[2]) for number in range(1, split[2] + 1)]
    remotes = [
        RemoteFile(urlunsplit(parts._replace(path=f"{folder}/{quote(name)}", fragment="")), None)
        for name in names
    ]
    if len(names) == 1:
        remotes = [replace(remotes[0], url=url)]
    return read_headers(split[0] if split else PurePosixPath(file).stem, remotes, {})


def read_headers(name: str, remotes: Sequence[RemoteFile], headers: Mapping[str, str]) -> RemoteHeaders:
    """Read the header of each part; raises what `url_headers` does.

    Args:
        name: short name of the model.
        remotes: its parts, in order.
        headers: sent along, for example with a token.
    """
    found: list[GgufHeader] = []
    size_bytes = received = 0
    for remote in remotes:
        label = unquote(PurePosixPath(urlsplit(remote.url).path).name)
        with opened(remote, headers) as reader:
            reader.begin()
            found.append(read_header(as_file(reader), reader.size, name=label, where="on the server"))
            size_bytes += found[-1].end if reader.size is None else reader.size
            received += reader.received
    return RemoteHeaders(name, size_bytes, tuple(found), received)
