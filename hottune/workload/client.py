"""Driving llama-server: cut the texts to length with its tokenizer, send the requests, time the streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from hottune.errors import BadSettingError
from hottune.outcomes import RequestSample
from hottune.workload.facts import Request, Workload
from hottune.workload.stream import Event, RequestFailed, error_message, read_sample
from hottune.workload.texts import load_text

__all__ = ["RequestFailed", "drive"]

CONNECT_TIMEOUT_S = 10.0


def drive(
    base_url: str,
    workload: Workload,
    *,
    on_progress: Callable[[str], None] | None = None,
    request_timeout_s: float = 600.0,
) -> list[RequestSample]:
    """Send every request of `workload`, one after another, and return one sample each.

    Args:
        base_url: where llama-server listens, for example `http://127.0.0.1:8080`.
        workload: what to send.
        on_progress: gets one line before each request (never during one: that would be measured too).
        request_timeout_s: seconds that one request may take. A server that goes silent in the middle is
            given up this long after its last byte.

    Raises:
        RequestFailed: the server died, answered with an error, took too long, or did not process and
            generate exactly the asked number of tokens.
        BadSettingError: a text has fewer tokens, with this model's tokenizer, than the workload needs.
    """
    # The environment's proxies are for the outside world, not for a server on this machine.
    timeout = httpx.Timeout(request_timeout_s, connect=min(CONNECT_TIMEOUT_S, request_timeout_s))
    # llama-server hangs up after a stream, so a kept connection would break under the next request.
    headers = {"Connection": "close"}
    with httpx.Client(base_url=base_url, timeout=timeout, headers=headers, trust_env=False) as http:
        prompts = [_prompt(http, request) for request in workload.requests]
        samples = []
        for index, (request, prompt) in enumerate(zip(workload.requests, prompts, strict=True)):
            warmup = index < workload.warmup_requests
            if on_progress:
                cold = " (warm-up)" if warmup else ""
                on_progress(
                    f"request {index + 1} of {len(prompts)}{cold}: {request.text}, "
                    f"{request.prompt_tokens} tokens in, {request.output_tokens} out"
                )
            events = _complete(http, prompt, request.output_tokens, workload.seed, request_timeout_s)
            samples.append(
                read_sample(
                    events,
                    workload=request.kind or workload.name,
                    warmup=warmup,
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=request.output_tokens,
                )
            )
    return samples


def completion_body(prompt: list[int], output_tokens: int, seed: int) -> dict[str, Any]:
    """Return the body of a greedy, uncached request for exactly `output_tokens` tokens."""
    return {
        # Token ids, not text: the server adds nothing to them and the length is exact.
        "prompt": prompt,
        "n_predict": output_tokens,
        "ignore_eos": True,
        "stop": [],
        "cache_prompt": False,
        "stream": True,
        "return_tokens": True,
        # Greedy: the one sampler is "keep the most probable token", so no penalty can change the text.
        "samplers": ["top_k"],
        "top_k": 1,
        "temperature": 0.0,
        "seed": seed,
    }


def _prompt(http: httpx.Client, request: Request) -> list[int]:
    """Return the text's first `prompt_tokens` ids, counting a beginning-of-sequence token if there is one."""
    body = {"content": load_text(request.text), "add_special": True, "parse_special": False}
    try:
        answer = http.post("/tokenize", json=body)
    except httpx.HTTPError as error:
        raise _failed(error) from error
    _require_ok(answer)
    try:
        ids = answer.json()["tokens"]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestFailed(f"/tokenize gave no tokens: {answer.text[:80]!r}") from error
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise RequestFailed("/tokenize gave something else than token ids")
    if len(ids) < request.prompt_tokens:
        raise BadSettingError(
            f"The text '{request.text}' has {len(ids)} tokens with this model; "
            f"the workload needs {request.prompt_tokens}.",
            "Texts are never repeated: repetition would flatter a cache.",
            "Use a smaller scale.",
        )
    return ids[: request.prompt_tokens]


def _complete(
    http: httpx.Client, prompt: list[int], output_tokens: int, seed: int, timeout_s: float
) -> list[Event]:
    """Send one request and return its events with their times of arrival."""
    events: list[Event] = []
    rest = b""
    start = time.perf_counter()
    try:
        with http.stream("POST", "/completion", json=completion_body(prompt, output_tokens, seed)) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
            _require_ok(answer)
            for chunk in answer.iter_raw():
                at_s = time.perf_counter() - start
                # Split at \n alone: JSON leaves other line separators inside the text as they are.
                *lines, rest = (rest + chunk).split(b"\n")
                events += [Event(at_s, line[5:].strip()) for line in lines if line.startswith(b"data:")]
                if at_s > timeout_s:
                    raise RequestFailed(f"no end after {timeout_s:g} s, {len(events)} events", timed_out=True)
    except httpx.HTTPError as error:
        raise _failed(error, len(events)) from error
    return events


def _require_ok(answer: httpx.Response) -> None:
    if answer.status_code == httpx.codes.OK:
        return
    try:
        body = answer.json()
    except ValueError:
        body = None
    message = error_message(body) if isinstance(body, dict) else answer.text[:200]
    raise RequestFailed(f"the server answered {answer.request.url.path} with {answer.status_code}: {message}")


def _failed(error: httpx.HTTPError, n_events: int = 0) -> RequestFailed:
    timed_out = isinstance(error, httpx.TimeoutException)
    what = "the server went silent" if timed_out else "the connection to the server broke"
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return RequestFailed(f"{what} after {n_events} events ({reason})", timed_out=timed_out)
