"""Driving a server: what is sent, what is measured, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from fake_server import FakeServer

from hottune.errors import BadSettingError
from hottune.outcomes import RequestSample
from hottune.workload.client import TEMPERATURE, TOP_K, RequestFailed, drive
from hottune.workload.facts import Request, Workload
from hottune.workload.workloads import make_workload


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


def small_workload(prompt_tokens: int = 20, output_tokens: int = 8) -> Workload:
    lengths = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    requests = [
        Request(text="chat-bread", kind="chat", **lengths),
        Request(text="code-cpp", kind="code", **lengths),
    ]
    return make_workload("test", requests)


def failure(server: FakeServer, **options: float) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        drive(server.base_url, small_workload(), **options)
    return caught.value


def test_every_request_becomes_one_sample(server: FakeServer) -> None:
    samples = drive(server.base_url, small_workload())
    assert [(s.workload, s.warmup) for s in samples] == [("chat", True), ("code", False)]
    assert [(s.prompt_tokens, s.output_tokens) for s in samples] == [(20, 8), (20, 8)]
    assert [(s.prefill_ms, s.decode_ms) for s in samples] == [(20.0, 40.0), (20.0, 40.0)]
    assert all(len(s.token_ms) == 7 for s in samples)
    assert all(0 < s.ttft_ms <= s.turn_s * 1000 for s in samples)


def test_the_prompt_is_cut_to_exactly_the_asked_number_of_tokens(server: FakeServer) -> None:
    drive(server.base_url, small_workload(prompt_tokens=17))
    assert [request["prompt"] for request in server.requests] == [[1, *range(100, 116)]] * 2


def test_requests_are_seeded_uncached_and_of_fixed_length(server: FakeServer) -> None:
    drive(server.base_url, small_workload())
    for request in server.requests:
        assert request["cache_prompt"] is False
        assert request["ignore_eos"] is True
        assert request["n_predict"] == 8
        assert request["samplers"] == ["top_k", "temperature"]
        assert (request["top_k"], request["temperature"]) == (TOP_K, TEMPERATURE)
        assert request["seed"] == 0


def test_the_environments_proxy_is_not_used(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert len(drive(server.base_url, small_workload())) == 2


def test_progress_is_told_between_requests_only(server: FakeServer) -> None:
    lines: list[str] = []
    drive(server.base_url, small_workload(), on_progress=lines.append)
    assert lines == [
        "request 1 of 2 (warm-up): chat-bread, 20 tokens in, 8 out",
        "request 2 of 2: code-cpp, 20 tokens in, 8 out",
    ]


def parallel_workload(parallel: int = 3) -> Workload:
    lengths = {"kind": "document", "prompt_tokens": 20, "output_tokens": 8}
    requests = [Request(text="bridges", offset_tokens=20 * index, **lengths) for index in range(2 * parallel)]
    return make_workload("waves", requests, warmup_requests=parallel, parallel=parallel)


def test_a_wave_is_in_flight_at_once_and_the_next_waits_for_all_of_it(server: FakeServer) -> None:
    server.token_delay_s = 0.02
    samples = drive(server.base_url, parallel_workload())
    assert server.most_at_once == 3
    assert [sample.warmup for sample in samples] == [True] * 3 + [False] * 3
    first, second = samples[:3], samples[3:]
    assert max(one.started_s for one in first) < min(one.started_s + one.turn_s for one in first)
    assert min(one.started_s for one in second) >= max(one.started_s + one.turn_s for one in first)


def test_samples_of_a_wave_are_in_the_order_of_its_requests(server: FakeServer) -> None:
    samples = drive(server.base_url, parallel_workload())
    sent = sorted(tuple(request["prompt"]) for request in server.requests)
    assert len(set(sent)) == len(samples) == 6, "no prompt is sent twice"


def test_a_later_part_of_a_text_begins_as_a_text_does(server: FakeServer) -> None:
    drive(server.base_url, parallel_workload(parallel=1))
    assert [request["prompt"] for request in server.requests] == [
        [1, *range(100, 119)],
        [1, *range(120, 139)],  # the token after the begin stands for one of the text's
    ]


def test_a_later_part_begins_with_nothing_where_the_model_has_no_begin(server: FakeServer) -> None:
    server.begin = []
    drive(server.base_url, parallel_workload(parallel=1))
    assert server.requests[1]["prompt"] == list(range(120, 140))


def test_waves_are_told_as_such(server: FakeServer) -> None:
    lines: list[str] = []
    drive(server.base_url, parallel_workload(), on_progress=lines.append)
    assert lines == ["requests 1 to 3 of 6 at once (warm-up)", "requests 4 to 6 of 6 at once"]


def test_one_failure_ends_a_wave_at_once(server: FakeServer) -> None:
    server.token_delay_s = 0.05
    server.fails_alone = 2  # the second request of all is refused, the others would take long
    workload = make_workload(
        "waves",
        [
            Request(text="bridges", offset_tokens=20 * index, prompt_tokens=20, output_tokens=400)
            for index in range(4)
        ],
        warmup_requests=0,
        parallel=4,
    )
    start = time.monotonic()
    with pytest.raises(RequestFailed, match="out of slots"):
        drive(server.base_url, workload)
    assert time.monotonic() - start < 5
    deadline = time.monotonic() + 5
    while server.at_once and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.at_once == 0, "the others hung up"


def test_drafts_are_counted_where_the_server_speculates(server: FakeServer) -> None:
    assert [one.drafted for one in drive(server.base_url, small_workload())] == [0, 0]
    server.timings = {"draft_n": 9, "draft_n_accepted": 4}
    samples = drive(server.base_url, small_workload())
    assert [(one.drafted, one.draft_accepted) for one in samples] == [(9, 4)] * 2


def test_events_that_arrive_in_pieces_are_put_together(server: FakeServer) -> None:
    whole = drive(server.base_url, small_workload())
    server.split_writes = True
    split = drive(server.base_url, small_workload())
    assert hashes(split) == hashes(whole)


def test_a_different_text_has_a_different_hash(server: FakeServer) -> None:
    before = drive(server.base_url, small_workload())
    server.piece = "other "
    assert hashes(drive(server.base_url, small_workload())) != hashes(before)


def test_gaps_between_tokens_are_the_servers_pace(server: FakeServer) -> None:
    server.token_delay_s = 0.02
    sample = drive(server.base_url, small_workload(output_tokens=5))[1]
    assert min(sample.token_ms) > 10
    assert sum(sample.token_ms) + sample.ttft_ms <= sample.turn_s * 1000 + 1e-6


def test_a_text_shorter_than_its_prompt_is_an_error_and_not_repeated(server: FakeServer) -> None:
    with pytest.raises(BadSettingError, match=r"'chat-bread' has 143 tokens.*needs 500"):
        drive(server.base_url, small_workload(prompt_tokens=500))
    assert server.requests == []


def test_a_cut_stream_is_a_failure(server: FakeServer) -> None:
    server.stop_after = 3
    error = failure(server)
    assert not error.timed_out
    assert "the connection to the server broke after 3 events" in error.detail


def test_a_stream_that_ends_early_but_politely_is_a_failure(server: FakeServer) -> None:
    server.final = {"stop": False}
    assert failure(server).detail == "the stream ended after 8 of 8 tokens"


def test_a_server_that_goes_silent_times_out(server: FakeServer) -> None:
    server.silent_after = 2
    for patience_s in (0.2, 1, 5):  # a busy machine may need longer for the two events
        error = failure(server, request_timeout_s=patience_s)
        assert error.timed_out
        if "no end" not in error.detail:
            break
    assert "silent after 2 events" in error.detail


def test_a_server_that_only_pings_times_out(server: FakeServer) -> None:
    server.ping_forever = True
    start = time.monotonic()
    error = failure(server, request_timeout_s=0.2)
    assert error.timed_out
    assert time.monotonic() - start < 5


def test_a_refused_request_tells_the_servers_reason(server: FakeServer) -> None:
    server.completion_status = 500
    error = failure(server)
    assert error.detail == "the server answered /completion with 500: out of slots"
    assert not error.timed_out


def test_an_error_in_the_middle_of_a_stream_tells_the_servers_reason(server: FakeServer) -> None:
    server.error_after = 4
    assert failure(server).detail == "the server answered with an error: Compute error."


@pytest.mark.parametrize(
    ("timings", "reason"),
    [
        ({"prompt_n": 3, "cache_n": 17}, r"3 prompt tokens processed \(17 cached\), not 20"),
        ({"predicted_n": 7}, r"7 tokens generated \(limit\), not 8"),
        ({"prompt_ms": 0.0}, "'prompt_ms' is 0"),
        ({"predicted_ms": None}, "no number 'predicted_ms'"),
    ],
)
def test_wrong_counts_are_no_measurement(
    server: FakeServer, timings: dict[str, float | None], reason: str
) -> None:
    server.timings = timings
    with pytest.raises(RequestFailed, match=reason):
        drive(server.base_url, small_workload())


def test_a_context_that_is_too_small_is_named(server: FakeServer) -> None:
    server.final = {"truncated": True}
    assert failure(server).detail == "the context is too small for 20 tokens in, 8 out"


@pytest.mark.parametrize("answer", [{"tokens": ["a"]}, {"ids": []}, ["x"], {"tokens": {"a": 1}}])
def test_a_strange_tokenizer_answer_is_a_failure(server: FakeServer, answer: object) -> None:
    server.tokenize_answer = answer
    assert "/tokenize" in failure(server).detail


def test_no_server_at_all_is_a_failure(server: FakeServer) -> None:
    server.close()
    error = failure(server)
    assert "connection to the server broke" in error.detail


def hashes(samples: list[RequestSample]) -> list[str]:
    return [sample.text_sha256 for sample in samples]
