"""Reading /completion's events: token counts, gaps, and every way in which a stream can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.outcomes import RequestSample
from hottune.workload.stream import Event, RequestFailed, WrongAnswer, read_sample


def stream(arrivals_ms: list[float], counts: list[int], **final: Any) -> list[Event]:
    """Events that bring the token count to each of `counts`, then the final event a millisecond later."""
    events = [
        event(at, content="x", tokens=[n], stop=False, tokens_predicted=n)
        for at, n in zip(arrivals_ms, counts, strict=True)
    ]
    timings = {"prompt_n": 10, "prompt_ms": 5.0, "predicted_n": counts[-1], "predicted_ms": 7.0}
    body = {"content": "", "tokens": [], "stop": True, "tokens_predicted": counts[-1], "timings": timings}
    return [*events, event(arrivals_ms[-1] + 1, **(body | final))]


def event(at_ms: float, **body: Any) -> Event:
    return Event(at_ms / 1000, json.dumps(body).encode())


def read(events: list[Event], output_tokens: int) -> RequestSample:
    return read_sample(events, workload="chat", warmup=False, prompt_tokens=10, output_tokens=output_tokens)


def test_the_first_tokens_wait_is_no_gap() -> None:
    sample = read(stream([50, 60, 80], [1, 2, 3]), 3)
    assert sample.ttft_ms == pytest.approx(50)
    assert sample.token_ms == pytest.approx([10, 20])
    assert sample.turn_s == pytest.approx(0.081)


def test_tokens_that_come_together_share_their_gap() -> None:
    sample = read(stream([50, 90, 100], [1, 3, 4]), 4)
    assert sample.token_ms == pytest.approx([20, 20, 10])


def test_a_last_token_without_an_event_of_its_own_ends_with_the_stream() -> None:
    events = stream([50, 60], [1, 2], tokens_predicted=3)
    timings = {"prompt_n": 10, "prompt_ms": 5.0, "predicted_n": 3, "predicted_ms": 7.0}
    events[-1] = event(75, stop=True, tokens_predicted=3, timings=timings)
    assert read(events, 3).token_ms == pytest.approx([10, 15])


def test_the_text_hash_does_not_depend_on_when_tokens_arrive() -> None:
    assert read(stream([1, 2], [1, 2]), 2).text_sha256 == read(stream([5, 9], [1, 2]), 2).text_sha256


def test_the_text_hash_depends_on_the_token_ids_and_not_on_the_text_alone() -> None:
    events = stream([1, 2], [1, 2])
    other = [event(1, content="x", tokens=[9], stop=False, tokens_predicted=1), *events[1:]]
    assert read(other, 2).text_sha256 != read(events, 2).text_sha256


@pytest.mark.parametrize("data", [b"{", b"[]", b"17", b"\xff", b""])
def test_what_is_not_a_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(RequestFailed, match="an event is not"):
        read([Event(0.0, data)], 1)


def test_a_stream_without_timings_is_refused() -> None:
    with pytest.raises(RequestFailed, match="no timings"):
        read(stream([1], [1], timings=None), 1)


def test_a_stream_without_a_single_token_is_refused() -> None:
    with pytest.raises(RequestFailed, match="ended after 0 of 1 tokens"):
        read([event(1, stop=True, tokens_predicted=0, timings={})], 1)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_garbage_never_becomes_a_sample(chunks: list[bytes]) -> None:
    with pytest.raises(RequestFailed):
        read([Event(0.1, chunk) for chunk in chunks], 4)


VALUES = st.sampled_from([None, True, 1.5, -3, 1e400, "x", [], [1], [None], {}, {"a": 1}])
KEYS = st.sampled_from(["content", "tokens", "stop", "tokens_predicted", "timings", "error", "truncated"])


@given(st.lists(st.dictionaries(KEYS, VALUES), max_size=4))
def test_events_of_strange_types_are_refused_and_never_crash_the_reader(bodies: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestFailed):
        read([event(1, **body) for body in bodies], 4)


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 4)), min_size=1, max_size=30))
def test_gaps_cover_every_token_after_the_first_event_and_all_of_the_time(
    parts: list[tuple[float, int]],
) -> None:
    arrivals, counts, now, total = [], [], 0.0, 0
    for gap_ms, n_tokens in parts:
        now, total = now + gap_ms, total + n_tokens
        arrivals.append(now)
        counts.append(total)
    sample = read(stream(arrivals, counts), total)
    assert len(sample.token_ms) == total - counts[0]
    assert sum(sample.token_ms) == pytest.approx(arrivals[-1] - arrivals[0], abs=1e-6)


@pytest.mark.parametrize("content", ["", "\ufffd"])
def test_tokens_without_any_text_are_garbage(content: str) -> None:
    def answer(*ids: int) -> list[Event]:
        parts = [
            event(n, content=content, tokens=[token], stop=False, tokens_predicted=n)
            for n, token in enumerate(ids, start=1)
        ]
        return [*parts, stream([1, 2], [1, 2])[-1]]

    with pytest.raises(WrongAnswer, match="no text"):
        read(answer(7, 7), 2)
    # A synthetic model has no words for most of its tokens.
    assert read(answer(7, 8), 2).output_tokens == 2


def test_other_counts_than_asked_for_are_garbage_but_an_error_is_a_failure() -> None:
    with pytest.raises(WrongAnswer, match="2 tokens generated"):
        read(stream([1, 2], [1, 2]), 3)
    with pytest.raises(RequestFailed) as failed:
        read([event(1, error={"message": "Compute error."})], 2)
    assert not isinstance(failed.value, WrongAnswer)


def test_a_stream_that_does_not_count_has_a_token_an_event() -> None:
    timings = {"prompt_n": 10, "prompt_ms": 5.0, "predicted_n": 4, "predicted_ms": 7.0}
    events = [event(at, content="x", stop=False) for at in (50, 60, 80)]
    events.append(event(81, content="", stop=True, tokens_predicted=4, timings=timings))
    sample = read_sample(
        events, workload="chat", warmup=False, prompt_tokens=10, output_tokens=4, token_counts=False
    )
    assert sample.ttft_ms == pytest.approx(50)
    assert sample.token_ms == pytest.approx([10, 20])
    with pytest.raises(WrongAnswer, match="no number 'tokens_predicted'"):
        read(events, 4)
    with pytest.raises(WrongAnswer, match="4 tokens generated"):
        read_sample(
            events, workload="chat", warmup=False, prompt_tokens=10, output_tokens=5, token_counts=False
        )
