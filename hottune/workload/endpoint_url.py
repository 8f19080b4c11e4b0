"""The address of an OpenAI-compatible endpoint: read, completed, and shown without secrets."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from hottune.errors import BadSettingError

#: What stands for the host of another machine wherever an address is kept.
ELSEWHERE = "REDACTED-HOST"
_PATH, _FOLDERS = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]"), re.compile(r"[/\\]")
_URL = re.compile(r"https?://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Tell whether a text is an address and not a file or a study."""
    return _URL.match(text) is not None


@dataclass(frozen=True)
class EndpointUrl:
    """Where an endpoint is. Account and password are for its requests only: see `shown` and `kept`."""

    base: str  # without account, query and a slash at the end: http://host:8080/v1
    auth: tuple[str, str] | None
    loopback: bool  # on this machine, as far as an address tells

    @property
    def root(self) -> str:
        """The server's own address, where llama-server and vLLM answer more than OpenAI's routes."""
        return self.base.removesuffix("/v1")

    @property
    def shown(self) -> str:
        """For the terminal: the address without an account."""
        return self.base

    @property
    def host(self) -> str:
        """The host alone."""
        return httpx.URL(self.base).host

    def hidden(self, text: str) -> str:
        """Return a text for files: without the host, unless that is this machine."""
        return text if self.loopback else text.replace(self.base, self.kept).replace(self.host, ELSEWHERE)

    @property
    def kept(self) -> str:
        """For files: the host only where it is this machine."""
        if self.loopback:
            return self.base
        url = httpx.URL(self.base)
        return f"{url.scheme}://{ELSEWHERE}{url.path.rstrip('/')}"


def parse_url(text: str) -> EndpointUrl:
    """Read an address; one without a path gets `/v1`.

    Raises:
        BadSettingError: it is no address, or has a query (a query may hold a secret, so it is not repeated).
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise BadSettingError("--endpoint: that is no address.", next_step=_EXAMPLE) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise BadSettingError("--endpoint takes a http:// or https:// address.", next_step=_EXAMPLE)
    if url.query or url.fragment:
        raise BadSettingError(
            "--endpoint takes an address without ? and #.",
            "What stands behind them may be a secret.",
            "Give the base address; a key goes into a variable: --api-key-env NAME.",
        )
    path = url.path.rstrip("/") or "/v1"
    for route in ("/chat/completions", "/completions"):
        path = path.removesuffix(route)
    host = f"[{url.host}]" if ":" in url.host else url.host
    port = f":{url.port}" if url.port else ""
    auth = (url.username, url.password) if url.userinfo else None
    return EndpointUrl(f"{url.scheme}://{host}{port}{path}", auth, _is_loopback(url.host))


_EXAMPLE = "Write it like http://127.0.0.1:8080/v1."


def kept_command(words: Sequence[str]) -> str:
    """Return a command line whose addresses have no account and no foreign host, and paths no folder."""
    return shlex.join(_kept_word(word) for word in words)


def _kept_word(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={_kept_word(value)}"
    if is_url(word):
        try:
            return parse_url(word).kept
        except BadSettingError:
            return f"http://{ELSEWHERE}"
    return _FOLDERS.split(word)[-1] if _PATH.match(word) else word


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
