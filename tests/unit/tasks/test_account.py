"""What the search took, how right the memory model was, and the Pareto front."""

from __future__ import annotations

from datetime import UTC, datetime

import planned
import pytest

from hottune.outcomes import Measurement, Outcome, OutOfMemory
from hottune.placement import Placement
from hottune.report.schema import Trial
from hottune.search.objective import Objective, front
from hottune.search.space import Space, plan
from hottune.tasks.account import account

BASE = Placement(n_cpu_moe=8, threads=2, context=1024)


def need_mib(placement: Placement) -> float:
    return 100.0 + placement.ubatch / 64


def space() -> Space:
    return plan(planned.SHAPE, BASE, 260.0, ubatches=(512,), need_mib=need_mib)


def measurement(vram_mib: float = 100.0) -> Measurement:
    return planned.measured(BASE, 1.0).model_copy(update={"vram_peak_mib": vram_mib})


def trials(*outcomes: Outcome, placement: Placement | None = None) -> list[Trial]:
    return [
        Trial(
            number=number,
            placement=placement or space().all_cpu(512),
            outcome=outcome,
            started=datetime.now(UTC),
            seconds=2.0,
        )
        for number, outcome in enumerate(outcomes)
    ]


def test_servers_that_served_another_trial_are_not_counted_twice() -> None:
    again = measurement().model_copy(update={"reused_server": True})
    found = account(space(), trials(measurement(), again, again), Objective.TURN)
    assert (found.servers, found.reused, found.seconds) == (1, 2, 6.0)


def test_the_memory_model_is_judged_by_what_it_knew_before_each_trial() -> None:
    needed = need_mib(space().all_cpu(512))
    took = [measurement(vram_mib=needed * factor) for factor in (1.2, 1.2, 1.2, 1.2, 1.26)]
    found = account(space(), trials(*took), Objective.TURN)
    assert found.vram_judged == 2
    assert found.vram_error == pytest.approx(1 - 1.2 / 1.26), "the first was 20 % off, and was learnt from"


def test_without_four_placements_the_memory_model_is_not_judged() -> None:
    found = account(space(), trials(measurement(), OutOfMemory(stage="load", detail="")), Objective.TURN)
    assert (found.vram_error, found.vram_judged) == (None, 0)


def speeds(prefill: float, decode: float) -> Measurement:
    return measurement().model_copy(update={"prefill_tok_s": prefill, "decode_tok_s": decode})


def test_the_front_holds_what_no_other_beats_in_both_speeds() -> None:
    found = [speeds(100, 10), speeds(50, 20), speeds(60, 15), speeds(50, 12), speeds(100, 10)]
    assert front(found) == [0, 1, 2, 4]
    told = account(space(), trials(*found), Objective.PARETO)
    assert told.front == [0, 1, 2, 4]
    assert account(space(), trials(*found), Objective.TURN).front == []
