from __future__ import annotations

from collections import Counter
from pathlib import Path

import optuna
import pytest
from simulated import CEILING_MIB, LAYERS, SimulatedMachine, base, need_mib, shape

from hottune.errors import StorageError
from hottune.outcomes import Measurement, OutOfMemory
from hottune.placement import Placement
from hottune.search import looks
from hottune.search.confirm import confirm
from hottune.search.entries import Planned
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.rounds import Rounds
from hottune.search.space import Space, plan
from hottune.search.storage import sqlite_url
from hottune.search.structure import Start, foreseen
from hottune.search.study import Budget, Study


def space(ubatches: tuple[int, ...] = (512,), needs=need_mib) -> Space:  # type: ignore[no-untyped-def]
    return plan(shape(), base(), CEILING_MIB, ubatches=ubatches, bypasses=(1,), need_mib=needs)


def journal(folder: Path, objective: Objective = Objective.TURN) -> Journal:
    return Journal("test", sqlite_url(folder / "test.db"), objective, seed=7)


def study(folder: Path, machine: SimulatedMachine, **settings) -> Study:  # type: ignore[no-untyped-def]
    return Study(journal(folder), space(**settings), machine)


def test_the_winner_beats_every_baseline_and_uses_the_cache(tmp_path: Path) -> None:
    machine = SimulatedMachine()
    one = study(tmp_path, machine)
    one.baselines()
    one.search(Budget(trials=12))
    best = one.best()
    assert set(best) == {"all-cpu", "layers", "fit", "hot"}
    winner = best["hot"]
    assert winner.placement.hot_k > 0
    assert isinstance(winner.outcome, Measurement)
    for arm in ("all-cpu", "layers", "fit"):
        outcome = best[arm].outcome
        assert isinstance(outcome, Measurement)
        assert winner.outcome.turn_s < outcome.turn_s


def test_baselines_come_first_and_the_budget_counts_only_the_search(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=24))
    trials = one.journal.trials()
    assert [trial.arm for trial in trials[:3]] == ["all-cpu", "layers", "fit"]
    assert len(one.searched()) == 24
    assert {trial.origin for trial in one.searched()} == {"grid", "sampler"}


def test_only_the_plans_close_calls_are_measured_more_than_once(tmp_path: Path) -> None:
    machine = SimulatedMachine()
    one = study(tmp_path, machine)
    one.baselines()
    one.search(Budget(trials=25))
    times = Counter(machine.asked)
    assert len(machine.asked) == 28
    assert 1 < max(times.values()) <= looks.MOST
    drawn = [trial.placement for trial in one.searched() if trial.origin == "sampler"]
    assert all(times[placement] == 1 for placement in drawn)


def test_nothing_predicted_to_break_the_ceiling_is_started(tmp_path: Path) -> None:
    machine = SimulatedMachine()
    one = study(tmp_path, machine, ubatches=(256, 512))
    one.baselines()
    one.search(Budget(trials=20))
    assert all(need_mib(placement) <= CEILING_MIB for placement in machine.asked if not placement.fit)


def test_layer_offload_is_tried_at_every_ubatch_and_its_best_serves_the_others(
    tmp_path: Path,
) -> None:
    machine = SimulatedMachine()
    one = study(tmp_path, machine, ubatches=(256, 512))
    one.baselines()
    tried = {
        arm: {trial.placement.ubatch for trial in one.journal.trials() if trial.arm == arm}
        for arm in ("all-cpu", "layers", "fit")
    }
    best = one.best()["layers"].placement.ubatch
    assert tried["layers"] == {256, 512}
    assert tried["fit"] == {best}
    assert best in tried["all-cpu"]


def test_layer_offload_steps_back_until_it_works_when_the_memory_model_is_too_hopeful(tmp_path: Path) -> None:
    def hungrier(placement: Placement) -> float:
        return need_mib(placement) + (LAYERS - placement.n_cpu_moe) * 12

    one = study(tmp_path, SimulatedMachine(really_needs=hungrier))
    one.baselines()
    tried = [trial for trial in one.journal.trials() if trial.arm == "layers"]
    assert isinstance(tried[0].outcome, OutOfMemory)
    assert isinstance(tried[-1].outcome, Measurement)
    assert hungrier(tried[-1].placement) <= CEILING_MIB
    fuller = tried[-1].placement.model_copy(update={"n_cpu_moe": tried[-1].placement.n_cpu_moe - 1})
    assert hungrier(fuller) > CEILING_MIB


