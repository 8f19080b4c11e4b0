"""Study: baselines, then the structured plan, then the sampler; all of it resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Trial
from hottune.search.baselines import BASELINES, measure_baselines
from hottune.search.journal import Journal, Measure, Planned
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.space import Space
from hottune.search.structure import Known, Start, next_structured

#: The sampler may choose known or impossible placements this often in a row before chance chooses, ...
DRY_DRAWS = 15
#: ... and so often before the search ends.
DRY_DRAWS_IN_ALL = 40
#: Parameters of the space that need a fresh server.
RESTART = ("ubatch", "n_cpu_moe", "threads")
#: Draws that one server serves, if its placement is at most this much slower than the best.
TRIALS_A_SERVER, PROMISING = 3, 0.1

Watch = Callable[[Trial], None]
Announce = Callable[[Placement], None]


def nobody(trial: Trial) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Budget:
    """How long the search goes on.

    Args:
        trials: placements to measure after the baselines.
        quick: only the first look of the structured plan.
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
        measure_baselines(self.space, self._baseline, self.objective.cost)

    def search(self, budget: Budget) -> None:
        """Measure hot placements until the budget is used up.

        Placements that an earlier process began and did not finish come first, then the structured plan, then
        the sampler, in the joint space.
        """
        for planned in self.journal.unfinished():
            if (
                planned.origin != "baseline"
                and not self._done(budget)
                and self.space().fits(planned.placement)
            ):
                self._try_unclaimed(planned, budget)
        while not self._done(budget):
            placement = self.next_structured(quick=budget.quick)
            if placement is None:
                break
            self._try_unclaimed(Planned(placement, "grid"), budget)
        dry = 0
        while not self._done(budget) and dry < DRY_DRAWS_IN_ALL:
            space = self.space()
            trial = self.journal.try_sample(
                space,
                self.measure,
                at_random=dry >= DRY_DRAWS,
                fixed=self._same_server(space, dry),
                limit=budget.trials,
            )
            dry = 0 if trial else dry + 1
            if trial:
                self.watch(trial)

    def next_structured(self, *, quick: bool = False) -> Placement | None:
        """Return what the structured plan wants to know next, or None when it is through."""
        trials = self.journal.trials()
        # What another worker is measuring is taken for bad until it is known: this one looks elsewhere.
        claimed = [(placement, None) for placement in self.journal.claimed()]
        known = Known([*((trial.placement, self._cost(trial)) for trial in trials), *claimed])
        return next_structured(self.space(), self.start_of_plan(trials), known, quick=quick)

    def start_of_plan(self, trials: list[Trial]) -> Start:
        """Return the settings that the plan begins with: ubatch and threads of the best baseline."""
        static = best_of_arms((trial for trial in trials if trial.arm), self.objective)
        known = [static[arm].placement for arm in ("layers", "all-cpu") if arm in static]
        space = self.space()
        if not known:
            return Start(space.ubatches[0], space.base.threads)
        return Start(known[0].ubatch, known[0].threads)

    def _cost(self, trial: Trial) -> float | None:
        """Return a trial's cost; None where it was not measured, or breaks a limit of the study."""
        if not isinstance(trial.outcome, Measurement) or not self.journal.limits.kept(trial.outcome):
            return None
        return self.objective.cost(trial.outcome)

    def _same_server(self, space: Space, dry: int) -> dict[str, int | float | str] | None:
        """Return the parameters to keep so that the server of the last trial serves the next one, too.

        Starting a server takes longer than driving a workload, so one whose placement is promising serves
        `TRIALS_A_SERVER` draws; then the sampler is free again, and so it is once it draws nothing new.
        """
        hot = [trial for trial in self.searched() if isinstance(trial.outcome, Measurement)]
        if dry or not hot:
            return None
        parameters = space.parameters(hot[-1].placement)
        restart = {name: value for name, value in parameters.items() if name in RESTART}
        served = 0
        for trial in reversed(hot):
            parameters = space.parameters(trial.placement)
            if {name: parameters.get(name) for name in restart} != restart:
                break
            served += 1
        costs = [cost for trial in hot if (cost := self._cost(trial)) is not None]
        last = self._cost(hot[-1])
        promising = last is not None and last <= min(costs) + PROMISING * abs(min(costs))
        return restart if restart and promising and served < TRIALS_A_SERVER else None

    def searched(self) -> list[Trial]:
        """Return the trials that count against the budget: all but baselines."""
        return [trial for trial in self.journal.trials() if trial.arm is None]

    def best(self) -> dict[ArmName, Trial]:
        """Return the best measured trial of every arm that has one; `hot` is the best of the search."""
        return best_of_arms(self.journal.trials(), self.objective, self.journal.limits)

    def _done(self, budget: Budget) -> bool:
        begun = len(self.searched()) + self.journal.claimed_by_search()
        return begun >= budget.trials or budget.spent()

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


def best_of_arms(
    trials: Iterable[Trial], objective: Objective, limits: Limits = NO_LIMITS
) -> dict[ArmName, Trial]:
    """Return the best measured trial of each arm, in the report's order of arms.

    What keeps the limits goes before what does not.
    """
    costs: dict[ArmName, tuple[tuple[bool, float], Trial]] = {}
    for trial in trials:
        if not isinstance(trial.outcome, Measurement):
            continue
        arm: ArmName = trial.arm or "hot"
        cost = (not limits.kept(trial.outcome), objective.cost(trial.outcome))
        if arm not in costs or cost < costs[arm][0]:
            costs[arm] = (cost, trial)
    order: tuple[ArmName, ...] = (*BASELINES, "hot")
    return {arm: costs[arm][1] for arm in order if arm in costs}
