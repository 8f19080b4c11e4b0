"""Drawing placements: Optuna's samplers, fed with what is known and seeded anew for every draw.

A draw depends on the seed, on what has been measured, and on how often was drawn in vain since: not on the
process, nor on trials that were begun and lost. So a study that is killed and resumed draws what it would
have drawn undisturbed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hottune.placement import Placement
from hottune.search.claims import Parameters
from hottune.search.space import Space

#: Trials that TPE wants to see before it models: those of the structured plan count.
STARTUP_TRIALS = 6

Direction = Literal["minimize", "maximize"]
Fixed = Mapping[str, int | float | str]


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
    free: optuna.samplers.BaseSampler = (
        optuna.samplers.RandomSampler(seed=int(drawn))
        if at_random
        else optuna.samplers.TPESampler(seed=int(drawn), multivariate=False, n_startup_trials=STARTUP_TRIALS)
    )
    if not fixed:
        return free
    with warnings.catch_warnings():  # Optuna calls it experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(dict(fixed), free)


def draw(
    space: Space,
    known: Sequence[FrozenTrial],
    directions: Sequence[Direction],
    seed: int,
    attempt: int,
    *,
    at_random: bool,
    fixed: Fixed | None = None,
) -> Placement | None:
    """Return a placement that fits, or None where there is no room for what was drawn.

    Args:
        space: to draw from.
        known: everything that ended, in order, with the parameters that a sampler would have drawn.
        directions: of what is optimised.
        seed: of the study.
        attempt: draws since the last of `known` that led to nothing new.
        at_random: do not look at what was best so far.
        fixed: parameters that the sampler may not choose, with their values.
    """
    chosen_by = sampler(seed, len(known), attempt, at_random=at_random, fixed=fixed)
    study = optuna.create_study(directions=list(directions), sampler=chosen_by)
    study.add_trials(known)
    return space.sample(study.ask())


def parameters(space: Space, placement: Placement) -> Parameters:
    """Return what a sampler would have drawn for a placement, and from what; empty for a baseline."""
    drawn = space.parameters(placement)
    if not drawn:
        return {}, {}
    study = optuna.create_study()
    study.enqueue_trial(drawn)
    trial = study.ask()
    space.sample(trial)
    return trial.params, trial.distributions
