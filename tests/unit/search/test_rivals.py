"""How another engine finds its placement, and that it never counts as one of hottune's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from simulated import CEILING_MIB, EXPERTS, LAYERS, SimulatedMachine, base, measurement, need_mib, shape

from hottune.outcomes import Measurement, NotEngaged, Outcome, OutOfMemory, Rejected
from hottune.placement import Placement
from hottune.search import space as spaces
from hottune.search.confirm import candidates, contest
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.rivals import HOT_ATTEMPTS, Rival, measure_rival
from hottune.search.space import Space
from hottune.search.storage import sqlite_url
from hottune.search.study import Budget, Study

NAME = "twin"


def space(threads: tuple[int, ...] = ()) -> Space:
    return spaces.plan(shape(), base(), CEILING_MIB, ubatches=(64,), threads=threads, need_mib=need_mib)


@dataclass
class Attempts:
    """Measures by what the rival really needs: `factor` times what the model predicts."""

    factor: float = 1.0
    says_how_much: bool = True

    def __post_init__(self) -> None:
        self.asked: list[Placement] = []

    def __call__(self, arm: str, placement: Placement) -> Outcome:
        assert arm == placement.engine == NAME
        self.asked.append(placement)
        needs = need_mib(placement) * self.factor
        if needs <= CEILING_MIB:
            return measurement(1 / placement.threads, vram_mib=needs)
        if self.says_how_much:
            return Rejected(detail="too much", vram_peak_mib=needs)
        return OutOfMemory(stage="load", detail="simulated")


def measure(rival: Rival, attempts: Attempts, start: Placement | None, threads: tuple[int, ...] = ()) -> None:
    def cost(one: Measurement) -> float:
        return one.turn_s

    measure_rival(rival, lambda: space(threads), start, attempts, cost)


def best_layers() -> Placement:
    here = space()
    return here.layers(here.fewest_cpu_layers(64), 64)


def test_layers_begin_where_the_own_ones_ended_and_fill_what_is_left() -> None:
    attempts, start = Attempts(factor=0.7), best_layers()
    measure(Rival(NAME, "layers"), attempts, start)
    tried = [one.n_cpu_moe for one in attempts.asked]
    assert tried[0] == start.n_cpu_moe
    assert min(tried) < start.n_cpu_moe, "it needs less, so more layers fit"


def test_layers_get_emptier_until_they_fit() -> None:
    attempts, start = Attempts(factor=1.3), best_layers()
    measure(Rival(NAME, "layers"), attempts, start)
    tried = [one.n_cpu_moe for one in attempts.asked]
    assert tried == list(range(start.n_cpu_moe, start.n_cpu_moe + len(tried)))
    assert need_mib(attempts.asked[-1]) * 1.3 <= CEILING_MIB


def test_without_any_layer_that_fits_all_experts_stay_on_the_cpu() -> None:
    attempts = Attempts()
    measure(Rival(NAME, "layers"), attempts, None)
    assert [one.n_cpu_moe for one in attempts.asked] == [LAYERS]


def test_fewer_threads_are_tried_as_for_the_own_layers() -> None:
    attempts = Attempts()
    measure(Rival(NAME, "layers"), attempts, best_layers(), threads=(2, 1))
    assert {one.threads for one in attempts.asked} == {2, 1}


@pytest.mark.parametrize("says_how_much", [True, False])
def test_a_cache_is_the_largest_that_fits_and_shrinks_by_what_is_missing(says_how_much: bool) -> None:
    exact, larger = Attempts(), Attempts(factor=1.2, says_how_much=says_how_much)
    rival = Rival(NAME, "hot", rebalance_interval=40, prefill_bypass=32)
    for attempts in (exact, larger):
        measure(rival, attempts, best_layers())
    first = exact.asked[0]
    assert len(exact.asked) == 1
    assert (first.n_cpu_moe, first.rebalance_interval, first.prefill_bypass) == (LAYERS, 40, 32)
    assert need_mib(first) <= CEILING_MIB < need_mib(first.model_copy(update={"hot_k": first.hot_k + 1}))
    assert 0 < first.hot_k < EXPERTS
    sizes = [one.hot_k for one in larger.asked]
    assert sizes == sorted(set(sizes), reverse=True)
    assert 1 < len(sizes) <= HOT_ATTEMPTS
    assert need_mib(larger.asked[-1]) * 1.2 <= CEILING_MIB


def test_a_refused_engine_is_asked_once() -> None:
    attempts = Attempts()
    measure(Rival(NAME, "hot", refused=True), attempts, best_layers())
    assert len(attempts.asked) == 1


def study(folder: Path, twin_turn_s: float) -> Study:
    own = SimulatedMachine()

    def machine(placement: Placement) -> Outcome:
        if placement.engine == "gone":
            return NotEngaged(detail="needs a real GPU")
        # It takes far less than predicted: learnt of hottune's own, caches would grow past the wall.
        return measurement(twin_turn_s, vram_mib=50.0) if placement.engine else own(placement)

    journal = Journal("t", sqlite_url(folder / "t.db"), Objective.TURN)
    rivals = (Rival(NAME, "layers"), Rival("gone", "hot", refused=True))
    return Study(journal, space(), machine, rivals=rivals)


def test_a_fast_engine_is_measured_again_but_is_no_baseline_and_teaches_nothing(tmp_path: Path) -> None:
    one = study(tmp_path, twin_turn_s=0.01)
    one.baselines()
    one.search(Budget(trials=6))
    trials = one.journal.trials()
    assert {trial.arm for trial in trials if trial.placement.engine} == {NAME, "gone"}
    assert all(not placement.engine for placement, _ in one.journal.history())
    hot = [trial.outcome for trial in trials if trial.arm is None]
    assert all(isinstance(outcome, Measurement) for outcome in hot), "no bound was moved by another engine"
    assert NAME not in one.best()
    again = candidates(trials, Objective.TURN, 1)
    assert list(again) == ["all-cpu", "layers", "fit", NAME, "hot"]
    replicates = {arm: [] for arm in again}
    assert NAME not in [*contest(replicates, Objective.TURN).baselines]
    assert NAME not in [*contest(replicates, Objective.TURN).candidates]


def test_a_study_that_goes_on_measures_no_engine_twice(tmp_path: Path) -> None:
    one = study(tmp_path, twin_turn_s=0.01)
    one.baselines()
    before = len(one.journal.trials())
    study(tmp_path, twin_turn_s=0.01).baselines()
    assert len(one.journal.trials()) == before
