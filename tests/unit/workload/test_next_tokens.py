"""Scoring a text token by token: what is asked, and which answers are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_server import FakeServer

from hottune.workload.next_tokens import TOP, CannotScore, require_finite, score
from hottune.workload.stream import RequestFailed, WrongAnswer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


def test_each_position_is_one_step_after_the_prefix(server: FakeServer) -> None:
    found = score(server.base_url, context=256, positions=5)
    assert [len(body["prompt"]) for body in server.requests] == [160, 161, 162, 163, 164]
    assert [body["cache_prompt"] for body in server.requests] == [False, True, True, True, True]
    assert all(body["prompt"][:160] == server.requests[0]["prompt"] for body in server.requests)
    assert all(body["n_predict"] == 1 and body["n_probs"] == TOP for body in server.requests)
    assert not any(body["post_sampling_probs"] for body in server.requests)
    assert all(body["logit_bias"][0][0] == 100 for body in server.requests), "a whole word is chosen"
    assert found.prefix_tokens == 160
    assert found.tops == [{7: -0.5, 3: -1.5}] * 5


def test_what_llama_server_writes_for_no_probability_at_all_is_left_out(server: FakeServer) -> None:
    server.top = [{"id": 7, "logprob": 0.0}, {"id": 3, "logprob": -3.4028234663852886e38}]
    assert score(server.base_url, context=256, positions=1).tops == [{7: 0.0}]


def test_a_server_that_begins_anew_each_time_cannot_be_scored(server: FakeServer) -> None:
    server.window = 9999
    with pytest.raises(CannotScore, match="1101 tokens"):
        score(server.base_url, context=4096, positions=3)


def test_attention_with_a_window_is_scored_beyond_it(server: FakeServer) -> None:
    server.window = 1024
    assert score(server.base_url, context=4096, positions=3).prefix_tokens == 1100


@pytest.mark.parametrize(("context", "asked"), [(163, 0), (164, 3)])
def test_a_context_too_short_is_not_tried(server: FakeServer, context: int, asked: int) -> None:
    if asked:
        score(server.base_url, context=context, positions=3)
    else:
        with pytest.raises(CannotScore, match="too short"):
            score(server.base_url, context=context, positions=3)
    assert len(server.requests) == asked


def test_a_look_sees_the_logits_of_a_prompt_and_of_a_step(server: FakeServer) -> None:
    require_finite(server.base_url)
    (body,) = server.requests
    assert (len(body["prompt"]), body["n_predict"], body["cache_prompt"]) == (2, 2, False)


@pytest.mark.parametrize(
    "top",
    [
        [{"id": 7, "logprob": None}],  # how JSON tells NaN
        [{"id": 7, "logprob": -0.5}, {"id": 3, "logprob": None}],
        [{"id": 7, "logprob": 0.7}],
        [{"id": "x", "logprob": -0.5}],
        [{"id": 7}],
        [],
        None,
    ],
)
def test_probabilities_that_are_none_are_garbage(server: FakeServer, top: object) -> None:
    server.top = top  # type: ignore[assignment]
    with pytest.raises(WrongAnswer):
        score(server.base_url, context=256, positions=2)
    with pytest.raises(WrongAnswer):
        require_finite(server.base_url)


def test_a_refusal_is_a_failed_request(server: FakeServer) -> None:
    server.completion_status = 500
    with pytest.raises(RequestFailed, match="out of slots") as failed:
        score(server.base_url, context=256, positions=2)
    assert not isinstance(failed.value, WrongAnswer)
