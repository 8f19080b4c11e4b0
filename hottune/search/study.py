"""Study: baselines, then what the memory model suggests, then the sampler; all of it resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Trial
from hottune.search.baselines import BASELINES, measure_baselines
from hottune.search.journal import Journal, Measure, Planned
from hottune.search.objective import Objective
from hottune.search.space import Space

#: The sampler may choose known or impossible placements this often in a row before chance chooses, ...
DRY_DRAWS = 15
#: ... and so often before the search ends.
DRY_DRAWS_IN_ALL = 40

Watch = Callable[[Trial], None]
Announce = Callable[[Placement], None]


def nobody(trial: Trial) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Budget:
    """How long the search goes on.

    Args:
        trials: placements to measure after the baselines.
        quick: only what the memory model suggests, the five with most to tell first.
        spent: says that the time is up; asked between placements.
    """

    trials: int
    quick: bool = False
    spent: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Study:
    """A journal and the space it explores."""

    journal: Journal
    plan: Space
    measure: Measure
    watch: Watch = nobody

    @property
    def objective(self) -> Objective:
        """What is optimised."""
        return self.journal.objective

    def space(self) -> Space:
        """Return the space with its bounds corrected by everything measured so far."""
        return self.plan.corrected(self.journal.history())

    def baselines(self) -> None:
        """Measure every baseline that is not in the journal yet."""
        measure_baselines(self.space, self._baseline)

    def search(self, budget: Budget) -> None:
        """Measure hot placements until the budget is used up.

        Placements that an earlier process began and did not finish come first.
        """
        for planned in self.journal.unfinished():
            if (
                planned.origin != "baseline"
                and not self._done(budget)
                and self.space().fits(planned.placement)
            ):
                self._try_unclaimed(planned, budget)
        while not self._done(budget):
            placement = self._next_of_grid(budget.quick)
            if placement is None:
                break
            self._try_unclaimed(Planned(placement, "grid"), budget)
        dry = 0
        while not self._done(budget) and dry < DRY_DRAWS_IN_ALL:
            trial = self.journal.try_sample(
                self.space(), self.measure, at_random=dry >= DRY_DRAWS, limit=budget.trials
            )
            dry = 0 if trial else dry + 1
            if trial:
                self.watch(trial)

    def searched(self) -> list[Trial]:
        """Return the trials that count against the budget: all but baselines."""
        return [trial for trial in self.journal.trials() if trial.arm is None]

    def best(self) -> dict[ArmName, Trial]:
        """Return the best measured trial of every arm that has one; `hot` is the best of the search."""
        return best_of_arms(self.journal.trials(), self.objective)

    def _done(self, budget: Budget) -> bool:
        begun = len(self.searched()) + self.journal.claimed_by_search()
        return begun >= budget.trials or budget.spent()

    def _next_of_grid(self, quick: bool) -> Placement | None:
        """Return the next placement of the grid; its bounds may have moved since the last one was made."""
        trials = self.journal.trials()
        measured = {trial.placement for trial in trials} | self.journal.claimed()
        tried = sum(1 for trial in trials if trial.origin == "grid")
        space = self.space()
        grid = space.grid(self._best_ubatch(trials) or space.ubatches[0], quick=quick)
        return next((placement for placement in grid[tried:] if placement not in measured), None)

    def _best_ubatch(self, trials: list[Trial]) -> int | None:
        static = best_of_arms((trial for trial in trials if trial.arm), self.objective)
        known = [static[arm].placement for arm in ("layers", "all-cpu") if arm in static]
        return known[0].ubatch if known else None

    def _baseline(self, arm: ArmName, placement: Placement) -> Outcome:
        for trial in self.journal.trials():
            if trial.placement == placement:
                return trial.outcome
        return self._try(Planned(placement, "baseline", arm)).outcome

    def _try(self, planned: Planned) -> Trial:
        trial = self.journal.try_placement(planned, self.space(), self.measure)
        self.watch(trial)
        return trial

    def _try_unclaimed(self, planned: Planned, budget: Budget) -> None:
        """Measure a placement unless another worker does."""
        trial = self.journal.try_unclaimed(planned, self.space(), self.measure, limit=budget.trials)
        if trial is not None:
            self.watch(trial)


def best_of_arms(trials: Iterable[Trial], objective: Objective) -> dict[ArmName, Trial]:
    """Return the best measured trial of each arm, in the report's order of arms."""
    costs: dict[ArmName, tuple[float, Trial]] = {}
    for trial in trials:
        if not isinstance(trial.outcome, Measurement):
            continue
        arm: ArmName = trial.arm or "hot"
        cost = objective.cost(trial.outcome)
        if arm not in costs or cost < costs[arm][0]:
            costs[arm] = (cost, trial)
    order: tuple[ArmName, ...] = (*BASELINES, "hot")
    return {arm: costs[arm][1] for arm in order if arm in costs}