def test_layer_offload_goes_on_to_the_fullest_when_the_memory_model_is_too_careful(tmp_path: Path) -> None:
    def wasteful(placement: Placement) -> float:
        return need_mib(placement) + (LAYERS - placement.n_cpu_moe) * 10

    one = study(tmp_path, SimulatedMachine(), needs=wasteful)
    one.baselines()
    best = one.best()["layers"].placement
    assert need_mib(best) <= CEILING_MIB
    assert need_mib(best.model_copy(update={"n_cpu_moe": best.n_cpu_moe - 1})) > CEILING_MIB


def test_failures_have_no_score(tmp_path: Path) -> None:
    def hungrier(placement: Placement) -> float:
        return need_mib(placement) + 40 * (placement.hot_k > 0)

    one = study(tmp_path, SimulatedMachine(really_needs=hungrier, fit_engages=False))
    one.baselines()
    one.search(Budget(trials=8))
    raw = optuna.load_study(study_name="test", storage=sqlite_url(tmp_path / "test.db"))
    failed = [trial for trial in raw.trials if trial.state is optuna.trial.TrialState.FAIL]
    assert failed
    assert all(trial.values is None for trial in failed)
    kinds = {trial.outcome.kind for trial in one.journal.trials()}
    assert kinds == {"measurement", "out_of_memory", "not_engaged"}
    assert "fit" not in one.best()


def test_out_of_memory_is_learnt_from(tmp_path: Path) -> None:
    def hungrier(placement: Placement) -> float:
        return need_mib(placement) + 40 * (placement.hot_k > 0)

    one = study(tmp_path, SimulatedMachine(really_needs=hungrier))
    one.baselines()
    one.search(Budget(trials=20))
    kinds = [trial.outcome.kind for trial in one.searched()]
    assert "measurement" in kinds[:12]
    assert kinds[-5:] == ["measurement"] * 5


def test_an_interrupted_study_keeps_every_trial_and_goes_on_where_it_was(tmp_path: Path) -> None:
    first = SimulatedMachine(dies_at=6)
    one = study(tmp_path, first)
    with pytest.raises(KeyboardInterrupt):
        one.baselines()
        one.search(Budget(trials=10))
    kept = one.journal.trials()
    assert len(kept) == 5

    second = SimulatedMachine()
    again = study(tmp_path, second)
    again.baselines()
    again.search(Budget(trials=10))
    assert again.journal.trials()[:5] == kept
    assert len(again.searched()) == 10
    assert second.asked[0] == first.asked[-1], "the interrupted placement comes first"

    undisturbed = SimulatedMachine()
    whole = study(tmp_path / "undisturbed", undisturbed)
    whole.baselines()
    whole.search(Budget(trials=10))
    assert undisturbed.asked == first.asked[:-1] + second.asked


def test_a_trial_orphaned_by_a_kill_is_failed_and_its_placement_measured_again(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    # What kill -9 leaves: a running trial with a placement and no outcome.
    raw = optuna.load_study(study_name="test", storage=sqlite_url(tmp_path / "test.db"))
    orphan = raw.ask()
    placement = foreseen(one.space(), Start(512, 2))[1]
    orphan.set_user_attr("placement", placement.model_dump_json())
    orphan.set_user_attr("origin", "sampler")
    orphan.set_user_attr("arm", None)

    machine = SimulatedMachine()
    again = study(tmp_path, machine)
    states = {trial.number: trial.state for trial in raw.get_trials()}
    assert states[orphan.number] is optuna.trial.TrialState.FAIL
    assert again.journal.unfinished() == [Planned(placement, "sampler")]
    again.baselines()
    again.search(Budget(trials=4))
    assert machine.asked[0] == placement
    assert again.journal.unfinished() == []


def test_a_finished_study_measures_nothing_again(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=6))
    idle = SimulatedMachine()
    again = study(tmp_path, idle)
    again.baselines()
    again.search(Budget(trials=6))
    assert idle.asked == []


def test_more_trials_continue_a_finished_study(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=6))
    machine = SimulatedMachine()
    again = study(tmp_path, machine)
    again.baselines()
    again.search(Budget(trials=9))
    assert len(machine.asked) == 3


