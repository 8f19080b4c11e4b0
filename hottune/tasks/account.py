"""The search's own account: servers and seconds that it took, how right the memory model was, the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hottune.outcomes import Measurement
from hottune.report.schema import SearchAccount, Trial
from hottune.search.correction import NO_CORRECTION, NeedMib
from hottune.search.objective import Objective, front

#: Placements after which the memory model has been corrected enough to be judged.
JUDGED_AFTER = 3


class MemoryModel(Protocol):
    """The part of a `Space` that is judged."""

    @property
    def ceiling_mib(self) -> float:
        """VRAM that there is, MiB."""

    @property
    def need_mib(self) -> NeedMib:
        """Tells the VRAM that a placement needs."""


def account(memory: MemoryModel, trials: Sequence[Trial], objective: Objective) -> SearchAccount:
    """Return what the trials of a study took and told.

    The memory model is judged by what it predicted with what was known before each trial: the largest
    difference between predicted and measured peak VRAM, relative to the latter. Servers that served other
    trials before are left out, for they hold what CUDA took for those; so are `--fit`, which places by
    itself, and other engines.

    Args:
        memory: as it was planned, without corrections.
        trials: all of them, in order.
        objective: a front is told for `pareto` alone.
    """
    measured = [trial for trial in trials if isinstance(trial.outcome, Measurement)]
    reused = sum(trial.in_reused_server for trial in trials)
    errors = vram_errors(memory, trials)
    on_front: list[int] = []
    if objective is Objective.PARETO:
        outcomes = [trial.outcome for trial in measured if isinstance(trial.outcome, Measurement)]
        on_front = [measured[index].number for index in front(outcomes)]
    return SearchAccount(
        servers=len(trials) - reused,
        reused=reused,
        seconds=sum(trial.seconds for trial in trials),
        vram_error=max(errors[JUDGED_AFTER:], default=None),
        vram_judged=len(errors[JUDGED_AFTER:]),
        front=on_front,
    )


def vram_errors(memory: MemoryModel, trials: Sequence[Trial]) -> list[float]:
    """Return the relative error of predicted peak VRAM for each judged trial, in order."""
    known, errors = NO_CORRECTION, []
    for trial in trials:
        placement, outcome = trial.placement, trial.outcome
        if isinstance(outcome, Measurement) and not (
            placement.fit or placement.engine or trial.in_reused_server
        ):
            held = placement
            hot = outcome.engagement.hot
            if hot is not None and hot.slots < placement.hot_k:
                # What was not given was not taken: the model is asked about what the device really held.
                held = placement.model_copy(update={"hot_k": hot.slots})
            predicted = memory.need_mib(held) + known.offset_mib(held)
            errors.append(abs(predicted / outcome.vram_peak_mib - 1))
        known = known.after(placement, outcome, memory.need_mib, memory.ceiling_mib)
    return errors
