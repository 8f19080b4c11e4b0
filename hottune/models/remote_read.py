"""The beginning of a file on a server, read by HTTP ranges: a header costs a few MiB, not the file.

A server that ignores ranges sends the whole file; then its answer is read as far as needed and the connection
is closed. A connection that breaks is taken up again where it broke.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

import httpx

from hottune.errors import DownloadError, ModelNotFoundError
from hottune.models.hub_download import RemoteFile, refuse

_ATTEMPTS = 4  # in a row that bring no new byte
_PAUSE_S = 0.5
_TIMEOUT_S = 30.0
_FIRST_BYTES = 1 << 20
_LARGEST_BYTES = 4 << 20  # asked for at once: what is fetched beyond the header is less than this
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class RemoteReader:
    """Reads a remote file from its beginning, forward only. Use `opened`.

    Attributes:
        size: of the whole file in bytes; None while the server has not said.
        received: bytes of content that came over the network so far.
    """

    def __init__(self, client: httpx.Client, remote: RemoteFile, headers: Mapping[str, str]) -> None:
        self._client = client
        self._remote = remote
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._position = 0  # of the next byte that read returns
        self._asked = 0  # end of the range asked for
        self._skip = 0  # bytes to drop: a server without ranges begins at the beginning again
        self._step = _FIRST_BYTES
        self._ended = False
        self._kept = b""
        self.size = remote.size
        self.received = 0

    def read(self, n_bytes: int = -1) -> bytes:
        """Return what comes next, however much that is; b"" at the end.

        Raises:
            DownloadError: the connection broke again and again, or the server answers nonsense.
            RepoNotFoundError: the server refuses the file or does not have it.
        """
        if self._kept:
            kept, self._kept = self._kept, b""
            return kept
        trouble = ""
        for attempt in range(_ATTEMPTS):
            if self._ended or (self.size is not None and self._position >= self.size):
                return b""
            time.sleep(_PAUSE_S * attempt)
            trouble = "the connection was closed early"
            try:
                if piece := self._piece():
                    return piece
            except httpx.HTTPStatusError as error:
                trouble = f"HTTP {error.response.status_code}"
                if error.response.status_code < 500:
                    break
            except (httpx.HTTPError, httpx.StreamError) as error:
                trouble = str(error) or type(error).__name__
            self.close()
        if self._ended:
            return b""
        raise _unreadable(self._remote, trouble)

    def _piece(self) -> bytes:
        """Return the next bytes; b"" when the answer ended too early, or the file did (`_ended`)."""
        if self._response is None:
            self._response = self._ask()
            self._chunks = self._response.iter_raw()  # a fixed size would drop a last, shorter piece
        for received in self._chunks:
            self.received += len(received)
            piece = received[self._skip :]
            self._skip -= len(received) - len(piece)
            if piece:
                self._position += len(piece)
                return piece
        whole = self._response.status_code != 206
        self.close()
        self._ended = self._ended or (whole and self.size is None)
        if self._ended or self._position < self._asked:
            return b""
        self._step = min(2 * self._step, _LARGEST_BYTES)
        return self._piece()

    def begin(self) -> None:
        """Fetch the first bytes, so that `size` is known; `read` still returns them. Raises as `read`."""
        self._kept = self.read()

    def close(self) -> None:
        """Drop the open answer; what was not read of it is not transferred."""
        if self._response is not None:
            with suppress(httpx.HTTPError, httpx.StreamError):
                self._response.close()
        self._response, self._chunks = None, iter(())

    def _ask(self) -> httpx.Response:
        """Ask for the next range; `_skip` says what of the answer to drop."""
        last = self._position + self._step - 1
        if self.size is not None:
            last = min(last, self.size - 1)
        self._asked = last + 1
        request = self._client.build_request(
            "GET", self._remote.url, headers={**self._headers, "Range": f"bytes={self._position}-{last}"}
        )
        response = self._response = self._client.send(request, stream=True)
        refuse(self._remote, response)
        self._skip = 0
        if response.status_code == 416:
            self._ended = True
        elif response.status_code == 206:
            self._take_range(response.headers.get("Content-Range", ""))
        else:
            length = response.headers.get("Content-Length", "")
            self._take_size(int(length) if length.isdigit() else None)
            self._skip = self._position
        return response

    def _take_range(self, text: str) -> None:
        match = _RANGE.fullmatch(text.strip())
        if match is None or int(match[1]) != self._position:
            raise _unreadable(self._remote, f"it answers with the range '{text}', which was not asked for")
        self._take_size(None if match[3] == "*" else int(match[3]))

    def _take_size(self, size: int | None) -> None:
        if size is not None and self.size is not None and size != self.size:
            raise _unreadable(self._remote, f"it has {size} bytes, {self.size} were announced")
        self.size = size if self.size is None else self.size


@contextmanager
def opened(remote: RemoteFile, headers: Mapping[str, str]) -> Iterator[RemoteReader]:
    """Open `remote` to be read forward without storing it.

    Args:
        remote: the file; redirects are followed.
        headers: sent along, for example with a token; `Authorization` does not follow to another host.

    Raises:
        ModelNotFoundError: the URL is no URL.
    """
    try:
        httpx.URL(remote.url)
    except httpx.InvalidURL as error:
        raise ModelNotFoundError(f"'{remote.url}' is no URL: {error}.", "", "Check it.") from error
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        reader = RemoteReader(client, remote, headers)
        try:
            yield reader
        finally:
            reader.close()


def as_file(reader: RemoteReader) -> BinaryIO:
    """Return the reader under the type of what it behaves as: a binary file that is only read forward."""
    return cast(BinaryIO, reader)


def _unreadable(remote: RemoteFile, why: str) -> DownloadError:
    return DownloadError(
        f"{remote.shown} cannot be read: {why}.",
        "The network or the server is in trouble.",
        "Try again, or give another address of the model.",
    )
