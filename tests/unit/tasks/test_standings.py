"""What leads a study, by trials and then by replicates."""

from __future__ import annotations

from datetime import UTC, datetime

import planned
import pytest

from hottune.errors import StorageError
from hottune.outcomes import Crashed, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Trial
from hottune.search.objective import Limits, Objective
from hottune.tasks.standings import Standings

LAYERS = Placement(n_cpu_moe=4, threads=1)
HOT = Placement(n_cpu_moe=8, hot_k=4, threads=1)
OTHER = Placement(n_cpu_moe=8, hot_k=6, threads=1)


def trial(number: int, placement: Placement, outcome: Outcome, arm: ArmName | None = None) -> Trial:
    origin = "baseline" if arm else "grid"
    return Trial(
        number=number,
        origin=origin,
        arm=arm,
        placement=placement,
        outcome=outcome,
        seconds=1.0,
        started=datetime.now(UTC),
    )


def standings(*trials: Trial, objective: Objective = Objective.TURN, limits: Limits = Limits()) -> Standings:
    return Standings(objective, lambda: list(trials), limits)


FAST = trial(1, HOT, planned.measured(HOT, 1.0))
BASE = trial(0, LAYERS, planned.measured(LAYERS, 1.3), "layers")


def test_before_anything_is_measured_nothing_leads() -> None:
    assert standings().best() is None
    assert standings(trial(0, HOT, Crashed(exit_code=1, detail="x"))).best() is None


def test_a_baseline_alone_is_named_and_compared_with_nothing() -> None:
    best = standings(BASE).best()
    assert best is not None
    assert best.label == f"layers: {LAYERS.label()} t 1"
    assert (best.value, best.ratio, best.baseline) == ("turn 1.30 s", None, "")
    assert best.basis == "single measurement, not a verdict"


def test_a_cache_is_compared_with_the_best_baseline() -> None:
    slow = trial(2, LAYERS.model_copy(update={"n_cpu_moe": 8}), planned.measured(LAYERS, 3.0), "all-cpu")
    best = standings(slow, BASE, FAST).best()
    assert best is not None
    assert best.label == f"{HOT.label()} t 1"
    assert (best.ratio, best.baseline) == (pytest.approx(1.3), "layers")


@pytest.mark.parametrize("objective", [Objective.DECODE, Objective.PREFILL])
def test_of_speeds_more_is_better(objective: Objective) -> None:
    slower = planned.measured(LAYERS, 1.0).model_copy(update={"prefill_tok_s": 200.0, "decode_tok_s": 20.0})
    faster = planned.measured(HOT, 1.0).model_copy(update={"prefill_tok_s": 300.0, "decode_tok_s": 30.0})
    best = standings(trial(0, LAYERS, slower, "layers"), trial(1, HOT, faster), objective=objective).best()
    assert best is not None
    assert best.value == ("decode 30.0 tok/s" if objective is Objective.DECODE else "prefill 300 tok/s")
    assert (best.ratio, best.baseline) == (pytest.approx(1.5), "layers")


def test_what_was_measured_again_counts_by_its_mean() -> None:
    again = trial(2, HOT, planned.measured(HOT, 1.2))
    best = standings(BASE, FAST, again).best()
    assert best is not None
    assert best.value == "turn 1.10 s"
    assert best.basis == "mean of 2 measurements, not a verdict"


def test_what_breaks_a_limit_does_not_lead() -> None:
    best = standings(BASE, FAST, limits=Limits(min_prefill_tok_s=1e9)).best()
    assert best is None


def test_replicates_count_once_a_baseline_and_a_candidate_have_some() -> None:
    found = standings(BASE, FAST)
    found.replicate("layers", LAYERS, planned.measured(LAYERS, 1.5))
    best = found.best()
    assert best is not None
    assert best.value == "turn 1.00 s", "the search's, still"
    found.replicate("hot", HOT, planned.measured(HOT, 1.4))
    found.replicate("hot-2", OTHER, planned.measured(OTHER, 1.2))
    found.replicate("hot-2", OTHER, Crashed(exit_code=1, detail="x"))
    best = found.best()
    assert best is not None
    assert (best.label, best.value, best.ratio) == (
        f"{OTHER.label()} t 1",
        "turn 1.20 s",
        pytest.approx(1.25),
    )


def test_a_storage_that_is_away_changes_nothing() -> None:
    known = [[BASE, FAST]]

    def trials() -> list[Trial]:
        if not known:
            raise StorageError("The storage is away.")
        return known.pop()

    found = Standings(Objective.TURN, trials)
    before = found.best()
    assert before is not None
    assert found.best() == before
