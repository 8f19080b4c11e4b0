"""The cost model in the search: calibrated by the first cache, it leaves out mixes without hope."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from simulated import CEILING_MIB, LAYERS, base, measurement, need_mib, shape

from hottune.outcomes import HotStats, Measurement, NotEngaged, Outcome, OutOfMemory
from hottune.placement import Placement
from hottune.report.schema import ArmName
from hottune.routing.bound import Bandwidths
from hottune.routing.published import published_hit_rate
from hottune.search.baselines import measure_baselines
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.space import Space, plan
from hottune.search.storage import sqlite_url
from hottune.search.structure import Known, Start, next_structured
from hottune.search.study import Budget, Study
from hottune.tasks.forecast import Forecast
from hottune.workload.facts import Request, Workload

MACHINE = Bandwidths(cpu=20, hbm=1000, pcie_h2d=20, cpu_overlapped=20, pcie_overlapped=20)
WORK = Workload(
    name="chat", requests=(Request(text="a", prompt_tokens=100, output_tokens=50),) * 2, sha256="0" * 64
)


def model(objective: Objective = Objective.DECODE) -> Forecast:
    return Forecast(shape(), MACHINE, WORK, objective)


@dataclass
class Truth:
    """A machine of the model's kind: other hit rates, slower kernels, and perhaps better layer offload."""

    truth: Forecast = field(
        default_factory=lambda: replace(model(), hit_odds=4.0, decode_factor=0.6, prefill_factor=0.3)
    )
    layers_factor: float = 1.0
    asked: list[Placement] = field(default_factory=list)

    def __call__(self, placement: Placement) -> Outcome:
        self.asked.append(placement)
        if placement.fit:
            return NotEngaged(detail="simulated")
        if need_mib(placement) > CEILING_MIB:
            return OutOfMemory(stage="load", detail="simulated")
        decode = self.truth(placement) * (1 if placement.hot_k else self.layers_factor)
        hot = None
        if placement.hot_k:
            hits = round(10_000 * self.truth.hit_rate(placement.hot_k / 32))
            hot = HotStats(
                slots=placement.hot_k, layers=placement.n_cpu_moe, hits=hits, misses=10_000 - hits,
                uploads=1, uploaded_bytes=1, cache_bytes=1,
            )  # fmt: skip
        one = measurement(50 / decode, vram_mib=need_mib(placement), hot=hot)
        return one.model_copy(update={"decode_tok_s": decode})


def space(foresee: Forecast | None) -> Space:
    return plan(
        shape(), base(), CEILING_MIB, ubatches=(512,), bypasses=(1,), need_mib=need_mib, foresee=foresee
    )


def searched(machine: Truth, foresee: Forecast | None) -> list[tuple[Placement, Outcome]]:
    """Baselines and the whole structured plan, in memory; returns what the plan measured, in order."""
    whole, history = space(foresee), list[tuple[Placement, Outcome]]()

    def attempt(arm: ArmName, placement: Placement) -> Outcome:
        history.append((placement, machine(placement)))
        return history[-1][1]

    measure_baselines(lambda: whole.corrected(history), attempt, Objective.DECODE.cost)
    baselines = len(history)
    while True:
        known = Known((one, cost(outcome)) for one, outcome in history)
        wanted = next_structured(whole.corrected(history), Start(512, 2), known)
        if wanted is None:
            return history[baselines:]
        history.append((wanted.placement, machine(wanted.placement)))


def cost(outcome: Outcome) -> float | None:
    return Objective.DECODE.cost(outcome) if isinstance(outcome, Measurement) else None


def mixes(found: list[tuple[Placement, Outcome]]) -> set[int]:
    return {placement.n_cpu_moe for placement, _ in found}


def best(found: list[tuple[Placement, Outcome]]) -> Placement:
    return min(found, key=lambda one: cost(one[1]) or 0.0)[0]


def test_the_first_cache_calibrates_hits_and_both_speeds() -> None:
    placement = base().model_copy(update={"hot_k": 8})
    outcome = Truth()(placement)
    assert isinstance(outcome, Measurement)
    learnt = model().learnt([(placement, outcome)])
    assert learnt is not None
    assert outcome.hit_rate is not None
    assert learnt.hit_rate(8 / 32) == pytest.approx(outcome.hit_rate)
    assert learnt.hit_rate(8 / 32) > published_hit_rate(8 / 32)
    assert learnt(placement) == pytest.approx(outcome.decode_tok_s)
    assert (learnt.hit_rate(0.0), learnt.hit_rate(1.0)) == (0.0, 1.0)
    turn = replace(model(Objective.TURN)).learnt([(placement, outcome)])
    assert turn is not None
    seconds = 100 / outcome.prefill_tok_s + 50 / outcome.decode_tok_s
    assert turn(placement) == pytest.approx(1 / seconds), "the warm request's lengths weigh both phases"


def test_nothing_is_learnt_before_a_cache_is_measured() -> None:
    placement = base()
    assert model().learnt([]) is None
    assert model().learnt([(placement, Truth()(placement))]) is None


def test_the_model_is_trusted_only_when_it_tells_layer_offload_too() -> None:
    cache, layers = base().model_copy(update={"hot_k": 8}), base().model_copy(update={"n_cpu_moe": 8})
    for factor, trusted in ((1.0, True), (1.4, False), (0.7, False)):
        machine = Truth(layers_factor=factor)
        learnt = model().learnt([(one, machine(one)) for one in (layers, cache)])
        assert learnt is not None
        assert learnt.trusted is trusted
    alone = model().learnt([(cache, Truth()(cache))])
    assert alone is not None
    assert not alone.trusted, "there is nothing to compare with"


def test_a_trusted_model_saves_servers_and_finds_the_same_mix() -> None:
    blind_machine, told_machine = Truth(), Truth()
    blind, told = searched(blind_machine, None), searched(told_machine, model())
    assert len(mixes(told)) < len(mixes(blind))
    assert len(told_machine.asked) < len(blind_machine.asked)
    assert best(told).n_cpu_moe == best(blind).n_cpu_moe


def test_a_model_that_is_wrong_about_layers_leaves_nothing_out() -> None:
    right, wrong = searched(Truth(), model()), searched(Truth(layers_factor=1.6), model())
    assert mixes(right) < mixes(wrong), "caches are the same; only layer offload differs"


def test_without_a_model_the_plan_begins_with_the_cache_alone() -> None:
    assert searched(Truth(), None)[0][0].n_cpu_moe == LAYERS


def test_a_study_that_is_gone_on_with_measures_what_it_would_have_measured(tmp_path: Path) -> None:
    def study(name: str, machine: Truth) -> Study:
        (tmp_path / name).mkdir(exist_ok=True)
        url = sqlite_url(tmp_path / name / "test.db")
        return Study(Journal("test", url, Objective.DECODE, seed=7), space(model()), machine)

    whole, first, second = Truth(), Truth(), Truth()
    for name, machine, trials in (("whole", whole, 7), ("cut", first, 2), ("cut", second, 7)):
        one = study(name, machine)
        one.baselines()
        one.search(Budget(trials=trials))
    assert first.asked + second.asked == whole.asked
