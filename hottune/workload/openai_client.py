"""Driving an OpenAI-compatible endpoint: which requests it takes, and the workload in its waves.

Servers differ in what they accept, so the first thing is to find out (`settle`), with requests for two
tokens. What is asked for is what llama-server is asked for in `client`: the same texts, temperature, seed
and number of tokens.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from hottune.errors import EndpointError
from hottune.workload.client import TEMPERATURE, TOP_K, announcement, collect, failure_of
from hottune.workload.endpoint_facts import EndpointSample, Route
from hottune.workload.facts import Request, Workload
from hottune.workload.openai_access import Access, Refused, is_context, require_success
from hottune.workload.openai_stream import prompt_tokens_told, read_stream
from hottune.workload.stream import Event, RequestFailed, WrongAnswer
from hottune.workload.together import together

ROUTES: tuple[Route, ...] = ("completions", "chat/completions")
_PROBE_TOKENS = 2
#: Groups of fields that not every server takes, in the order in which they are left out.
_EXTENSIONS, _SEED, _USAGE = "extensions", "seed", "usage"
_LEVELS: tuple[tuple[str, ...], ...] = ((_EXTENSIONS, _SEED, _USAGE), (_SEED, _USAGE), (_USAGE,), ())


@dataclass(frozen=True)
class Dialect:
    """What an endpoint was found to take and to tell."""

    model: str
    route: Route
    fields: tuple[str, ...]  # groups of optional fields that it takes
    tells_usage: bool

    def body(self, prompt: str, output_tokens: int, seed: int) -> dict[str, Any]:
        """Return an uncached request for so many tokens, drawn with a fixed seed if it takes one."""
        what: dict[str, Any] = (
            {"prompt": prompt}
            if self.route == "completions"
            else {"messages": [{"role": "user", "content": prompt}]}
        )
        body = {
            "model": self.model,
            **what,
            "max_tokens": output_tokens,
            "temperature": TEMPERATURE,
            "stream": True,
        }
        if _SEED in self.fields:
            body |= {"seed": seed}
        if _USAGE in self.fields:
            body |= {"stream_options": {"include_usage": True}}
        if _EXTENSIONS in self.fields:
            # Of vLLM and llama.cpp; others ignore them, or refuse them and are asked without.
            body |= {
                "ignore_eos": True,
                "min_tokens": output_tokens,
                "top_k": TOP_K,
                "samplers": ["top_k", "temperature"],
                "cache_prompt": False,
            }
        return body


def fresh(text: str) -> str:
    """Return a prompt that no server can have cached: it begins with a number drawn anew."""
    return f"{secrets.token_hex(4)}\n\n{text}"


def settle(access: Access, http: httpx.Client, model: str, route: Route | None) -> Dialect:
    """Find the route and the fields that the endpoint takes.

    Args:
        access: to the endpoint.
        http: its client.
        model: what to ask for.
        route: the one to take; None = completions where it is, else chat.

    Raises:
        EndpointError: it takes none; the message says what it answered.
    """
    refused: Refused | None = None
    for one in (route,) if route else ROUTES:
        for fields in _LEVELS:
            dialect = Dialect(model, one, fields, tells_usage=False)
            try:
                told = ask(access, http, dialect, fresh("Tell me about bread."))
            except Refused as error:
                if error.status in (404, 405, 501):
                    refused = refused or error
                    break  # the next route
                refused = error
                if error.status not in (400, 422) or is_context(error):
                    raise access.refusal(error) from error
                continue
            return Dialect(model, one, fields, tells_usage=told is not None)
    if refused is None:
        raise AssertionError("no route was tried")
    raise access.refusal(refused) from refused


def ask(access: Access, http: httpx.Client, dialect: Dialect, prompt: str) -> int | None:
    """Send a request for two tokens, not for its speed; return how many tokens its prompt had, if told.

    Raises:
        Refused: the endpoint does not take it.
        EndpointError: it cannot be reached, or answers with what is no stream.
    """
    body = dialect.body(prompt, _PROBE_TOKENS, seed=0)
    try:
        _, events = access.patiently(partial(_stream, access, http, dialect.route, body))
        return prompt_tokens_told(events)
    except RequestFailed as failure:
        raise failed(access, failure) from failure


def drive_endpoint(
    access: Access,
    dialect: Dialect,
    workload: Workload,
    cut: Callable[[Request], str],
    *,
    on_progress: Callable[[str], None] | None = None,
) -> list[EndpointSample]:
    """Send every request of `workload` once, in its waves, and return one sample each, in order.

    Args:
        access: to the endpoint.
        dialect: from `settle`.
        workload: what to send.
        cut: gives the text of a request; each is sent with a beginning of its own.
        on_progress: gets one line before each wave.

    Raises:
        EndpointError: it did not answer one of them as asked.
    """
    samples: list[EndpointSample] = []
    prompts = [fresh(cut(request)) for request in workload.requests]
    total = len(prompts)
    with ExitStack() as closing:
        clients = [closing.enter_context(access.client()) for _ in range(workload.parallel)]
        given_up = threading.Event()
        closing.callback(given_up.set)  # first of all: no other request of a wave goes on after a failure
        epoch = time.perf_counter()
        for first in range(0, total, workload.parallel):
            wave = range(first, min(first + workload.parallel, total))
            if on_progress:
                on_progress(announcement(workload, wave))
            jobs = [
                partial(
                    access.patiently,
                    partial(
                        _stream,
                        access,
                        client,
                        dialect.route,
                        dialect.body(prompts[index], workload.requests[index].output_tokens, workload.seed),
                        given_up,
                    ),
                )
                for client, index in zip(clients, wave, strict=False)
            ]
            try:
                for index, (start, events) in zip(wave, together(jobs), strict=True):
                    request = workload.requests[index]
                    samples.append(
                        read_stream(
                            events,
                            request,
                            workload=request.kind or workload.name,
                            warmup=index < workload.warmup_requests,
                            started_s=start - epoch,
                        )
                    )
            except Refused as refused:
                raise access.refusal(refused) from refused
            except RequestFailed as failure:
                raise failed(access, failure, f"request {wave[0] + 1} of {total}") from failure
    return samples


def failed(access: Access, failure: RequestFailed, which: str = "a first request") -> EndpointError:
    """Return the error of a request that was taken and then not answered as asked."""
    if isinstance(failure, WrongAnswer):
        why = "It does not stream as OpenAI's servers do, or its model has nothing to say."
        next_step = "--chat or --completions choose the other route."
    elif failure.timed_out:
        why = "It is slower than that, or hangs."
        next_step = "Use a smaller --scale, or a longer --timeout."
    else:
        why = "The server died or was restarted, or something between here and there hung up."
        next_step = "Its own log says more; run the same command again."
    return EndpointError(f"{access.url.shown}, {which}: {failure.detail}.", why, next_step)


def _stream(
    access: Access,
    http: httpx.Client,
    route: Route,
    body: dict[str, Any],
    given_up: threading.Event | None = None,
) -> tuple[float, list[Event]]:
    """Send one request; return when it started (`time.perf_counter`) and its events with their arrival."""
    events: list[Event] = []
    given_up = given_up or threading.Event()
    start = time.perf_counter()
    try:
        with http.stream("POST", f"/{route}", json=body) as answer:
            require_success(answer, f"/{route}")
            kind = answer.headers.get("Content-Type", "")
            if kind.startswith("application/json"):
                raise WrongAnswer("the answer is no stream but one JSON document")
            collect(answer, events, start=start, timeout_s=access.timeout_s, given_up=given_up)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise access.unreachable(error) from error
    except httpx.HTTPError as error:
        raise failure_of(error, len(events)) from error
    return start, events
