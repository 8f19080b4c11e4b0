"""The streams of OpenAI's routes as a parser sees them: whatever comes, a sample or a clear failure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.workload.endpoint_facts import EndpointSample
from hottune.workload.facts import Request
from hottune.workload.openai_access import retry_after_s
from hottune.workload.openai_stream import error_text, read_stream
from hottune.workload.stream import Event, RequestFailed

REQUEST = Request(text="chat-bread", prompt_tokens=8, output_tokens=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("choices", "usage", "timings", "error", "delta", "text", "finish_reason", "content", "prompt_n")
NESTED = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
CHUNK = st.fixed_dictionaries(
    {},
    optional={
        "choices": JSON | st.lists(NESTED, max_size=2),
        "usage": JSON | st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON}),
        "timings": st.dictionaries(
            st.sampled_from(("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")), JSON | st.floats()
        ),
        "error": JSON,
    },
)


def read(events: list[Event]) -> EndpointSample:
    return read_stream(events, REQUEST, workload="chat", warmup=False, started_s=0.0)


def event(at_s: float, body: Any) -> Event:
    return Event(at_s, json.dumps(body).encode())


@given(st.lists(st.binary(max_size=20) | (CHUNK | JSON).map(lambda body: json.dumps(body).encode())))
def test_whatever_comes_is_a_sample_or_a_failure(pieces: list[bytes]) -> None:
    try:
        sample = read([Event(float(place), piece) for place, piece in enumerate(pieces)])
    except RequestFailed:
        return
    assert sample.output_tokens > 0 and sample.decode_ms > 0


@given(
    st.lists(st.integers(0, 4), min_size=2).filter(lambda sizes: sum(size > 0 for size in sizes) > 1),
    st.booleans(),
    st.sampled_from(("text", "content", "reasoning_content", "reasoning")),
)
def test_tokens_and_times_do_not_depend_on_the_chunks(sizes: list[int], usage: bool, where: str) -> None:
    """A chunk of size 0 has no text; times are those of the chunks that have some."""
    events = []
    for place, size in enumerate(sizes):
        piece = "x " * size
        choice = {"text": piece} if where == "text" else {"delta": {where: piece}}
        events.append(event(1.0 + place, {"choices": [choice]}))
    end = float(len(sizes))
    events.append(event(end, {"choices": [{"text": "", "finish_reason": "length"}]}))
    if usage:
        told = {"prompt_tokens": 8, "completion_tokens": sum(sizes)}
        events.append(event(end, {"choices": [], "usage": told}))
    sample = read(events)
    filled = [place for place, size in enumerate(sizes) if size]
    assert sample.output_tokens == (sum(sizes) if usage else len(filled))
    assert sample.ttft_ms == pytest.approx(1000 * (1 + filled[0]))
    last = len(sizes) - 1 if usage else filled[-1]
    assert sample.decode_ms == pytest.approx(1000 * (last - filled[0]))


@given(st.none() | st.text(max_size=30) | st.integers(-9, 10**9).map(str))
def test_no_wait_is_negative_or_endless(header: str | None) -> None:
    assert 0 <= retry_after_s(header) <= 60


def test_times_that_are_no_times_are_left_out() -> None:
    texts = [event(at, {"choices": [{"text": "x"}]}) for at in (1.0, 2.0)]
    times = b'{"prompt_n": Infinity, "prompt_ms": 1, "predicted_n": 2, "predicted_ms": 1}'
    end = b'{"choices": [], "timings": ' + times + b"}"
    assert read([*texts, Event(2.0, end), Event(2.0, b"[DONE]")]).server is None


def test_a_wait_may_be_a_date() -> None:
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "a", "code": 400}}, "a"),
        ({"error": "b"}, "b"),
        ({"object": "error", "message": "c"}, "c"),
        ({"detail": "d"}, "d"),
    ],
)
def test_the_servers_words_are_found_wherever_they_stand(body: Any, said: str) -> None:
    assert error_text(body) == said
