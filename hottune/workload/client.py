"""Driving llama-server: cut the texts to length with its tokenizer, send the requests, time the streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx

from hottune.errors import BadSettingError
from hottune.outcomes import RequestSample
from hottune.workload.facts import Request, Workload
from hottune.workload.stream import Event, RequestFailed, WrongAnswer, error_message, read_sample
from hottune.workload.texts import load_text
from hottune.workload.together import together

__all__ = ["RequestFailed", "WrongAnswer", "drive"]

CONNECT_TIMEOUT_S = 10.0
TEMPERATURE = 0.7
TOP_K = 40


def drive(
    base_url: str,
    workload: Workload,
    *,
    on_progress: Callable[[str], None] | None = None,
    request_timeout_s: float = 600.0,
    token_counts: bool = True,
) -> list[RequestSample]:
    """Send every request of `workload`, in its waves, and return one sample each, in order.

    Args:
        base_url: where llama-server listens, for example `http://127.0.0.1:8080`.
        workload: what to send.
        on_progress: gets one line before each wave (never during one: that would be measured too).
        request_timeout_s: seconds that one request may take. A server that goes silent in the middle is
            given up this long after its last byte.
        token_counts: whether every event of its streams tells how many tokens there are so far.

    Raises:
        RequestFailed: the server died, answered with an error, or took too long.
        WrongAnswer: it did not process and generate exactly the asked number of tokens, or no text.
        BadSettingError: a text has fewer tokens, with this model's tokenizer, than the workload needs.
    """
    # The environment's proxies are for the outside world, not for a server on this machine.
    timeout = httpx.Timeout(request_timeout_s, connect=min(CONNECT_TIMEOUT_S, request_timeout_s))
    # llama-server hangs up after a stream, so a kept connection would break under the next request.
    headers = {"Connection": "close"}
    with ExitStack() as closing:
        clients = [
            closing.enter_context(
                httpx.Client(base_url=base_url, timeout=timeout, headers=headers, trust_env=False)
            )
            for _ in range(workload.parallel)
        ]
        prompts = [cut_prompt(clients[0], request) for request in workload.requests]
        given_up = threading.Event()
        closing.callback(given_up.set)  # first of all: no other request of a wave goes on after a failure
        samples: list[RequestSample] = []
        epoch = time.perf_counter()
        for first in range(0, len(prompts), workload.parallel):
            wave = range(first, min(first + workload.parallel, len(prompts)))
            if on_progress:
                on_progress(announcement(workload, wave))
            jobs = [
                partial(
                    _complete,
                    client,
                    prompts[index],
                    workload.requests[index].output_tokens,
                    workload.seed,
                    request_timeout_s,
                    given_up,
                )
                for client, index in zip(clients, wave, strict=False)
            ]
            for index, (start, events) in zip(wave, together(jobs), strict=True):
                request = workload.requests[index]
                samples.append(
                    read_sample(
                        events,
                        workload=request.kind or workload.name,
                        warmup=index < workload.warmup_requests,
                        prompt_tokens=request.prompt_tokens,
                        output_tokens=request.output_tokens,
                        started_s=start - epoch,
                        token_counts=token_counts,
                    )
                )
    return samples


def announcement(workload: Workload, wave: range) -> str:
    """Return what is told before a wave: `request 2 of 4: code-cpp, 20 tokens in, 8 out`."""
    total = len(workload.requests)
    cold = " (warm-up)" if wave[0] < workload.warmup_requests else ""
    if len(wave) == 1:
        request = workload.requests[wave[0]]
        lengths = f"{request.prompt_tokens} tokens in, {request.output_tokens} out"
        return f"request {wave[0] + 1} of {total}{cold}: {request.text}, {lengths}"
    return f"requests {wave[0] + 1} to {wave[-1] + 1} of {total} at once{cold}"


def completion_body(prompt: list[int], output_tokens: int, seed: int) -> dict[str, Any]:
    """Return the body of an uncached request for exactly `output_tokens` tokens, drawn with a fixed seed."""
    return {
        # Token ids, not text: the server adds nothing to them and the length is exact.
        "prompt": prompt,
        "n_predict": output_tokens,
        "ignore_eos": True,
        "stop": [],
        "cache_prompt": False,
        "stream": True,
        "return_tokens": True,
        # Equal logits give equal text, as with greedy decoding; but that runs into loops, and what repeats
        # flatters a cache.
        "samplers": ["top_k", "temperature"],
        "top_k": TOP_K,
        "temperature": TEMPERATURE,
        "seed": seed,
    }


def cut_prompt(http: httpx.Client, request: Request) -> list[int]:
    """Return the ids of the text's part, with a beginning-of-sequence token first if the model has one.

    That token counts: the prompt is exactly `prompt_tokens` long.
    """
    ids = tokenize(http, load_text(request.text))
    first, last = request.offset_tokens, request.offset_tokens + request.prompt_tokens
    if len(ids) < last:
        raise BadSettingError(
            f"The text '{request.text}' has {len(ids)} tokens with this model; the workload needs {last}.",
            "Texts are never repeated: repetition would flatter a cache.",
            "Use a smaller scale.",
        )
    if first == 0:
        return ids[:last]
    special = tokenize(http, "")[:1]  # what stands before any text
    begin = special if special == ids[:1] else []
    return [*begin, *ids[first + len(begin) : last]]


def tokenize(http: httpx.Client, text: str, *, special: bool = True) -> list[int]:
    """Return a text's token ids.

    Args:
        http: leads to the server.
        text: plain text.
        special: with a beginning-of-sequence token where the model has one.

    Raises:
        RequestFailed: the server is gone or refused.
        WrongAnswer: it gave something else than token ids.
    """
    body = {"content": text, "add_special": special, "parse_special": False}
    try:
        answer = http.post("/tokenize", json=body)
    except httpx.HTTPError as error:
        raise failure_of(error) from error
    require_ok(answer)
    try:
        ids = answer.json()["tokens"]
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswer(f"/tokenize gave no tokens: {answer.text[:80]!r}") from error
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise WrongAnswer("/tokenize gave something else than token ids")
    return ids


def _complete(
    http: httpx.Client,
    prompt: list[int],
    output_tokens: int,
    seed: int,
    timeout_s: float,
    given_up: threading.Event,
) -> tuple[float, list[Event]]:
    """Send one request; return when it started (`time.perf_counter`) and its events with their arrival."""
    events: list[Event] = []
    if given_up.is_set():
        raise RequestFailed("not sent, for another request failed")
    start = time.perf_counter()
    try:
        with http.stream("POST", "/completion", json=completion_body(prompt, output_tokens, seed)) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
            require_ok(answer)
            collect(answer, events, start=start, timeout_s=timeout_s, given_up=given_up)
    except httpx.HTTPError as error:
        raise failure_of(error, len(events)) from error
    return start, events


def collect(
    answer: httpx.Response,
    events: list[Event],
    *,
    start: float,
    timeout_s: float,
    given_up: threading.Event,
) -> None:
    """Append the events of a stream, each with its arrival, until it ends; comments are left out.

    Args:
        answer: open, its body unread.
        events: what came before an error stays in it.
        start: when the request was sent (`time.perf_counter`).
        timeout_s: seconds that the whole request may take.
        given_up: set when another request of the wave failed.

    Raises:
        RequestFailed: it took too long, or was given up.
        httpx.HTTPError: the connection broke.
    """
    rest = b""
    for chunk in answer.iter_raw():
        at_s = time.perf_counter() - start
        # Split at \n alone: JSON leaves other line separators inside the text as they are.
        *lines, rest = (rest + chunk).split(b"\n")
        events += [Event(at_s, line[5:].strip()) for line in lines if line.startswith(b"data:")]
        if given_up.is_set():
            raise RequestFailed("given up, for another request failed")
        if at_s > timeout_s:
            raise RequestFailed(f"no end after {timeout_s:g} s, {len(events)} events", timed_out=True)


def require_ok(answer: httpx.Response) -> None:
    """Raise RequestFailed, with the server's own words, unless it answered with 200."""
    if answer.status_code == httpx.codes.OK:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    message = error_message(body) if isinstance(body, dict) else answer.text[:200]
    raise RequestFailed(f"the server answered {answer.request.url.path} with {answer.status_code}: {message}")


def failure_of(error: httpx.HTTPError, n_events: int = 0) -> RequestFailed:
    """Return what a broken connection or a time-out means."""
    timed_out = isinstance(error, httpx.TimeoutException)
    what = "the server went silent" if timed_out else "the connection to the server broke"
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return RequestFailed(f"{what} after {n_events} events ({reason})", timed_out=timed_out)
