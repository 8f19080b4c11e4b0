"""The search's own account: servers and seconds that it took, how right the memory model was, the front."""

from __future__ import annotations

from collections.abc import Sequence

from hottune.outcomes import Measurement
from hottune.report.schema import SearchAccount, Trial
from hottune.search.objective import Objective, front
from hottune.search.space import Space

#: Placements after which the memory model has been corrected enough to be judged.
JUDGED_AFTER = 3


def account(space: Space, trials: Sequence[Trial], objective: Objective) -> SearchAccount:
    """Return what the trials of a study took and told.

    The memory model is judged by what it predicted with what was known before each trial: the largest
    difference between predicted and measured peak VRAM, relative to the latter. Servers that served other
    trials before are left out, for they hold what CUDA took for those; so is `--fit`, which places by itself.

    Args:
        space: as it was planned, without corrections.
        trials: all of them, in order.
        objective: a front is told for `pareto` alone.
    """
    measured = [trial for trial in trials if isinstance(trial.outcome, Measurement)]
    reused = [trial for trial in measured if _reused(trial)]
    placed = [trial for trial in measured if not trial.placement.fit and not _reused(trial)]
    errors = [_vram_error(space, trials, trial) for trial in placed]
    on_front: list[int] = []
    if objective is Objective.PARETO:
        outcomes = [trial.outcome for trial in measured if isinstance(trial.outcome, Measurement)]
        on_front = [measured[index].number for index in front(outcomes)]
    return SearchAccount(
        servers=len(trials) - len(reused),
        reused=len(reused),
        seconds=sum(trial.seconds for trial in trials),
        vram_error=max(errors[JUDGED_AFTER:], default=None),
        vram_judged=len(errors[JUDGED_AFTER:]),
        front=on_front,
    )


def _reused(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measurement) and trial.outcome.reused_server


def _vram_error(space: Space, trials: Sequence[Trial], trial: Trial) -> float:
    assert isinstance(trial.outcome, Measurement)
    before = [(one.placement, one.outcome) for one in trials if one.number < trial.number]
    placement = trial.placement
    hot = trial.outcome.engagement.hot
    if hot is not None and hot.slots < placement.hot_k:
        # What was not given was not taken: the model is asked about what the device really held.
        placement = placement.model_copy(update={"hot_k": hot.slots})
    predicted = space.corrected(before).predicted_mib(placement)
    return abs(predicted / trial.outcome.vram_peak_mib - 1)
