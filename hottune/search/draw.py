"""Drawing placements: Optuna's samplers, fed with what is known and seeded anew for every draw.

A draw depends on the seed, on what has been measured, and on how often was drawn in vain since: not on the
process, nor on trials that were begun and lost. So a study that is killed and resumed draws what it would
have drawn undisturbed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hottune.outcomes import Measurement, Outcome, OutOfMemory, Rejected
from hottune.placement import Placement
from hottune.search.attributes import Parameters
from hottune.search.objective import Limits, Objective
from hottune.search.space import Space

#: Trials that TPE wants to see before it models; those of the structured plan count.
STARTUP_TRIALS = 6
#: Above every number of a placement.
_MOST = 2**20
Fixed = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Seen:
    """A trial that ended, as a sampler sees it."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    outcome: Outcome


def sampler(
    seed: int, n_known: int, attempt: int, *, at_random: bool, fixed: Fixed | None = None
) -> optuna.samplers.BaseSampler:
    """Return the sampler of one draw.

    Args:
        seed: of the study.
        n_known: placements that were known before it.
        attempt: draws since then that led to nothing new.
        at_random: do not look at what was best so far.
        fixed: parameters that it may not choose, with their values.
    """
    (drawn,) = np.random.SeedSequence((seed % 2**63, n_known, attempt)).generate_state(1)
    if at_random:
        return optuna.samplers.RandomSampler(seed=int(drawn))
    free = optuna.samplers.TPESampler(seed=int(drawn), multivariate=False, n_startup_trials=STARTUP_TRIALS)
    if not fixed:
        return free
    with warnings.catch_warnings():  # Optuna calls it experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(dict(fixed), free)


def draw(
    space: Space,
    known: Sequence[Seen],
    objective: Objective,
    limits: Limits,
    *,
    seed: int,
    attempt: int,
    at_random: bool,
    fixed: Fixed | None = None,
) -> Placement | None:
    """Return a placement that fits, or None where there is no room for what was drawn.

    Args:
        space: to draw from.
        known: everything that ended, in order, with the parameters that a sampler would have drawn.
        objective: what is optimised.
        limits: what a placement must keep: constraints to the sampler.
        seed: of the study.
        attempt: draws since the last of `known` that led to nothing new.
        at_random: do not look at what was best so far.
        fixed: parameters that may not be chosen, with their values.
    """
    study = optuna.create_study(
        directions=objective.directions,
        sampler=sampler(seed, len(known), attempt, at_random=at_random, fixed=fixed),
    )
    study.add_trials([_as_trial(one, objective, limits) for one in known])
    return space.sample(study.ask())


def _as_trial(seen: Seen, objective: Objective, limits: Limits) -> FrozenTrial:
    """Return what Optuna learns from: a value, a broken constraint without a value, or nothing.

    What ran out of memory or broke the ceiling is infeasible, not bad. It has no value; the size of the
    constraint is 1 whatever it would have needed, for that is not known.
    """
    outcome = seen.outcome
    found: dict[str, float] = {}
    state, values = TrialState.FAIL, None
    if isinstance(outcome, Measurement):
        state, values = TrialState.COMPLETE, objective.values(outcome)
        found = {"memory": 0.0, **limits.violations(outcome)}
    elif isinstance(outcome, OutOfMemory | Rejected):
        state, found = TrialState.PRUNED, {"memory": 1.0}
    return create_trial(
        state=state,
        values=values,
        params=dict(seen.params),
        distributions=dict(seen.distributions),
        system_attrs={f"constraints:{key}": value for key, value in found.items()},
    )


def parameters(space: Space, placement: Placement) -> Parameters:
    """Return what a sampler would have drawn for a placement, and from what.

    Of a baseline it is the layers alone, for people who look at the study; no sampler is told.
    """
    drawn = space.parameters(placement)
    if not drawn:
        return numbers(placement, ("n_cpu_moe",))
    asked = _Asked(drawn)
    space.sample(asked)
    return asked.params, asked.distributions


def numbers(
    placement: Placement, names: Sequence[str] = ("n_cpu_moe", "hot_k", "ubatch", "threads")
) -> Parameters:
    """Return some numbers of a placement as parameters, without those that llama.cpp's fit would change."""
    found = {
        name: int(getattr(placement, name)) for name in names if not (placement.fit and name == names[0])
    }
    return found, {name: IntDistribution(0, _MOST) for name in found}


class _Asked:
    """Answers a space's questions with known parameters, and remembers what could have been answered."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return int(self._answer(name, IntDistribution(low, high, log=log)))

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return float(self._answer(name, FloatDistribution(low, high)))

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        return self._answer(name, CategoricalDistribution(choices))

    def _answer(self, name: str, distribution: BaseDistribution) -> Any:
        self.params[name] = self._answers[name]
        self.distributions[name] = distribution
        return self._answers[name]
