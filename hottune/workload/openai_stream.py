"""Reading the event stream of OpenAI's completion routes, as different servers write it.

Nothing here does I/O, and everything is parsed after the last event has come in (see `stream`).

A chunk counts as tokens when it has text: `text` of completions, `content` or `reasoning_content` (or
`reasoning`) of chats. A first chunk with a role alone, empty chunks, and the last one with `usage` do not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hottune.workload.endpoint_facts import EndpointSample, ServerTimes
from hottune.workload.facts import Request
from hottune.workload.stream import NO_CHARACTER, Event, RequestFailed, WrongAnswer, parse_event

_REASONING = ("reasoning_content", "reasoning")


@dataclass
class _Read:
    """What was found in the events so far."""

    text: list[str]
    at_s: list[float]  # arrival of each chunk with text
    end_s: float = 0.0  # arrival of the chunk that says why it ended
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    done: bool = False


def read_stream(
    events: Sequence[Event], request: Request, *, workload: str, warmup: bool, started_s: float
) -> EndpointSample:
    """Turn the events of one request into a sample.

    Raises:
        RequestFailed: an error event, or a stream that was cut: neither `[DONE]` nor a reason why it ended.
        WrongAnswer: what came is not OpenAI's stream, or has no text, or less than two tokens of it.
    """
    read = _read(events)
    if not read.at_s:
        raise WrongAnswer(f"an answer without any text ({read.finish_reason or 'no reason given'})")
    text = "".join(read.text)
    if not text.strip(NO_CHARACTER):
        raise WrongAnswer(f"an answer of no characters: {text[:20]!r}")
    output_tokens = _count(read.usage, "completion_tokens")
    counted = output_tokens is not None and output_tokens > 0
    tokens = output_tokens if counted and output_tokens is not None else len(read.at_s)
    # A last token may have no text (end of sequence): usage counts it, so its moment is that of the end.
    last_s = max(read.at_s[-1], read.end_s) if counted else read.at_s[-1]
    if len(read.at_s) < 2 or last_s <= read.at_s[0]:
        raise WrongAnswer(
            f"{tokens} tokens in {len(read.at_s)} chunks ({read.finish_reason or 'no reason given'}): from "
            "one moment no decode speed can be told"
        )
    prompt_tokens = _count(read.usage, "prompt_tokens")
    return EndpointSample(
        workload=workload,
        warmup=warmup,
        asked_prompt_tokens=request.prompt_tokens,
        asked_output_tokens=request.output_tokens,
        prompt_tokens=prompt_tokens or None,
        cached_tokens=min(_cached(read.usage), prompt_tokens or 0),
        output_tokens=tokens,
        counted="usage" if counted else "chunks",
        finish_reason=read.finish_reason,
        ttft_ms=read.at_s[0] * 1000,
        decode_ms=(last_s - read.at_s[0]) * 1000,
        turn_s=events[-1].at_s,
        started_s=started_s,
        chunk_ms=[round((after - before) * 1000, 4) for before, after in pairwise(read.at_s)],
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        server=_server_times(read.timings),
    )


def prompt_tokens_told(events: Sequence[Event]) -> int | None:
    """Return the prompt tokens that a stream's usage tells; None when it tells none.

    Raises:
        RequestFailed: as `read_stream`.
        WrongAnswer: what came is not OpenAI's stream.
    """
    return _count(_read(events).usage, "prompt_tokens") or None


def error_text(body: Any) -> str:
    """Return the message of an error body: OpenAI's `error.message`, or `message` or `detail` beside it."""
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return error_text(body[key])
    return str(body)[:300]


def _read(events: Sequence[Event]) -> _Read:
    read = _Read([], [])
    for event in events:
        if event.data == b"[DONE]":
            read.done = True
            break
        _take(read, event)
    if not read.done and not read.finish_reason:
        raise RequestFailed(f"the stream broke after {len(read.at_s)} chunks of text, without an end")
    return read


def _take(read: _Read, event: Event) -> None:
    body = parse_event(event.data)
    if body.get("error"):
        raise RequestFailed(f"the server broke off with an error: {error_text(body)}")
    if isinstance(body.get("usage"), dict):
        read.usage = body["usage"]
    if isinstance(body.get("timings"), dict):
        read.timings = body["timings"]
    choices = body.get("choices")
    if not isinstance(choices, list):
        if read.usage is None and read.timings is None:
            raise WrongAnswer(f"an event has no choices: {event.data[:80]!r}")
        return
    for choice in choices:
        if not isinstance(choice, dict):
            raise WrongAnswer(f"a choice is no object: {event.data[:80]!r}")
        if piece := _text(choice):
            read.text.append(piece)
            read.at_s.append(event.at_s)
        if choice.get("finish_reason"):
            read.finish_reason, read.end_s = str(choice["finish_reason"]), event.at_s


def _text(choice: dict[str, Any]) -> str:
    """Return what a choice adds to the text, thoughts included: they are decoded as the answer is."""
    if isinstance(choice.get("text"), str):
        return str(choice["text"])
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return ""
    thought = next((delta[key] for key in _REASONING if isinstance(delta.get(key), str)), "")
    content = delta.get("content")
    return thought + (content if isinstance(content, str) else "")


def _count(usage: dict[str, Any] | None, key: str) -> int | None:
    value = usage.get(key) if usage else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _cached(usage: dict[str, Any] | None) -> int:
    details = usage.get("prompt_tokens_details") if usage else None
    return _count(details, "cached_tokens") or 0 if isinstance(details, dict) else 0


def _server_times(timings: dict[str, Any] | None) -> ServerTimes | None:
    """Return llama-server's `timings`; None when there are none, or not of that kind."""
    names = ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
    values = [timings.get(name) if timings else None for name in names]
    if not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
        return None
    n_prompt, prompt_ms, n_output, output_ms = (float(value or 0) for value in values)
    return ServerTimes(
        prompt_tokens=int(n_prompt), prefill_ms=prompt_ms, output_tokens=int(n_output), decode_ms=output_ms
    )
