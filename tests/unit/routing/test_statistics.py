"""Statistics of routing against the plainest way to count the same."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.routing import read_trace, statistics
from hottune.routing.statistics import LayerRouting
from hottune.routing.summary import summarize
from hottune.routing.trace import parse_trace
from hottune.routing.trace_writer import TraceWriter

SAMPLE = Path(__file__).with_name("sample.hottrace")


def layer(rows: list[list[int]], n_expert: int = 8) -> LayerRouting:
    return LayerRouting(np.array(rows), np.arange(len(rows), dtype=np.int64), n_expert)


@st.composite
def layers(draw: st.DrawFn) -> LayerRouting:
    n_expert = draw(st.integers(1, 12))
    k = draw(st.integers(1, min(4, n_expert)))
    rows = draw(
        st.lists(st.permutations(range(n_expert)).map(lambda order: order[:k]), min_size=1, max_size=40)
    )
    return layer([list(row) for row in rows], n_expert)


# --- LRU ---------------------------------------------------------------------------------------------


def lru_hits(one: LayerRouting, size: int, one_by_one: bool) -> int:
    """A list of experts, the last used first, cut to its size."""
    cache: list[int] = []
    hits = 0
    for row in one.experts.tolist():
        for group in [[expert] for expert in row] if one_by_one else [row]:
            hits += sum(expert in cache[:size] for expert in group)
            for expert in group:
                cache = [expert, *(other for other in cache if other != expert)]
    return hits


@given(layers(), st.integers(0, 12), st.booleans())
def test_every_size_of_an_lru_cache_hits_what_a_simulation_hits(
    one: LayerRouting, size: int, one_by_one: bool
) -> None:
    size = min(size, one.n_expert)
    distances = statistics.stack_distances(one, one_by_one=one_by_one)
    expected = lru_hits(one, size, one_by_one) / one.experts.size
    assert statistics.lru_curve(distances, one.n_expert)[size] == pytest.approx(expected)


def test_more_rows_than_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    one = layer([random.permutation(20)[:3].tolist() for _ in range(50)], 20)
    whole = statistics.stack_distances(one)
    monkeypatch.setattr(statistics, "_ROWS_AT_ONCE", 7)
    assert (statistics.stack_distances(one) == whole).all()


@given(layers())
def test_a_cache_of_k_experts_hits_what_repeats_at_the_next_token(one: LayerRouting) -> None:
    if len(one.experts) > 1:
        k = one.experts.shape[1]
        hits = statistics.stack_distances(one)[1:] < k
        assert hits.mean() == pytest.approx(statistics.repeats(one))


def test_misses_are_told_apart_by_how_far_into_a_request_they_come() -> None:
    one = layer([[0], [1], [0], [1], [2], [2], [2], [0]])
    distances = statistics.stack_distances(one)
    early, later = statistics.misses_early_and_later(one, distances, 2, first=2, starts=(0, 4))
    assert (early, later) == (3 / 4, 1 / 4), "0, 1 and 2 are new; and 0 had to go for 2"
    early, later = statistics.misses_early_and_later(one, distances, 1, first=2)
    assert (early, later) == (1.0, 4 / 6)
    assert math.isnan(statistics.misses_early_and_later(one, distances, 2, first=8)[1])


# --- repeats, sets, evenness --------------------------------------------------------------------------


@given(layers(), st.integers(1, 9))
def test_repeats_are_counted_as_defined(one: LayerRouting, within: int) -> None:
    rows = [set(row) for row in one.experts.tolist()]
    shares = [
        len(row & set().union(*rows[at - within : at])) / len(row)
        for at, row in enumerate(rows)
        if at >= within
    ]
    found = statistics.repeats(one, within)
    assert math.isnan(found) if not shares else found == pytest.approx(np.mean(shares))


def test_a_token_that_a_layer_did_not_compute_is_not_skipped() -> None:
    gap = LayerRouting(np.array([[1], [1], [1]]), np.array([0, 1, 5]), 4)
    assert statistics.repeats(gap) == 0.5
    assert statistics.repeats(gap, 4) == 1


def test_the_best_static_set_serves_the_most_used_first() -> None:
    one = layer([[0, 1], [0, 2], [0, 1], [0, 3]], 5)
    assert statistics.uses(one).tolist() == [4, 2, 1, 1, 0]
    assert statistics.static_curve(one).tolist() == [0, 0.5, 0.75, 0.875, 1, 1]
    assert [statistics.static_size(one, share) for share in (0, 0.5, 0.76, 1)] == [0, 1, 3, 4]
    assert statistics.static_curve(one, np.array([0, 0, 0, 1, 2])).tolist()[:3] == [0, 0, 1 / 8]


def test_evenness() -> None:
    even, one = layer([[0], [1], [2], [3]], 4), layer([[2], [2]], 4)
    assert (statistics.usage_entropy(even), statistics.max_over_mean(even)) == (pytest.approx(1), 1)
    assert (statistics.usage_entropy(one), statistics.max_over_mean(one)) == (0, 4)
    assert (statistics.unused_share(even), statistics.unused_share(one)) == (0, 0.75)
    half = layer([[0], [1]], 4)
    assert statistics.usage_entropy(half) == pytest.approx(0.5)


# --- from a trace --------------------------------------------------------------------------------------


def test_layers_come_out_of_a_trace_with_the_tokens_that_they_computed(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t") as writer:
        writer.block(0, "first", 8, np.array([[5, 0], [1, 7], [5, 2]]))
        writer.block(1, "second", 300, np.array([[299, 4]]))
        writer.block(0, "first", 8, np.array([[7, 5]]))
        writer.block(1, "second", 300, np.array([[4, 256]]))
    first, second = statistics.by_layer(read_trace(tmp_path / "t")).values()
    assert first.experts.tolist() == [[5, 0], [1, 7], [5, 2], [7, 5]]
    assert (first.token.tolist(), first.n_expert, first.name) == ([0, 1, 2, 3], 8, "first")
    assert second.experts.tolist() == [[299, 4], [4, 256]]
    assert second.token.tolist() == [2, 3]


def test_a_layer_that_uses_now_more_now_fewer_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 0 does not use 2 experts for every token"):
        statistics.by_layer(read_trace(SAMPLE))


def test_the_summary_says_what_the_trace_holds(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with TraceWriter(path, weights=True) as writer:
        writer.block(0, "first", 8, np.array([[5, 0], [1, 7], [5, 2]]))
        writer.block(0, "first", 8, np.array([[7, 5]]))
    n_bytes = path.stat().st_size
    said = summarize(read_trace(path), n_bytes)
    assert (said.tokens, said.prompt_tokens, said.choices, said.has_weights) == (4, 3, 8, True)
    assert said.bytes_per_choice == n_bytes / 8 - 2
    assert said.random_hit == 0.25
    assert said.lru_hit == pytest.approx(1 / 8), "a cache of two: 5 came back after 1 and 7; then 5 again"
    assert said.layers[0].repeat_next == said.repeat_next == pytest.approx(1 / 6)
    assert math.isnan(said.later_miss)


def test_a_trace_without_choices_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no choices"):
        summarize(parse_trace(b"HOTTRACE\2\0\0\0E\0"), 14)
