"""What leads a study while it runs: shown as it is, one number of few measurements and never a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from hottune.errors import StorageError
from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.progress import BestSoFar
from hottune.report.schema import ArmName, Trial
from hottune.report.wording import number
from hottune.search.baselines import BASELINES
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.study import best_of_arms, costs_of

_UNITS = {"turn": "s", "decode": "tok/s", "prefill": "tok/s"}


@dataclass(frozen=True)
class _Leader:
    arm: ArmName
    placement: Placement
    costs: list[float]

    @property
    def cost(self) -> float:
        return fmean(self.costs)


class Standings:
    """Says what is best so far: by the replicates once there are some of a baseline and a candidate.

    Args:
        objective: what is optimised.
        limits: what the best must keep.
        trials: returns all trials so far, of this session and others.
    """

    def __init__(
        self, objective: Objective, trials: Callable[[], list[Trial]], limits: Limits = NO_LIMITS
    ) -> None:
        self._objective, self._trials, self._limits = objective, trials, limits
        self._known: list[Trial] = []
        self._replicates: dict[ArmName, _Leader] = {}

    def replicate(self, arm: ArmName, placement: Placement, outcome: Outcome) -> None:
        """Take a replicate over; the standings are those of replicates as soon as there are two arms."""
        if isinstance(outcome, Measurement) and self._limits.kept(outcome):
            leader = self._replicates.setdefault(arm, _Leader(arm, placement, []))
            leader.costs.append(self._objective.cost(outcome))

    def best(self) -> BestSoFar | None:
        """Return what leads; None before anything was measured."""
        again = self._replicates
        confirming = any(arm in BASELINES for arm in again) and any(arm not in BASELINES for arm in again)
        leaders = list(again.values()) if confirming else self._searched()
        if not leaders:
            return None
        best = min(leaders, key=lambda one: one.cost)
        static = [one for one in leaders if one.arm in BASELINES]
        base = min(static, key=lambda one: one.cost, default=None)
        compared = base is not None and base is not best
        return BestSoFar(
            label=f"{best.arm}: {named(best.placement)}" if best.arm in BASELINES else named(best.placement),
            value=f"{self._objective.metric} {number(abs(best.cost))} {_UNITS[self._objective.metric]}",
            basis=_basis(len(best.costs)),
            ratio=self._ratio(best, base) if base is not None and compared else None,
            baseline=base.arm if base is not None and compared else "",
        )

    def _searched(self) -> list[_Leader]:
        try:
            trials = self._known = self._trials()
        except StorageError:  # who needs it says so; a view does not end a study
            trials = self._known
        costs = costs_of(trials, self._objective, self._limits)
        best = best_of_arms(trials, self._objective, self._limits)
        return [
            _Leader(arm, trial.placement, costs[trial.placement])
            for arm, trial in best.items()
            if trial.placement in costs
        ]

    def _ratio(self, best: _Leader, base: _Leader) -> float:
        """Return how many times as fast the best is: of durations base over best, of speeds the other way."""
        by_time = self._objective.metric == "turn"
        return base.cost / best.cost if by_time else best.cost / base.cost


def _basis(count: int) -> str:
    return f"{'single measurement' if count == 1 else f'mean of {count} measurements'}, not a verdict"


def named(placement: Placement) -> str:
    """Return a placement's name with its threads."""
    return f"{placement.label()} t {placement.threads}"
