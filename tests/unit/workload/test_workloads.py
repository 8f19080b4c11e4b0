"""The named workloads: lengths, warm-up, scale and hash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.errors import BadSettingError
from hottune.workload.facts import Request, Workload
from hottune.workload.workloads import (
    MIN_TOKENS,
    PROMPT_TOKENS,
    WAVES,
    context_needed,
    load_workload,
    make_workload,
    names,
)

EVERY = st.sampled_from(names())


def lengths(workload: Workload) -> list[tuple[int, int]]:
    return [(request.prompt_tokens, request.output_tokens) for request in workload.requests]


def test_the_document_workload_is_2930_tokens_in_and_300_out() -> None:
    assert lengths(load_workload("document")) == [(2930, 300)] * 3


def test_the_mixed_workload_measures_one_request_of_each_kind() -> None:
    workload = load_workload("mixed")
    kinds = [request.kind for request in workload.requests[workload.warmup_requests :]]
    assert sorted(kinds) == ["chat", "code", "document"]


@given(EVERY, st.integers(0, 50))
def test_no_two_requests_share_a_text_and_some_warm_up(name: str, seed: int) -> None:
    workload = load_workload(name, seed=seed)
    texts = [request.text for request in workload.requests]
    assert len(set(texts)) == len(texts)
    assert workload.warmup_requests >= 1
    assert len(texts) - workload.warmup_requests >= 2


@given(EVERY, st.floats(0.001, 1))
def test_scaling_shrinks_lengths_but_not_below_the_minimum(name: str, scale: float) -> None:
    full, small = lengths(load_workload(name)), lengths(load_workload(name, scale=scale))
    for whole, part in zip(full, small, strict=True):
        for n_whole, n_part in zip(whole, part, strict=True):
            assert MIN_TOKENS <= n_part <= n_whole
            assert n_part == max(MIN_TOKENS, round(n_whole * scale))


@given(EVERY, EVERY, st.sampled_from([1.0, 0.5, 0.1]), st.sampled_from([1.0, 0.5, 0.1]))
def test_the_hash_tells_workloads_apart(one: str, other: str, scale: float, scale_other: float) -> None:
    first, second = load_workload(one, scale=scale), load_workload(other, scale=scale_other)
    assert (first.sha256 == second.sha256) == (first == second) == ((one, scale) == (other, scale_other))


def test_the_seed_changes_the_order_of_the_texts_and_the_hash() -> None:
    zero, one = load_workload("document", seed=0), load_workload("document", seed=1)
    assert zero.requests[1].text == one.requests[0].text
    assert zero.sha256 != one.sha256


def test_the_context_holds_the_longest_request_and_one_token_more() -> None:
    assert context_needed(load_workload("document")) == 2930 + 300 + 1
    assert context_needed(load_workload("mixed")) == context_needed(load_workload("document"))


@pytest.mark.parametrize("scale", [0, -1, 1.01, float("nan")])
def test_a_senseless_scale_is_refused(scale: float) -> None:
    with pytest.raises(BadSettingError, match="scaled by"):
        load_workload("chat", scale=scale)


def test_an_unknown_workload_is_refused_with_the_known_names() -> None:
    with pytest.raises(BadSettingError, match=r"no workload 'poetry'.*chat, document, code, mixed"):
        load_workload("poetry")


def test_a_workload_that_would_only_warm_up_is_refused() -> None:
    with pytest.raises(BadSettingError, match="1 requests"):
        make_workload("short", [Request(text="chat-bread", prompt_tokens=16, output_tokens=16)])


@given(EVERY, st.integers(2, 64), st.floats(0.001, 1), st.integers(0, 20))
def test_parallel_requests_never_share_a_piece_of_text(
    name: str, parallel: int, scale: float, seed: int
) -> None:
    try:
        workload = load_workload(name, scale=scale, seed=seed, parallel=parallel)
    except BadSettingError as error:
        assert "not text enough" in str(error)
        return
    assert (workload.parallel, workload.warmup_requests) == (parallel, parallel)
    assert len(workload.requests) == WAVES * parallel
    sizes = {text: tokens for texts in PROMPT_TOKENS.values() for text, tokens in texts.items()}
    taken: dict[str, set[int]] = {}
    for request in workload.requests:
        part = set(range(request.offset_tokens, request.offset_tokens + request.prompt_tokens))
        assert max(part) < sizes[request.text], "texts are long enough for it with every tokenizer"
        assert taken.setdefault(request.text, set()).isdisjoint(part)
        taken[request.text] |= part


def test_there_is_text_for_many_users_at_once() -> None:
    assert load_workload("chat", parallel=12).requests
    for name in names():
        assert load_workload(name, parallel=4, scale=0.25).requests
        assert load_workload(name, parallel=32, scale=0.01).requests


def test_too_little_text_is_said_with_what_to_do() -> None:
    with pytest.raises(BadSettingError, match=r"12 requests of the workload 'document'.*smaller --scale"):
        load_workload("document", parallel=4)


def test_one_request_at_a_time_is_the_workload_it_always_was() -> None:
    """Results of earlier versions can be compared: same texts, same lengths, same hash."""
    assert load_workload("chat").sha256.startswith("32bbfb25a5e50feb")
    assert load_workload("chat", parallel=2).sha256 != load_workload("chat").sha256
