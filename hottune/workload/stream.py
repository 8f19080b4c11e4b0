"""Reading the event stream of llama-server's /completion, and refusing any that is not what was asked for.

Nothing here does I/O. Events are parsed after the last one has come in, so that the client does not compete
with the server for a core while it measures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hottune.outcomes import RequestSample

#: What stands in a text for bytes that are no character.
NO_CHARACTER = "\ufffd"


class RequestFailed(Exception):
    """A request did not end as asked, so it is no measurement.

    Args:
        detail: what the server said or did.
        timed_out: true when it only took too long.
    """

    def __init__(self, detail: str, timed_out: bool = False) -> None:
        self.detail = detail
        self.timed_out = timed_out
        super().__init__(detail)


class WrongAnswer(RequestFailed):
    """A request ended, but not with what was asked for: the server runs on and answers garbage."""


@dataclass(frozen=True)
class Event:
    """One event of the stream."""

    at_s: float  # arrival, seconds after the request was sent
    data: bytes  # JSON


@dataclass(frozen=True)
class _Step:
    """The stream's state after an event that brought tokens."""

    at_s: float
    n_tokens: int


def read_sample(
    events: Sequence[Event],
    *,
    workload: str,
    warmup: bool,
    prompt_tokens: int,
    output_tokens: int,
    started_s: float = 0.0,
    token_counts: bool = True,
) -> RequestSample:
    """Turn the events of one request into a sample.

    The server sends no event for a token that ends in the middle of a UTF-8 character; the event after it
    carries both. Such a gap is shared equally by its tokens. The first token's wait is `ttft_ms` and not a
    gap. A server whose events do not count (`token_counts` false) sends one event a token; of how many there
    were its last event has the only word.

    Raises:
        RequestFailed: an error event, or a stream that was cut.
        WrongAnswer: what came is no answer: not JSON, no text, no usable times, or other token counts than
            asked for.
    """
    content: list[str] = []
    token_ids: list[int] = []
    steps: list[_Step] = []
    last: dict[str, Any] | None = None
    for event in events:
        if event.data == b"[DONE]":
            continue
        body = parse_event(event.data)
        if "error" in body:
            raise RequestFailed(f"the server answered with an error: {error_message(body)}")
        content.append(str(body.get("content", "")))
        token_ids += _token_ids(body)
        if token_counts:
            n_tokens = _number(body, "tokens_predicted")
        else:
            n_tokens = (steps[-1].n_tokens if steps else 0) + bool(body.get("content"))
        if n_tokens > (steps[-1].n_tokens if steps else 0):
            steps.append(_Step(event.at_s, int(n_tokens)))
        if body.get("stop") is True:
            last = body
            break
    if last is None or not steps:
        n_seen = steps[-1].n_tokens if steps else 0
        raise RequestFailed(f"the stream ended after {n_seen} of {output_tokens} tokens")
    timings = last.get("timings")
    if not isinstance(timings, dict):
        raise WrongAnswer("the last event has no timings")
    _check(last, timings, prompt_tokens, output_tokens)
    text = "".join(content)
    if not text.strip(NO_CHARACTER) and len(set(token_ids)) <= 1:
        # End-of-sequence is ignored, so even a model without anything to say writes something. A synthetic
        # model may have no words for its tokens, but draws different ones.
        raise WrongAnswer(f"{output_tokens} tokens, but no text: {text[:20]!r}")
    return RequestSample(
        workload=workload,
        warmup=warmup,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefill_ms=_positive(timings, "prompt_ms"),
        decode_ms=_positive(timings, "predicted_ms"),
        ttft_ms=steps[0].at_s * 1000,
        turn_s=event.at_s,
        token_ms=_gaps(steps),
        text_sha256=hashlib.sha256(json.dumps([text, token_ids]).encode()).hexdigest(),
        started_s=started_s,
        drafted=_count(timings, "draft_n"),
        draft_accepted=_count(timings, "draft_n_accepted"),
    )


def error_message(body: dict[str, Any]) -> str:
    """Return the message inside an error body, or the body itself when it has none."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or body)


def _gaps(steps: list[_Step]) -> list[float]:
    gaps: list[float] = []
    for before, after in pairwise(steps):
        n_tokens = after.n_tokens - before.n_tokens
        gaps += [(after.at_s - before.at_s) * 1000 / n_tokens] * n_tokens
    return gaps


def _check(last: dict[str, Any], timings: dict[str, Any], prompt_tokens: int, output_tokens: int) -> None:
    if last.get("truncated") is True:
        raise WrongAnswer(f"the context is too small for {prompt_tokens} tokens in, {output_tokens} out")
    n_prompt, n_output = _number(timings, "prompt_n"), _number(timings, "predicted_n")
    if n_prompt != prompt_tokens:
        cached = timings.get("cache_n", 0)
        raise WrongAnswer(f"{n_prompt:g} prompt tokens processed ({cached} cached), not {prompt_tokens}")
    if n_output != output_tokens:
        raise WrongAnswer(f"{n_output:g} tokens generated ({last.get('stop_type')}), not {output_tokens}")


def parse_event(data: bytes) -> dict[str, Any]:
    """Return the JSON object of an event.

    Raises:
        WrongAnswer: it is none.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise WrongAnswer(f"an event is not JSON: {data[:80]!r}") from error
    if not isinstance(body, dict):
        raise WrongAnswer(f"an event is not an object: {data[:80]!r}")
    return body


def _token_ids(body: dict[str, Any]) -> list[int]:
    token_ids = body.get("tokens", [])
    if not isinstance(token_ids, list):
        raise WrongAnswer(f"an event's tokens are no list: {token_ids!r}")
    return token_ids


def _number(body: dict[str, Any], key: str) -> float:
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WrongAnswer(f"an event has no number '{key}'")
    return value


def _count(body: dict[str, Any], key: str) -> int:
    """Return a number that the server leaves out when there is nothing to count."""
    return int(_number(body, key)) if key in body else 0


def _positive(body: dict[str, Any], key: str) -> float:
    value = _number(body, key)
    if value <= 0:
        raise WrongAnswer(f"the server's timing '{key}' is {value:g}")
    return value
