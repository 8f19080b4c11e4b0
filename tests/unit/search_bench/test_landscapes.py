"""The search's benchmark: what its landscapes and its clock say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.search.landscape import Clocked, sweep
from bench.search.methods import hottune
from bench.search.modelled import Modelled, modelled
from hottune.outcomes import Measurement, OutOfMemory
from hottune.placement import Placement


def small() -> Modelled:
    """A landscape whose grid is quick to sweep."""
    return replace(modelled()[-1], cores=4, noise=0.0)


@pytest.mark.parametrize("landscape", modelled(), ids=lambda one: one.name)
def test_every_cache_in_a_grid_fits_and_the_best_is_one(landscape: Modelled) -> None:
    placements = landscape.grid()
    truths = {placement: landscape.truth(placement) for placement in placements[::7]}
    assert len(placements) > 100
    assert all(truth is not None for placement, truth in truths.items() if placement.hot_k > 1)
    best = min((truth.turn_s, placement.hot_k) for placement, truth in truths.items() if truth is not None)
    assert best[1] > 0


def test_a_clock_counts_a_load_only_where_a_server_is_needed() -> None:
    landscape = small()
    clock = Clocked(landscape, seed=1)
    first = landscape.space.hot(48, 512)
    assert first is not None
    other = first.model_copy(update={"policy": "lru"})
    threads = first.model_copy(update={"threads": 2})
    for placement in (first, other, threads):
        assert isinstance(clock(placement), Measurement)
    assert clock.servers == 2
    turns = [landscape.truth(placement) for placement in (first, other, threads)]
    expected = 2 * landscape.load_s + landscape.requests * sum(turn.turn_s for turn in turns if turn)
    assert clock.seconds == pytest.approx(expected)


def test_what_does_not_fit_costs_a_load_and_has_no_number() -> None:
    clock = Clocked(small(), seed=1)
    too_large = Placement(n_cpu_moe=0, threads=2, ubatch=512)
    assert isinstance(clock(too_large), OutOfMemory)
    assert clock.seconds == small().load_s
    assert clock.quality_at(1e9, 1.0) == 0.0


def test_quality_is_by_the_true_turn_of_what_measured_best() -> None:
    landscape = replace(small(), noise=0.5)
    clock = Clocked(landscape, seed=2)
    placements = [landscape.space.hot(48, 512, share=share) for share in (0.8, 0.9, 1.0)]
    for placement in placements:
        assert placement is not None
        clock(placement)
    chosen = min(clock.history, key=lambda one: one[2] or 0)[0]
    truth = landscape.truth(chosen)
    assert truth is not None
    assert clock.quality_at(1e9, 3.0) == pytest.approx(3.0 / truth.turn_s)


def test_without_noise_the_search_finds_what_the_whole_grid_holds() -> None:
    landscape = small()
    optimum_s, grid_s = sweep(landscape)
    clock = Clocked(landscape, seed=3)
    hottune(clock, grid_s / 10, seed=0)
    assert clock.quality_at(grid_s / 10, optimum_s) > 0.97
    assert len(clock.history) < len(landscape.grid()) / 10