def test_the_same_seed_draws_the_same_placements(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        machine = SimulatedMachine()
        one = study(tmp_path / name, machine)
        one.baselines()
        one.search(Budget(trials=14))
        drawn.append(machine.asked)
    assert drawn[0] == drawn[1]


def test_a_spent_time_budget_ends_the_search(tmp_path: Path) -> None:
    machine = SimulatedMachine()
    one = study(tmp_path, machine)
    one.baselines()
    one.search(Budget(trials=50, spent=lambda: len(machine.asked) >= 7))
    assert len(machine.asked) == 7


def test_a_space_without_room_for_a_cache_ends_with_baselines_only(tmp_path: Path) -> None:
    tight = plan(shape(), base(), 109.0, ubatches=(512,), need_mib=need_mib)
    machine = SimulatedMachine(ceiling_mib=109.0)
    one = Study(journal(tmp_path), tight, machine)
    one.baselines()
    one.search(Budget(trials=5))
    assert [trial.arm for trial in one.journal.trials()] == ["all-cpu", "fit"]


@pytest.mark.parametrize("objective", list(Objective))
def test_every_objective_prefers_the_better_measurement(tmp_path: Path, objective: Objective) -> None:
    one = Study(journal(tmp_path, objective), space(), SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=6))
    costs = [objective.cost(t.outcome) for t in one.searched() if isinstance(t.outcome, Measurement)]
    best = one.best()["hot"].outcome
    assert isinstance(best, Measurement)
    assert objective.cost(best) == min(costs)


def test_what_is_noted_beside_a_study_is_there_again(tmp_path: Path) -> None:
    journal(tmp_path).note("config", {"model": "demo", "trials": 3})
    assert journal(tmp_path).noted("config") == {"model": "demo", "trials": 3}
    assert journal(tmp_path).noted("nothing") is None


def test_a_storage_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "test.db").write_text("this is prose, not a database, " * 50)
    with pytest.raises(StorageError, match=r"test\.db"):
        journal(tmp_path)


def test_a_missing_database_driver_is_named_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as raised:
        Journal("x", "postgresql+nothing://me:secret@host/db", Objective.TURN)
    assert "secret" not in str(raised.value)


# --- confirm ---


def placements(one: Study) -> dict:  # type: ignore[type-arg]
    return {arm: trial.placement for arm, trial in one.best().items()}


def test_confirm_measures_every_arm_in_every_round_interleaved(tmp_path: Path) -> None:
    machine = SimulatedMachine()
    one = study(tmp_path, machine)
    one.baselines()
    one.search(Budget(trials=3))
    machine.asked.clear()
    arms = placements(one)
    confirmed = confirm(one.journal, arms, Rounds(3), machine)
    assert {arm: len(replicates) for arm, replicates in confirmed.replicates.items()} == dict.fromkeys(
        arms, 3
    )
    for start in range(0, 12, 4):
        assert set(machine.asked[start : start + 4]) == set(arms.values()), "a round has every arm once"
    assert machine.asked[:4] == machine.asked[7:3:-1], "the second round runs backwards"


def test_confirm_resumes_with_every_replicate_that_ended(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=3))
    arms = placements(one)
    with pytest.raises(KeyboardInterrupt):
        confirm(one.journal, arms, Rounds(2), SimulatedMachine(dies_at=6))
    machine = SimulatedMachine()
    confirmed = confirm(journal(tmp_path), arms, Rounds(2), machine)
    assert len(machine.asked) == 8 - 5
    positions = sorted(r.position for replicates in confirmed.replicates.values() for r in replicates)
    assert positions == list(range(8))


def test_replicates_of_another_comparison_are_not_mixed_in(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=3))
    arms = placements(one)
    confirm(one.journal, arms, Rounds(2), SimulatedMachine())
    arms["hot"] = arms["hot"].model_copy(update={"rebalance_interval": 99})
    machine = SimulatedMachine()
    confirm(one.journal, arms, Rounds(2), machine)
    assert len(machine.asked) == 8


def test_a_spent_budget_still_leaves_three_rounds(tmp_path: Path) -> None:
    one = study(tmp_path, SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=3))
    confirmed = confirm(one.journal, placements(one), Rounds(5), SimulatedMachine(), spent=lambda: True)
    assert {len(replicates) for replicates in confirmed.replicates.values()} == {3}
    assert confirmed.ended == "time"
