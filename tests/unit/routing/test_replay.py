"""Replay by the device's own policies, against cases worked out by hand and a plain re-implementation."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.cli.common import cache_dir
from hottune.engine.replay_library import provide_replay_library
from hottune.placement import Policy
from hottune.routing.replay import Replay, ReplayResult, ReplaySettings, Routing, references
from hottune.routing.trace import Layer, read_trace

POLICIES: tuple[Policy, ...] = ("window", "lru", "lfru", "static")
MIB = 1024 * 1024


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return provide_replay_library(cache_dir())


def one_layer(*tokens: list[int], n_expert: int = 8) -> Routing:
    return Routing.from_choices(np.array(tokens)[:, None, :], n_expert)


def in_blocks(*blocks: list[list[int]], n_expert: int = 8) -> Routing:
    """One layer; each block is a list of tokens computed together."""
    table = [[0, len(tokens), len(tokens[0])] for tokens in blocks]
    experts = [expert for tokens in blocks for row in tokens for expert in row]
    layers = (Layer("blk.0.ffn_up_exps.weight", n_expert),)
    return Routing(layers, np.array(table, dtype=np.int32), np.array(experts, dtype=np.int32))


def replayed(library: ctypes.CDLL, routing: Routing, slots: int, policy: Policy, **more: int) -> ReplayResult:
    # in the order of the layers, so that also the first has no slots with its first token
    asked = ReplaySettings(policy=policy, slots=slots, last_layer_first=False, **more)
    return Replay(library, routing).run(asked)


@st.composite
def choices(draw: st.DrawFn, *, n_used: int = 0) -> tuple[np.ndarray, int]:
    n_expert = draw(st.integers(1, 20))
    used = n_used or draw(st.integers(1, min(4, n_expert)))
    shape = draw(st.tuples(st.integers(1, 60), st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    skew = rng.random(n_expert) * draw(st.sampled_from([0.0, 1.0, 5.0]))
    scores = rng.gumbel(size=(*shape, n_expert)) + skew
    return np.argsort(-scores, axis=2)[:, :, :used], n_expert


def test_the_first_token_meets_no_cache_and_the_second_an_empty_one(library: ctypes.CDLL) -> None:
    result = replayed(library, one_layer([1, 2], [1, 2], [1, 2], [1, 3]), 2, "lru")
    assert [(one.hits, one.misses) for one in result.layers] == [(3, 5)]
    assert result.misses_of_tokens == (1, 1, 2)
    assert (result.uploads, result.layers[0].evictions) == (3, 1)


def test_the_layer_that_was_met_before_has_its_slots_one_token_earlier(library: ctypes.CDLL) -> None:
    routing = one_layer([1], [1], [1])
    early = Replay(library, routing).run(ReplaySettings(policy="lru", slots=1))
    assert [early.layers[0].hits, replayed(library, routing, 1, "lru").layers[0].hits] == [2, 1]


def test_slots_may_be_there_when_the_trace_begins(library: ctypes.CDLL) -> None:
    assert replayed(library, one_layer([1], [1], [1]), 1, "lru", slots_from_start=1).layers[0].hits == 2


def test_lru_gives_up_the_expert_unused_for_longest(library: ctypes.CDLL) -> None:
    #                 no cache  in   in   hit  in for 2  hit  miss, for 3
    routing = one_layer([0], [1], [2], [1], [3], [1], [2])
    result = replayed(library, routing, 2, "lru")
    assert (result.layers[0].hits, result.uploads, result.layers[0].evictions) == (2, 4, 2)


def test_lfru_keeps_what_was_used_often_where_lru_does_not(library: ctypes.CDLL) -> None:
    # 1 is used often, then 2 and 3 once each: of two slots lru gives up that of 1, lfru that of 2
    routing = one_layer([0], [1], [1], [1], [2], [3], [1])
    assert replayed(library, routing, 2, "lru", interval=80).layers[0].hits == 2
    assert replayed(library, routing, 2, "lfru", interval=80).layers[0].hits == 3


def test_window_displaces_only_at_its_end_and_by_more_than_the_hysteresis(library: ctypes.CDLL) -> None:
    # counts start with the second token: window of 4 is [1], [2], [2], [2]; 2 leads 1 by two uses
    routing = one_layer([0], [1], [2], [2], [2], [2], [1])
    for hysteresis, hits in ((1, 1), (2, 1)):
        result = replayed(library, routing, 1, "window", interval=4, hysteresis=hysteresis)
        assert result.layers[0].hits == hits
    assert replayed(library, routing, 1, "window", interval=4, hysteresis=1).layers[0].evictions == 1
    assert replayed(library, routing, 1, "window", interval=4, hysteresis=2).layers[0].evictions == 0


def test_static_without_a_profile_keeps_the_first_that_came(library: ctypes.CDLL) -> None:
    result = replayed(library, one_layer([0], [1], [2], [2], [1]), 1, "static")
    assert (result.layers[0].hits, result.uploads) == (1, 1)


def test_static_with_a_profile_is_there_from_the_start(library: ctypes.CDLL) -> None:
    routing = one_layer([3], [3], [4], [3])
    profile = {routing.layers[0].name: [0, 0, 0, 9, 1, 0, 0, 0]}
    replay = Replay(library, routing, profile=profile)
    result = replay.run(ReplaySettings(policy="static", slots=1))
    assert replay.seeded_layers == 1
    assert (result.layers[0].hits, result.layers[0].misses, result.uploads) == (3, 1, 1)


def test_a_profile_of_another_model_is_not_used(library: ctypes.CDLL) -> None:
    routing = one_layer([3], [3])
    for profile in ({"blk.7.ffn_up_exps.weight": [1.0] * 8}, {routing.layers[0].name: [1.0] * 7}):
        assert Replay(library, routing, profile=profile).seeded_layers == 0


def test_uploads_beyond_the_budget_of_a_batch_wait(library: ctypes.CDLL) -> None:
    routing = one_layer([1, 2], [1, 2], [1, 2], [1, 2])
    counts = {}
    for mib in (1, 2):
        replay = Replay(library, routing, expert_bytes=[MIB])
        asked = ReplaySettings(policy="lru", slots=2, upload_mib=mib, last_layer_first=False)
        counts[mib] = replay.run(asked)
    assert [counts[mib].layers[0].hits for mib in (1, 2)] == [3, 4]
    assert [counts[mib].uploaded_bytes for mib in (1, 2)] == [2 * MIB, 2 * MIB]


def test_the_budget_is_one_for_all_layers(library: ctypes.CDLL) -> None:
    routing = Routing.from_choices(np.array([[[1], [1]]] * 4), 4)
    replay = Replay(library, routing, expert_bytes=[MIB, MIB])
    result = replay.run(ReplaySettings(policy="lru", slots=1, upload_mib=1, last_layer_first=False))
    assert [layer.hits for layer in result.layers] == [2, 1]


def test_an_expert_larger_than_the_budget_goes_alone(library: ctypes.CDLL) -> None:
    replay = Replay(library, one_layer([1, 2], [1, 2], [1, 2], [1, 2]), expert_bytes=[3 * MIB])
    result = replay.run(ReplaySettings(policy="lru", slots=2, upload_mib=1, last_layer_first=False))
    assert (result.layers[0].hits, result.uploads) == (3, 2)


def test_a_late_upload_is_a_miss_until_it_arrives(library: ctypes.CDLL) -> None:
    routing = one_layer([1], [1], [1], [1], [1])
    assert [replayed(library, routing, 1, "lru", arrival=n).layers[0].hits for n in (1, 2, 3)] == [3, 2, 1]


def test_larger_blocks_than_the_bypass_pass_the_cache_by(library: ctypes.CDLL) -> None:
    routing = in_blocks([[5, 6]] * 3, [[1, 2]], [[1, 2]], [[1, 2]])
    small, all_of_it = (replayed(library, routing, 2, "lru", bypass=n) for n in (1, 8))
    assert (small.tokens, all_of_it.tokens) == (3, 6)
    assert (small.layers[0].hits, all_of_it.layers[0].hits) == (2, 4)


def test_several_tokens_are_served_only_when_every_choice_has_a_stand_in(library: ctypes.CDLL) -> None:
    # expert 1 alone is resident: one token may use its slot twice, two tokens together may not
    one = in_blocks([[1, 1]], [[1, 2]], [[1, 2]])
    assert replayed(library, one, 1, "lru").misses_of_tokens == (0, 1, 2)
    assert replayed(library, one, 1, "lru", quantized=0).misses_of_tokens == (0, 0, 3)
    together = in_blocks([[1, 2]], [[1, 2]], [[1, 2], [1, 3]])
    assert replayed(library, together, 1, "lru").misses_of_tokens == (0, 0, 4)
    assert replayed(library, together, 2, "lru").misses_of_tokens == (1, 1, 2)


def test_the_first_tokens_are_counted_apart(library: ctypes.CDLL) -> None:
    result = replayed(library, one_layer(*[[1]] * 10), 1, "lru", cold_tokens=4)
    assert (result.cold_hit_rate, result.warm_hit_rate, result.hit_rate) == (0.5, 1.0, 0.8)


def test_references_are_what_fixed_sets_would_hit() -> None:
    routing = one_layer([0], [0], [0], [1], [2], n_expert=4)
    assert [(one.static_oracle, one.random) for one in references(routing, [0, 1, 2, 9])] == [
        (0.0, 0.0),
        (0.6, 0.25),
        (0.8, 0.5),
        (1.0, 1.0),
    ]


def test_the_sample_trace_of_the_device_is_replayed_whole(library: ctypes.CDLL) -> None:
    trace = read_trace(Path(__file__).parent / "sample.hottrace")
    routing = Routing.from_trace(trace)
    result = Replay(library, routing).run(ReplaySettings(policy="lru", slots=300))
    assert sum(layer.hits + layer.misses for layer in result.layers) == len(trace.choices)
    assert [layer.slots for layer in result.layers] == [layer.n_expert for layer in routing.layers]
    assert [tuple(one) for one in trace.blocks[:, [0, 2, 3]]] == [tuple(one) for one in routing.blocks]


@pytest.mark.parametrize(
    ("blocks", "experts"),
    [
        ([[1, 1, 1]], [0]),
        ([[0, 1, 1], [2, 1, 1]], [0, 0]),
        ([[0, 1, 2]], [0]),
        ([[0, 1, 1]], [8]),
        ([[0, 1, 1]], [-1]),
        ([[0, 0, 1]], []),
    ],
)
def test_a_routing_that_would_lead_out_of_the_arrays_is_refused(
    blocks: list[list[int]], experts: list[int]
) -> None:
    layers = (Layer("a", 8), Layer("b", 8))
    with pytest.raises(ValueError):
        Routing(layers, np.array(blocks, dtype=np.int32), np.array(experts, dtype=np.int32))


@given(trace=choices(), slots=st.integers(0, 22), policy=st.sampled_from(POLICIES), arrival=st.integers(1, 3))
def test_every_choice_is_counted_once(
    library: ctypes.CDLL, trace: tuple[np.ndarray, int], slots: int, policy: Policy, arrival: int
) -> None:
    result = replayed(library, Routing.from_choices(*trace), slots, policy, arrival=arrival, interval=5)
    tokens, _, used = trace[0].shape
    for layer in result.layers:
        assert layer.hits + layer.misses == tokens * used
        assert sum(layer.misses_of_tokens) == tokens
        assert sum(n * count for n, count in enumerate(layer.misses_of_tokens)) == layer.misses
        assert layer.evictions <= layer.uploads <= layer.misses


def plain_hits(tokens: list[list[int]], slots: int, policy: str) -> int:
    """LRU and static (the first that came) with a set, token by token; uploads are there with the next."""
    resident: list[int] = []  # for lru: by slot
    last_use: dict[int, int] = {}
    hits = 0
    for now, used in enumerate(tokens):
        hits += sum(expert in resident for expert in used)
        if now == 0:
            continue  # there are no slots yet
        last_use |= dict.fromkeys(used, now)
        missed = sorted(expert for expert in used if expert not in resident)
        while missed and len(resident) < slots:
            resident.append(missed.pop(0))
        if policy == "static":
            continue
        old = [slot for slot, expert in enumerate(resident) if last_use[expert] < now]
        old.sort(key=lambda slot: (last_use[resident[slot]], slot))
        for slot, expert in zip(old, missed, strict=False):
            resident[slot] = expert
    return hits


@given(trace=choices(), slots=st.integers(1, 22), policy=st.sampled_from(["lru", "static"]))
def test_lru_and_static_are_what_a_plain_loop_says(
    library: ctypes.CDLL, trace: tuple[np.ndarray, int], slots: int, policy: Policy
) -> None:
    result = replayed(library, Routing.from_choices(*trace), slots, policy)
    for index, layer in enumerate(result.layers):
        assert layer.hits == plain_hits(trace[0][:, index].tolist(), slots, policy)


@given(trace=choices(n_used=1))
def test_more_slots_never_hit_less_with_lru_and_one_expert_a_token(
    library: ctypes.CDLL, trace: tuple[np.ndarray, int]
) -> None:
    routing = Routing.from_choices(*trace)
    hits = [replayed(library, routing, slots, "lru").hit_rate for slots in range(trace[1] + 1)]
    assert hits == sorted(hits)


def test_a_sweep_over_threads_is_the_same_as_one_after_the_other(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    routing = Routing.from_choices(np.argsort(rng.random((300, 4, 32)))[:, :, :4], 32)
    replay = Replay(library, routing, expert_bytes=[MIB] * 4)
    asked = [ReplaySettings(policy=policy, slots=k, upload_mib=3) for policy in POLICIES for k in (4, 8, 16)]
    done: list[int] = []
    results = replay.sweep(asked, threads=4, on_done=done.append)
    assert results == [replay.run(one) for one in asked]
    assert done == list(range(1, 13))
    assert len({result.hit_rate for result in results}) > 6
