"""Asking an OpenAI-compatible endpoint, and what its refusals mean: one place for all of them."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from hottune.errors import EndpointError
from hottune.workload.client import CONNECT_TIMEOUT_S
from hottune.workload.endpoint_url import EndpointUrl
from hottune.workload.openai_stream import error_text

#: A busy server is asked again so often, each time after the wait that it asks for, or this many seconds.
_TRIES = 4
_WAIT_S, _LONGEST_WAIT_S = 5.0, 60.0
_BUSY = (429, 503)
_CONTEXT_WORDS = ("context length", "context size", "context window", "maximum context", "too long", "n_ctx")


class Refused(Exception):
    """The endpoint answered with a status that is no success."""

    def __init__(self, status: int, path: str, message: str) -> None:
        self.status, self.path, self.message = status, path, message
        super().__init__(f"{path} answered {status}: {message}")


@dataclass
class Access:
    """How to reach one endpoint. The key is in no message, and goes into no file."""

    url: EndpointUrl
    api_key: str | None = None
    key_variable: str = ""
    timeout_s: float = 600.0
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = field(default=lambda line: None)

    def client(self) -> httpx.Client:
        """Return a new client; the caller closes it."""
        headers = {"Accept-Encoding": "identity"}  # what is compressed arrives in lumps
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.url.loopback:
            # llama-server hangs up after a stream, so a kept connection would break under the next request.
            headers["Connection"] = "close"
        return httpx.Client(
            base_url=self.url.base,
            auth=None if self.api_key else self.url.auth,
            headers=headers,
            timeout=httpx.Timeout(self.timeout_s, connect=min(CONNECT_TIMEOUT_S, self.timeout_s)),
            # The environment's proxies are for the outside world, not for a server on this machine.
            trust_env=not self.url.loopback,
        )

    def get(self, http: httpx.Client, url: str) -> httpx.Response | None:
        """Return what a GET answers; None when that is no success.

        Raises:
            EndpointError: the endpoint cannot be reached.
        """
        try:
            answer = http.get(url)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from error
        if answer.status_code in (401, 403):
            raise self.refusal(Refused(answer.status_code, answer.request.url.path, _message(answer)))
        return answer if answer.is_success else None

    def patiently(self, send: Callable[[], Any]) -> Any:
        """Call `send` until it is not refused as too busy (429, 503), waiting as the server asks.

        Raises:
            Refused: for another reason, or still busy after the last try.
        """
        for left in range(_TRIES - 1, -1, -1):
            try:
                return send()
            except Busy as busy:
                if not left:
                    raise
                self.say(f"the server is busy ({busy.status}); again in {busy.wait_s:g} s")
                self.sleep(busy.wait_s)
        raise AssertionError  # the last try returns or raises

    def unreachable(self, error: httpx.HTTPError) -> EndpointError:
        """Return what a connection that did not come about means."""
        where = self.url.shown
        if isinstance(error, httpx.TimeoutException):
            return EndpointError(
                f"{where} did not answer in time ({type(error).__name__}).",
                "It is overloaded or still loading, or a firewall drops what is sent to it"
                + (", or it speaks plain HTTP." if where.startswith("https:") else "."),
                "Try again when it is up.",
            )
        if _is_tls(error):
            return EndpointError(
                f"No secure connection to {where}: {error}.",
                "Its certificate is not trusted here, or it speaks plain HTTP.",
                "Use http:// for a server without TLS; SSL_CERT_FILE names an authority of your own.",
            )
        return EndpointError(
            f"{where} cannot be reached: {str(error) or type(error).__name__}.",
            "No server listens there.",
            "Start it, and check host, port and path; most listen at http://HOST:PORT/v1.",
        )

    def refusal(self, refused: Refused) -> EndpointError:
        """Return what a status means that ends the measurement."""
        where, said = self.url.shown, refused.message
        if refused.status in (401, 403):
            given = f"The key in {self.key_variable} is not accepted." if self.api_key else "It wants a key."
            next_step = "Put the key into a variable and name it: --api-key-env NAME."
            return EndpointError(f"{where} refuses access ({refused.status}: {said}).", given, next_step)
        if is_context(refused):
            return EndpointError(
                f"The workload does not fit into the context of {where}: {said}.",
                "",
                "Start the server with a longer context, or use a smaller --scale.",
            )
        if refused.status == 404:
            return EndpointError(
                f"{where}{refused.path} is not there (404: {said}).",
                "The path is not the one of its OpenAI routes, or it serves no such model.",
                "Most end in /v1; --completions and --chat choose a route, --model-name a model.",
            )
        if refused.status in _BUSY:
            why = f"It was asked {_TRIES} times, as slowly as it wanted."
            return EndpointError(
                f"{where} is too busy ({refused.status}: {said}).",
                why,
                "Measure a server that nobody else uses.",
            )
        return EndpointError(
            f"{where}{refused.path} answered {refused.status}: {said}.",
            "" if refused.status < 500 else "The server failed; its own log says more.",
            "--completions and --chat choose the route; a smaller --scale asks for less.",
        )


class Busy(Refused):
    """The endpoint asks to come again later."""

    def __init__(self, status: int, path: str, message: str, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(status, path, message)


def require_success(answer: httpx.Response, path: str) -> None:
    """Raise Refused (Busy for 429 and 503), with the server's own words, unless it answered with 200."""
    if answer.status_code == httpx.codes.OK:
        return
    answer.read()
    message = _message(answer)
    if answer.status_code in _BUSY:
        raise Busy(answer.status_code, path, message, retry_after_s(answer.headers.get("Retry-After")))
    raise Refused(answer.status_code, path, message)


def retry_after_s(header: str | None) -> float:
    """Return the seconds that a `Retry-After` asks for (a number or a date), at most a minute."""
    wait_s = _WAIT_S
    if header:
        with suppress(ValueError, TypeError):
            wait_s = (
                float(header)
                if header.strip().replace(".", "", 1).isdigit()
                else parsedate_to_datetime(header).timestamp() - time.time()
            )
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)


def is_context(refused: Refused) -> bool:
    """Tell whether a request was refused for its length."""
    return refused.status in (400, 413, 422, 500) and any(
        word in refused.message.lower() for word in _CONTEXT_WORDS
    )


def _message(answer: httpx.Response) -> str:
    try:
        return error_text(answer.json()).rstrip(".")
    except ValueError:
        return " ".join(answer.text.split())[:200].rstrip(".") or answer.reason_phrase


def _is_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError) or "SSL" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
