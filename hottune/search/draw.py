"""Drawing placements: Optuna's samplers, fed with what is known and seeded anew for every draw.

A draw depends on the seed, on what has been measured, and on how often was drawn in vain since: not on the
process, nor on trials that were begun and lost. So a study that is killed and resumed draws what it would
have drawn undisturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hottune.placement import Placement
from hottune.search.claims import Parameters
from hottune.search.space import Space

STARTUP_TRIALS = 10

Direction = Literal["minimize", "maximize"]


def sampler(seed: int, n_known: int, attempt: int, *, at_random: bool) -> optuna.samplers.BaseSampler:
    """Return the sampler of one draw.

    Args:
        seed: of the study.
        n_known: placements that were known before it.
        attempt: draws since then that led to nothing new.
        at_random: do not look at what was best so far.
    """
    (drawn,) = np.random.SeedSequence((seed % 2**63, n_known, attempt)).generate_state(1)
    if at_random:
        return optuna.samplers.RandomSampler(seed=int(drawn))
    return optuna.samplers.TPESampler(seed=int(drawn), multivariate=False, n_startup_trials=STARTUP_TRIALS)


def draw(
    space: Space,
    known: Sequence[FrozenTrial],
    direction: Direction,
    seed: int,
    attempt: int,
    *,
    at_random: bool,
) -> Placement | None:
    """Return a placement that fits, or None where there is no room for what was drawn.

    Args:
        space: to draw from.
        known: everything that ended, in order, with the parameters that a sampler would have drawn.
        direction: of what is optimised.
        seed: of the study.
        attempt: draws since the last of `known` that led to nothing new.
        at_random: do not look at what was best so far.
    """
    study = optuna.create_study(
        direction=direction, sampler=sampler(seed, len(known), attempt, at_random=at_random)
    )
    for one in known:
        study.add_trial(
            optuna.trial.create_trial(
                state=one.state, value=one.value, params=one.params, distributions=one.distributions
            )
        )
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
