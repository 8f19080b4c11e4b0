"""The structured plan: a program over known costs that stops at the first unknown one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from simulated import CEILING_MIB, LAYERS, base, need_mib, shape

from hottune.placement import Placement
from hottune.search.looks import MOST, PRIOR_NOISE, looks_for, noise_of
from hottune.search.space import Space, plan
from hottune.search.structure import Known, Start, foreseen, next_structured

START = Start(512, 8)


def space(**changes: object) -> Space:
    made = plan(
        shape(), base(), CEILING_MIB, ubatches=(256, 512), bypasses=(1,), threads=(8, 4, 2), need_mib=need_mib
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def played(
    cost: Callable[[Placement], float], tried: Space | None = None, start: Start = START
) -> list[Placement]:
    """Return the placements of the plan, in order, when each costs what `cost` says."""
    tried = tried or space()
    known: list[tuple[Placement, float | None]] = []
    while (wanted := next_structured(tried, START, Known(known))) is not None:
        assert len(known) < 200, "the plan ends"
        assert wanted.repeat == sum(placement == wanted.placement for placement, _ in known)
        known.append((wanted.placement, cost(wanted.placement)))
    return [placement for placement, _ in known]


def best_of(cost: Callable[[Placement], float]) -> Placement:
    return min(played(cost), key=cost)


def test_the_plan_starts_with_the_whole_room_for_the_cache_and_a_mix() -> None:
    first, second, *_ = played(lambda placement: 1.0)
    assert first.n_cpu_moe > second.n_cpu_moe
    assert (first.ubatch, first.threads) == (512, 8)
    assert first.hot_k == space().max_hot_k(first.n_cpu_moe, 512)


def test_the_plan_finds_the_best_number_of_threads_behind_one_that_makes_no_difference() -> None:
    assert best_of(lambda one: 0.5 if one.threads == 2 else 1.0).threads == 2


def test_the_plan_finds_the_best_ubatch_policy_and_mix() -> None:
    def cost(one: Placement) -> float:
        return 1 + (one.ubatch == 512) + (one.policy != "window") + abs(one.n_cpu_moe - 7) / LAYERS

    found = best_of(cost)
    assert (found.ubatch, found.policy) == (256, "window")
    assert abs(found.n_cpu_moe - 7) <= 1


def test_a_clear_difference_is_believed_at_once_and_a_close_call_is_looked_at_again() -> None:
    clear = played(lambda one: 0.5 if one.threads == 4 else 1.0)
    close = played(lambda one: 0.97 if one.threads == 4 else 1.0)
    threads = [one.threads for one in clear]
    assert threads.count(8) == len({one for one in clear if one.threads == 8}), "no repeats of the old best"
    assert len(close) - len(set(close)) >= 2 * (looks_for(PRIOR_NOISE) - 1)


def test_luck_is_not_believed() -> None:
    """All placements are equal; each measurement scatters by 4 %. What the plan settles on was looked at."""
    rng = np.random.default_rng(1)
    moved = 0
    for _ in range(20):
        known: list[tuple[Placement, float | None]] = []
        while (wanted := next_structured(space(), START, Known(known))) is not None:
            known.append((wanted.placement, float(1 + rng.normal(0, 0.04))))
        first_threads = [placement.threads for placement, _ in known if placement.policy != "lfru"]
        moved += first_threads[-1] != START.threads
    assert moved <= 8, "without looking again two of three would move"


def test_what_cannot_be_measured_is_never_chosen_nor_asked_for_again() -> None:
    known: list[tuple[Placement, float | None]] = []
    while (wanted := next_structured(space(), START, Known(known))) is not None:
        works = wanted.placement.threads == 8 and wanted.placement.n_cpu_moe < LAYERS
        known.append((wanted.placement, 1.0 if works else None))
    failed = [placement for placement, cost in known if cost is None]
    assert failed
    assert len(set(failed)) == len(failed)


def test_a_slightly_different_cache_answers_for_the_same_point() -> None:
    placement = played(lambda one: 1.0)[0]
    smaller = placement.model_copy(update={"hot_k": placement.hot_k - 1})
    much_smaller = placement.model_copy(update={"hot_k": placement.hot_k // 2})
    known = Known([(smaller, 2.0)])
    assert known.measured(placement) == (smaller, [2.0])
    assert known.measured(much_smaller) == (much_smaller, [])


def test_a_cost_model_proposes_where_to_look_first() -> None:
    wanted = space().mixed(0.5, 512)
    tried = space(foresee=lambda one: -abs(one.n_cpu_moe - wanted))
    first = played(lambda one: 1.0, tried)[0]
    assert abs(first.n_cpu_moe - wanted) <= 1


def test_no_vram_is_left_over_that_would_hold_a_whole_layer() -> None:
    for n_cpu_moe in range(2, LAYERS + 1):
        fullest = space().fullest(n_cpu_moe, 512)
        room = space().max_hot_k(n_cpu_moe, 512)
        assert space().max_hot_k(fullest, 512) >= room
        assert fullest == 1 or room == 0 or space().max_hot_k(fullest - 1, 512) < room


def test_a_dry_run_shows_the_plan_without_repeats() -> None:
    shown = foreseen(space(), START)
    assert len(shown) == len(set(shown)) > 8
    assert len(foreseen(space(), START, quick=True)) < len(shown)


@pytest.mark.parametrize("noise", [0.02, 0.04, 0.08])
def test_noise_is_read_from_repeats_and_says_how_often_to_look(noise: float) -> None:
    rng = np.random.default_rng(3)
    repeats = [list(10 * np.exp(rng.normal(0, noise, 6))) for _ in range(40)]
    assert noise_of(repeats) == pytest.approx(noise, rel=0.15)
    assert noise_of([]) == PRIOR_NOISE
    assert looks_for(0.02) <= looks_for(0.04) <= looks_for(0.08) <= MOST
    assert looks_for(1.0) == MOST
