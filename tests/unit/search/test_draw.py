"""What is drawn depends on the seed and on what is known, not on processes or on luck."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from simulated import CEILING_MIB, SimulatedMachine, base, need_mib, shape

from hottune.outcomes import Outcome
from hottune.placement import Placement
from hottune.search.draw import parameters
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.space import Space, plan
from hottune.search.storage import sqlite_url
from hottune.search.study import Budget, Study

TRIALS = 30


def space() -> Space:
    return plan(shape(), base(), CEILING_MIB, ubatches=(512,), bypasses=(1, 8), need_mib=need_mib)


def study(folder: Path, machine: SimulatedMachine, seed: int = 7) -> Study:
    return Study(Journal("t", sqlite_url(folder / "t.db"), Objective.TURN, seed=seed), space(), machine)


def finish(one: Study) -> list[tuple[Placement, Outcome]]:
    one.baselines()
    one.search(Budget(trials=TRIALS))
    return [(trial.placement, trial.outcome) for trial in one.journal.trials()]


def test_a_study_that_is_interrupted_at_every_trial_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    undisturbed = finish(study(tmp_path / "a", SimulatedMachine()))
    ended = None
    while ended is None:
        try:
            ended = finish(study(tmp_path / "b", SimulatedMachine(dies_at=2)))
        except KeyboardInterrupt:
            continue
    assert ended == undisturbed


def test_another_seed_draws_others(tmp_path: Path) -> None:
    assert finish(study(tmp_path / "a", SimulatedMachine(), seed=1)) != finish(
        study(tmp_path / "b", SimulatedMachine(), seed=-2)
    )


@pytest.mark.parametrize("hot_k", [1, 4, 11])
def test_a_placement_has_the_parameters_that_would_draw_it(hot_k: int) -> None:
    placement = space().hot(12, 512, share=hot_k / space().max_hot_k(12, 512))
    assert placement is not None
    values, distributions = parameters(space(), placement)
    assert values == space().parameters(placement)
    assert set(values) == set(distributions)
    assert parameters(space(), space().all_cpu(512))[0] == {"n_cpu_moe": 12}


def test_a_sampler_of_optunas_draws_from_the_same_distributions() -> None:
    placement = space().hot(12, 512)
    assert placement is not None
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asked.enqueue_trial(space().parameters(placement))
    trial = asked.ask()
    assert space().sample(trial) == placement
    assert parameters(space(), placement) == (trial.params, trial.distributions)


def test_a_placement_from_outside_the_space_has_its_parameters_all_the_same() -> None:
    placement = space().hot(12, 512, policy="static")
    assert placement is not None
    values, distributions = parameters(space(), placement)
    assert values["policy"] == "static"
    assert "rebalance_interval" not in distributions
