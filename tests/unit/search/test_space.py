from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import (
    CEILING_MIB,
    DENSE_MIB,
    EXPERTS,
    LAYERS,
    base,
    measurement,
    need_mib,
    shape,
)

from hottune.errors import CeilingTooSmallError
from hottune.outcomes import HotStats, OutOfMemory, Rejected
from hottune.placement import Placement
from hottune.search.space import DEFAULT_INTERVAL, Space, plan


def space(ceiling_mib: float = CEILING_MIB, ubatches: tuple[int, ...] = (256, 512)) -> Space:
    return plan(shape(), base(), ceiling_mib, ubatches=ubatches, bypasses=(1, 8), need_mib=need_mib)


def whole_cache() -> Placement:
    placement = space().hot(LAYERS, 512)
    assert placement is not None
    return placement


class Draws:
    """Stands in for an Optuna trial: answers with hypothesis' numbers."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        assert low <= high
        return self.data.draw(st.integers(low, high), label=name)

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return self.data.draw(st.floats(low, high), label=name)

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        return self.data.draw(st.sampled_from(choices), label=name)


@given(data=st.data(), ceiling_mib=st.floats(DENSE_MIB + 8, 700))
def test_every_sampled_placement_fits_and_has_a_cache(data: st.DataObject, ceiling_mib: float) -> None:
    tried = space(ceiling_mib)
    placement = tried.sample(Draws(data))
    if placement is None:
        assert any(tried.min_n_cpu_moe(ubatch) is None for ubatch in tried.ubatches)
    else:
        assert need_mib(placement) <= ceiling_mib
        assert 1 <= placement.hot_k <= EXPERTS
        assert 1 <= placement.n_cpu_moe <= LAYERS


@given(data=st.data(), ceiling_mib=st.floats(DENSE_MIB + 40, 700))
def test_parameters_lead_back_to_a_sampled_placement(data: st.DataObject, ceiling_mib: float) -> None:
    tried = space(ceiling_mib)
    placement = tried.sample(Draws(data))
    assert placement is not None

    class Same(Draws):
        def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
            value = tried.parameters(placement)[name]
            assert low <= value <= high
            return int(value)

        def suggest_float(self, name: str, low: float, high: float) -> float:
            return float(tried.parameters(placement)[name])

        def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
            return tried.parameters(placement)[name]

    again = tried.sample(Same(data))
    assert again is not None
    assert abs(again.hot_k - placement.hot_k) <= 1
    assert again.model_copy(update={"hot_k": placement.hot_k}) == placement


@given(data=st.data())
def test_an_interval_is_drawn_only_where_it_means_something(data: st.DataObject) -> None:
    placement = space().sample(Draws(data))
    assert placement is not None
    if placement.policy == "lru":
        assert placement.rebalance_interval == DEFAULT_INTERVAL
        assert "rebalance_interval" not in space().parameters(placement)


def test_the_largest_cache_is_exactly_the_largest_that_fits() -> None:
    room = space().max_hot_k(LAYERS, 512)
    assert need_mib(base().model_copy(update={"hot_k": room})) <= CEILING_MIB
    assert need_mib(base().model_copy(update={"hot_k": room + 1})) > CEILING_MIB


def test_layer_offload_starts_at_the_fullest_that_fits() -> None:
    fewest = space().fewest_cpu_layers(512)
    assert need_mib(space().layers(fewest, 512)) <= CEILING_MIB
    assert need_mib(space().layers(fewest - 1, 512)) > CEILING_MIB


def test_a_ceiling_below_the_dense_part_is_refused_with_the_size_that_is_needed() -> None:
    with pytest.raises(CeilingTooSmallError, match="104 MiB"):
        space(ceiling_mib=DENSE_MIB)


def test_a_ubatch_that_cannot_fit_is_left_out() -> None:
    assert space(ceiling_mib=DENSE_MIB + 6).ubatches == (256,)


def test_a_tight_ceiling_leaves_room_for_layers_of_no_kind() -> None:
    tight = space(ceiling_mib=DENSE_MIB + 8.5)
    assert tight.hot(LAYERS, 512) is None
    assert tight.fewest_cpu_layers(512) == LAYERS


def test_measured_vram_corrects_the_prediction_of_the_same_kind() -> None:
    all_cpu = space().all_cpu(512)
    corrected = space().corrected([(all_cpu, measurement(vram_mib=need_mib(all_cpu) + 30))])
    assert corrected.predicted_mib(all_cpu) == need_mib(all_cpu) + 30
    assert corrected.max_hot_k(LAYERS, 512) < space().max_hot_k(LAYERS, 512)


def test_an_overestimate_is_corrected_too_so_that_layer_offload_is_not_handicapped() -> None:
    all_cpu = space().all_cpu(512)
    corrected = space().corrected([(all_cpu, measurement(vram_mib=need_mib(all_cpu) - 40))])
    assert corrected.fewest_cpu_layers(512) < space().fewest_cpu_layers(512)


def test_a_placement_that_ran_out_of_memory_is_never_planned_again_nor_a_larger_one() -> None:
    placement = whole_cache()
    corrected = space().corrected([(placement, OutOfMemory(stage="load", detail=""))])
    assert not corrected.fits(placement)
    assert corrected.max_hot_k(placement.n_cpu_moe, 512) < placement.hot_k


def test_what_broke_the_ceiling_teaches_how_much_it_took() -> None:
    placement = whole_cache()
    corrected = space().corrected([(placement, Rejected(detail="", vram_peak_mib=300.0))])
    assert corrected.predicted_mib(placement) == 300.0


def test_a_cache_that_got_fewer_places_than_asked_for_shows_where_the_room_ends() -> None:
    placement = whole_cache()
    counts = dict.fromkeys(("layers", "hits", "misses", "uploads", "uploaded_bytes", "cache_bytes"), 1)
    got = HotStats(slots=placement.hot_k - 3, **counts)
    corrected = space().corrected([(placement, measurement(vram_mib=CEILING_MIB, hot=got))])
    assert corrected.max_hot_k(placement.n_cpu_moe, 512) == placement.hot_k - 3


def test_fit_rows_teach_nothing() -> None:
    fit = Placement(n_cpu_moe=0, fit=True, threads=2)
    assert space().corrected([(fit, measurement(vram_mib=9999))]).correction == space().correction
