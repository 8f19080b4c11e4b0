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
from optuna.trial import TrialState

from hottune.placement import Placement
from hottune.search.claims import Parameters
from hottune.search.space import Space

STARTUP_TRIALS = 10

Direction = Literal["minimize", "maximize"]
#: A placement and its value; None = it has no measurement.
Known = tuple[Placement, float | None]


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
    space: Space, known: Sequence[Known], direction: Direction, seed: int, attempt: int, *, at_random: bool
) -> Placement | None:
    """Return a placement that fits, or None where there is no room for what was drawn.

    Args:
        space: to draw from.
        known: everything measured, in order.
        direction: of what is optimised.
        seed: of the study.
        attempt: draws since the last of `known` that led to nothing new.
        at_random: do not look at what was best so far.
    """
    study = optuna.create_study(
        direction=direction, sampler=sampler(seed, len(known), attempt, at_random=at_random)
    )
    for placement, value in known:
        _replay(study, space, placement, value)
    return space.sample(study.ask())


def parameters(space: Space, placement: Placement) -> Parameters:
    """Return what a sampler would have drawn for a placement, and from what; empty for a baseline."""
    trial = _replay(optuna.create_study(), space, placement, None)
    return trial.params, trial.distributions


def _replay(study: optuna.Study, space: Space, placement: Placement, value: float | None) -> optuna.Trial:
    """Let a study know a placement as if it had drawn it."""
    drawn = space.parameters(placement)
    study.enqueue_trial(drawn)
    trial = study.ask()
    if drawn:
        space.sample(trial)
    if value is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)
    return trial
