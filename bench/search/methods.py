"""The ways to search that are compared. Each measures placements with a clock until its seconds are spent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna

from bench.search.landscape import Clocked
from hottune.outcomes import Measurement
from hottune.placement import STREAM_FROM, Placement
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.space import INTERVALS, POLICIES, Space
from hottune.search.storage import sqlite_url
from hottune.search.study import Budget, Study

Method = Callable[[Clocked, float, int], None]
#: hottune's search stops here, whatever time is left; its default is 28.
MOST_TRIALS = 40
#: Draws that bring nothing new before a method gives up.
_DRY = 200


def hottune(clock: Clocked, limit_s: float, seed: int) -> None:
    """Baselines, the structured plan, the sampler: what `hottune run` does before it confirms."""
    _study(clock, limit_s, seed, structured=True)


def tpe_in_space(clock: Clocked, limit_s: float, seed: int) -> None:
    """Optuna's TPE in hottune's space alone, as many trials: the memory model, but no baselines, no plan."""
    _study(clock, limit_s, seed, structured=False)


def _study(clock: Clocked, limit_s: float, seed: int, *, structured: bool) -> None:
    def spent() -> bool:
        return clock.seconds >= limit_s

    with TemporaryDirectory() as folder:
        journal = Journal("search", sqlite_url(Path(folder) / "search.db"), Objective.TURN, seed=seed)
        study = Study(journal, clock.landscape.space, clock)
        if structured:
            study.baselines()
            study.search(Budget(trials=MOST_TRIALS, spent=spent))
            return
        dry = 0
        while not spent() and dry < _DRY and len(clock.history) < MOST_TRIALS:
            dry = 0 if journal.try_sample(study.space(), clock) else dry + 1


def random(clock: Clocked, limit_s: float, seed: int) -> None:
    """Uniform draws from everything that can be asked for, whether it fits or not."""
    rng = np.random.default_rng(seed)
    space = clock.landscape.space
    while clock.seconds < limit_s:
        clock(
            _raw(
                space,
                n_cpu_moe=int(rng.integers(0, space.shape.n_layers + 1)),
                hot_k=int(rng.integers(0, space.shape.n_experts + 1)),
                ubatch=int(rng.choice(space.ubatches)),
                threads=int(rng.choice(space.threads or (space.base.threads,))),
                policy=str(rng.choice(POLICIES)),
                interval=round(math.exp(rng.uniform(*map(math.log, INTERVALS)))),
                shared=bool(rng.integers(0, 2)),
            )
        )


def plain_tpe(clock: Clocked, limit_s: float, seed: int) -> None:
    """Optuna's TPE with its defaults, without a memory model: what does not fit costs a start and fails."""
    study = _optuna(seed)
    while clock.seconds < limit_s:
        trial = study.ask()
        measured = clock(_drawn(clock.landscape.space, trial))
        if isinstance(measured, Measurement):
            study.tell(trial, measured.turn_s)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def stages(clock: Clocked, limit_s: float, seed: int) -> None:
    """As llama-optimus proceeds: TPE over numbers, a grid over categories, TPE over numbers again.

    What fails is scored as the worst, as it does (there: 0 tok/s). Half of the time goes to the first stage.
    """
    space = clock.landscape.space
    best: tuple[float, dict[str, Any]] = (math.inf, {})

    def tell(study: optuna.Study | None, trial: optuna.Trial | None, **chosen: Any) -> None:
        nonlocal best
        measured = clock(_raw(space, **chosen))
        turn_s = measured.turn_s if isinstance(measured, Measurement) else 1e6
        best = min(best, (turn_s, chosen), key=lambda one: one[0])
        if study is not None and trial is not None:
            study.tell(trial, turn_s)

    categories = {"policy": POLICIES[0], "shared": False}
    for stage, until_s in (("numbers", limit_s / 2), ("categories", limit_s), ("again", limit_s)):
        if stage == "categories":
            for policy, shared in itertools.product(POLICIES, (False, True)):
                if clock.seconds < until_s and best[1]:
                    tell(None, None, **best[1] | {"policy": policy, "shared": shared})
            continue
        study = _optuna(seed + (stage == "again"))
        while clock.seconds < until_s:
            trial = study.ask()
            numbers = {
                "n_cpu_moe": trial.suggest_int("n_cpu_moe", 0, space.shape.n_layers),
                "hot_k": trial.suggest_int("hot_k", 0, space.shape.n_experts),
                "ubatch": trial.suggest_categorical("ubatch", space.ubatches),
                "threads": trial.suggest_int("threads", 1, space.base.threads),
                "interval": trial.suggest_int("interval", *INTERVALS, log=True),
            }
            kept = {key: best[1].get(key, value) for key, value in categories.items()}
            tell(study, trial, **numbers, **kept)


def _optuna(seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))


def _drawn(space: Space, trial: optuna.Trial) -> Placement:
    return _raw(
        space,
        n_cpu_moe=trial.suggest_int("n_cpu_moe", 0, space.shape.n_layers),
        hot_k=trial.suggest_int("hot_k", 0, space.shape.n_experts),
        ubatch=trial.suggest_categorical("ubatch", space.ubatches),
        threads=trial.suggest_categorical("threads", space.threads or (space.base.threads,)),
        policy=trial.suggest_categorical("policy", POLICIES),
        interval=trial.suggest_int("interval", *INTERVALS, log=True),
        shared=trial.suggest_categorical("shared", (False, True)),
    )


def _raw(
    space: Space,
    *,
    n_cpu_moe: int,
    hot_k: int,
    ubatch: int,
    threads: int,
    policy: str,
    interval: int,
    shared: bool,
) -> Placement:
    settings: dict[str, Any] = {"n_cpu_moe": n_cpu_moe, "ubatch": ubatch, "threads": threads}
    if hot_k and n_cpu_moe:
        settings |= {"hot_k": hot_k, "policy": policy, "rebalance_interval": interval}
        settings |= {"shared_budget": shared, "stream_from": STREAM_FROM}
    return space.base.model_copy(update=settings)


METHODS: dict[str, Method] = {
    "hottune": hottune,
    "TPE in hottune's space": tpe_in_space,
    "plain TPE": plain_tpe,
    "stages": stages,
    "random": random,
}
