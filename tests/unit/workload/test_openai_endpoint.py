"""Endpoints and their quirks: what is asked, what is counted, what is refused and in which words."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from fake_openai import FakeOpenAi

from hottune.errors import BadSettingError, EndpointError
from hottune.progress import NoProgress
from hottune.report.endpoint import EndpointResult
from hottune.tasks.endpoint import Interrupted, Wanted, access_to, measure_endpoint
from hottune.workload.facts import Request
from hottune.workload.workloads import make_workload

N_OUT = 12


@pytest.fixture
def server() -> Iterator[FakeOpenAi]:
    fake = FakeOpenAi()
    yield fake
    fake.close()


def small(n_requests: int = 2, parallel: int = 1):
    texts = ["chat-bread", "code-cpp", "bridges", "clocks"]
    requests = [
        Request(text=text, kind="chat", prompt_tokens=60, output_tokens=N_OUT) for text in texts[:n_requests]
    ]
    return make_workload("test", requests, parallel=parallel, warmup_requests=parallel)


def measure(server: FakeOpenAi, passes: int = 1, url: str = "", workload=None, **wanted) -> EndpointResult:
    said = Wanted(**wanted)
    access = access_to(url or server.url, said)
    access.sleep = lambda seconds: None
    return measure_endpoint(access, workload or small(), passes, said, NoProgress())


def refused(server: FakeOpenAi, **wanted) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        measure(server, **wanted)
    return caught.value


def codes(result: EndpointResult) -> list[str]:
    return [note.code for note in result.warnings]


def warm(result: EndpointResult):
    return result.passes[0].requests[-1]


def test_a_plain_server_is_measured_by_the_clients_clock(server: FakeOpenAi) -> None:
    server.tokenize = True
    result = measure(server)
    one = warm(result)
    assert (result.route, result.prompts, result.model) == ("completions", "exact", "owner/some-model")
    assert result.label == "tests-some-model"
    assert (one.output_tokens, one.counted, one.finish_reason, one.chunks) == (
        N_OUT,
        "usage",
        "length",
        N_OUT,
    )
    assert abs(one.prompt_tokens - 60) <= 1
    assert 10 <= one.ttft_ms <= one.turn_s * 1000
    assert one.decode_ms >= 0.999 * sum(one.chunk_ms) >= 2.0 * (N_OUT - 1)
    # By the definitions: tokens - 1 over the time after the first, prompt over the time to it.
    assert result.passes[0].decode_tok_s == pytest.approx((N_OUT - 1) / one.decode_ms * 1000)
    assert result.passes[0].prefill_tok_s == pytest.approx(one.prompt_tokens / one.ttft_ms * 1000)
    assert result.passes[0].as_asked
    assert set(codes(result)) <= {"client-timed", "round-trip", "in-bursts"}, "the last two by a busy machine"


def test_requests_are_those_of_llama_server_and_each_begins_anew(server: FakeOpenAi) -> None:
    measure(server, passes=2)
    bodies = server.bodies[-4:]
    assert {body["max_tokens"] for body in bodies} == {N_OUT}
    assert {(body["temperature"], body["seed"], body["ignore_eos"]) for body in bodies} == {(0.7, 0, True)}
    assert len({body["prompt"][:8] for body in bodies}) == 4
    assert bodies[0]["prompt"][8:] == bodies[2]["prompt"][8:]


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
@pytest.mark.parametrize(("counts", "off"), [(True, 3), (False, 10)])
def test_prompts_have_the_asked_length_template_included(
    server: FakeOpenAi, route, counts: bool, off: int
) -> None:
    server.tokenize, server.extra_tokens = counts, 20
    one = warm(measure(server, route=route))
    assert abs(one.prompt_tokens - 60) <= off


@pytest.mark.parametrize(
    ("quirk", "value"),
    [
        ("prefix", b"data:"),
        ("comments", True),
        ("usage_with_choices", True),
        ("reasoning", "reasoning_content"),
        ("reasoning", "reasoning"),
        ("role_first", False),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_forms_of_the_stream_change_no_count(server: FakeOpenAi, quirk: str, value, route) -> None:
    setattr(server, quirk, value)
    one = warm(measure(server, route=route))
    assert (one.output_tokens, one.chunks, one.counted) == (N_OUT, N_OUT, "usage")


def test_a_first_chunk_with_a_role_alone_is_no_token(server: FakeOpenAi) -> None:
    server.prefill_s = 0.05  # after the role
    assert warm(measure(server, route="chat/completions")).ttft_ms >= 50


def test_without_usage_chunks_are_counted_and_it_says_so(server: FakeOpenAi) -> None:
    server.usage = False
    result = measure(server)
    assert (warm(result).output_tokens, warm(result).counted) == (N_OUT, "chunks")
    assert result.passes[0].prefill_tok_s is None
    assert {"counted-as-chunks", "prompt-tokens-unknown"} <= set(codes(result))
    assert result.values("turn") == []


def test_several_tokens_in_a_chunk_are_counted_by_usage(server: FakeOpenAi) -> None:
    server.tokens_a_chunk = 3
    result = measure(server)
    assert (warm(result).output_tokens, warm(result).chunks) == (N_OUT, 4)
    assert "tokens-in-lumps" in codes(result)


def test_a_server_that_ends_early_gives_speeds_and_no_turn(server: FakeOpenAi) -> None:
    server.takes_ignore_eos = False
    result = measure(server)
    assert warm(result).output_tokens == 5
    assert "stopped-early" in codes(result)
    assert result.values("decode") and not result.values("turn")


def test_a_full_context_is_not_taken_for_a_refused_ignore_eos(server: FakeOpenAi) -> None:
    server.takes_ignore_eos, server.early_reason = False, "length"
    (text,) = [note.text for note in measure(server).warnings if note.code == "stopped-early"]
    assert "context is full" in text


def test_fields_that_are_refused_are_left_out(server: FakeOpenAi) -> None:
    server.unknown_fields = {"ignore_eos", "seed"}
    result = measure(server)
    assert result.fields == ["usage"]
    assert {"not-all-fields", "stopped-early"} <= set(codes(result))


def test_the_chat_route_is_found_where_it_is_the_only_one(server: FakeOpenAi) -> None:
    server.routes = {"/v1/chat/completions"}
    assert measure(server).route == "chat/completions"


def test_prompt_tokens_from_a_cache_count_in_no_speed(server: FakeOpenAi) -> None:
    server.cached = 40
    result = measure(server)
    one = warm(result)
    assert one.processed_tokens == one.prompt_tokens - 40
    assert result.passes[0].prefill_tok_s == pytest.approx(one.processed_tokens / one.ttft_ms * 1000)
    assert "cached-prompts" in codes(result)


def test_a_busy_server_is_asked_again_after_the_wait_it_wants(server: FakeOpenAi) -> None:
    waits: list[float] = []
    server.refusals = [(429, {"Retry-After": "7"}, {"error": {"message": "slow down"}}), (503, {}, "loading")]
    access = access_to(server.url, Wanted())
    access.sleep = waits.append
    result = measure_endpoint(access, small(), 1, Wanted(), NoProgress())
    assert waits == [7.0, 5.0]
    assert warm(result).output_tokens == N_OUT


def test_one_that_stays_busy_is_an_error(server: FakeOpenAi) -> None:
    server.refusals = [(429, {"Retry-After": "0"}, {"error": {"message": "slow down"}})] * 4
    assert "too busy (429: slow down)" in refused(server).what


def test_several_requests_at_once_are_measured_by_waves(server: FakeOpenAi) -> None:
    result = measure(server, workload=small(4, parallel=2))
    first, second = result.passes[0].requests[2:]
    assert not first.warmup and not second.warmup
    firsts = [one.started_s + one.ttft_ms / 1000 for one in (first, second)]
    lasts = [at + one.decode_ms / 1000 for at, one in zip(firsts, (first, second), strict=True)]
    whole = 2 * (N_OUT - 1) / (max(lasts) - min(firsts))
    assert result.passes[0].decode_tok_s == pytest.approx(whole)


def test_a_key_is_sent_and_never_kept(server: FakeOpenAi, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "sk-very-secret-key"
    assert "401" in refused(server).what
    monkeypatch.setenv("SOME_KEY", "wrong")
    assert "SOME_KEY is not accepted" in refused(server, key_variable="SOME_KEY").why
    monkeypatch.setenv("SOME_KEY", server.key)
    assert server.key not in measure(server, key_variable="SOME_KEY").model_dump_json()


def test_a_key_in_the_place_of_its_variable_is_not_repeated(server: FakeOpenAi) -> None:
    with pytest.raises(BadSettingError) as caught:
        measure(server, key_variable="sk-1234")
    assert "1234" not in str(caught.value)


REFUSALS = {
    "error": (500, {"error": {"message": "CUDA error"}}, "answered 500: CUDA error"),
    "detail": (400, {"detail": "no"}, "answered 400: no"),
    "context": (400, {"message": "maximum context length is 64 tokens"}, "does not fit into the context"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_end_with_the_servers_own_words(server: FakeOpenAi, name: str) -> None:
    status, body, said = REFUSALS[name]
    server.refusals = [(status, {}, body)] * 10
    assert said in refused(server).what


def test_what_is_no_endpoint_says_what_is_missing(server: FakeOpenAi) -> None:
    server.routes = set()
    assert "is not there (404: Not Found)" in refused(server).what
    assert "names no model" in refused(server, url=server.url.replace("/v1", "/v2")).what
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert "cannot be reached" in refused(server, url=url).what


def test_tls_against_a_plain_server_is_told_as_such(server: FakeOpenAi) -> None:
    error = refused(server, url=server.url.replace("http:", "https:"), timeout_s=5.0)
    assert "No secure connection" in error.what


def test_a_server_that_hangs_is_given_up(server: FakeOpenAi) -> None:
    server.prefill_s = 3.0
    assert "went silent" in refused(server, timeout_s=0.3).what


@pytest.mark.parametrize(
    ("quirk", "value", "said"),
    [
        ("whole", True, "no stream but one JSON document"),
        ("stop_after", 1, "connection to the server broke"),
        ("error_after", 1, "out of blocks"),
        ("tokens_a_chunk", 100, "no decode speed"),
        ("prefix", b"data: x", "not JSON"),
    ],
)
def test_broken_streams_are_errors(server: FakeOpenAi, quirk: str, value, said: str) -> None:
    setattr(server, quirk, value)
    assert said in refused(server).what


def test_passes_before_a_failure_are_kept(server: FakeOpenAi) -> None:
    class Breaks(NoProgress):
        def say(self, line: str) -> None:
            if "pass 2" in line:
                server.error_after = 2

    said = Wanted()
    with pytest.raises(Interrupted) as caught:
        measure_endpoint(access_to(server.url, said), small(), 4, said, Breaks())
    assert len(caught.value.result.passes) == 2
    assert codes(caught.value.result)[0] == "interrupted"
    assert "out of blocks" in caught.value.error.what


def test_passes_before_ctrl_c_are_kept(server: FakeOpenAi) -> None:
    class Presses(NoProgress):
        def say(self, line: str) -> None:
            if "pass 2" in line:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        measure_endpoint(access_to(server.url, Wanted()), small(), 4, Wanted(), Presses())
    assert isinstance(caught.value.error, KeyboardInterrupt)
    assert len(caught.value.result.passes) == 1


def test_among_several_models_one_has_to_be_named(server: FakeOpenAi) -> None:
    server.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(BadSettingError, match=r"--model-name: a, b"):
        measure(server)
    assert measure(server, model="b").model == "b"
    assert server.bodies[-1]["model"] == "b"
    with pytest.raises(BadSettingError, match="serves no model 'c'"):
        measure(server, model="c")


def test_folders_in_a_models_name_are_not_kept(server: FakeOpenAi) -> None:
    server.models = [{"id": "/home/somebody/models/x.gguf"}]
    assert "somebody" not in measure(server).model_dump_json()
