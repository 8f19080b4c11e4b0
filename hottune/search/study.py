"""Study: baselines, then the structured plan, then the sampler; all of it resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Trial
from hottune.search.baselines import BASELINES, measure_baselines
from hottune.search.draw import Fixed
from hottune.search.hints import NO_HINTS, Hints
from hottune.search.journal import Journal, Measure, Planned
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.space import Space
from hottune.search.structure import Known, Start, Wanted, next_structured

#: The sampler may choose known or impossible placements this often in a row before chance chooses, ...
DRY_DRAWS = 15
#: ... and so often before the search ends.
DRY_DRAWS_IN_ALL = 40
#: Groups of parameters that the sampler draws together, in turn, while the others stay at the best; () = all.
DRAWN_TOGETHER: tuple[tuple[str, ...], ...] = (
    ("policy", "rebalance_interval", "shared_budget", "prefill_bypass"),
    ("n_cpu_moe", "cache_share"),
    ("policy", "rebalance_interval", "shared_budget", "prefill_bypass"),
    ("threads", "ubatch"),
    (),
)

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
    hints: Hints = NO_HINTS

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
            wanted = self.next_structured(quick=budget.quick)
            if wanted is None or not self._try_unclaimed(
                Planned(wanted.placement, "grid", repeat=wanted.repeat), budget
            ):
                break  # the plan is through, or another worker measures what it waits for
        dry = 0
        while not self._done(budget) and dry < DRY_DRAWS_IN_ALL:
            trial = self.journal.try_sample(
                self.space(),
                self.measure,
                at_random=dry >= DRY_DRAWS,
                fixed=self._fixed(dry),
                limit=budget.trials,
            )
            dry = 0 if trial else dry + 1
            if trial:
                self.watch(trial)

    def next_structured(self, *, quick: bool = False) -> Wanted | None:
        """Return what the structured plan wants to know next, or None when it is through."""
        trials = self.journal.trials()
        known = Known((trial.placement, self._cost(trial)) for trial in trials)
        return next_structured(self.space(), self.start_of_plan(trials), known, quick=quick)

    def start_of_plan(self, trials: list[Trial]) -> Start:
        """Return where the plan begins: ubatch and threads of the best baseline, then what the hints say."""
        static = best_of_arms((trial for trial in trials if trial.arm), self.objective)
        known = [static[arm].placement for arm in ("layers", "all-cpu") if arm in static]
        space = self.space()
        first = known[0] if known else space.all_cpu(space.ubatches[0])
        return self.hints.applied(Start(first.ubatch, first.threads), space)

    def _cost(self, trial: Trial) -> float | None:
        """Return a trial's cost; None where it was not measured, or breaks a limit of the study."""
        if not isinstance(trial.outcome, Measurement) or not self.journal.limits.kept(trial.outcome):
            return None
        return self.objective.cost(trial.outcome)

    def _fixed(self, dry: int) -> Fixed | None:
        """Return the parameters that the next draw keeps from the best placement; None = it is free.

        The plan ends near the best, and few trials are left: most draws look around it, a group of parameters
        at a time. Those that a running server can turn to come most often, for they are cheap.
        """
        best = self.best().get("hot")
        if best is None:
            return None
        parameters = self.space().parameters(best.placement)
        drawn = sum(1 for trial in self.searched() if trial.origin == "sampler")
        free = DRAWN_TOGETHER[(drawn + dry) % len(DRAWN_TOGETHER)]
        return {name: value for name, value in parameters.items() if name not in free} if free else None

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

    def _try_unclaimed(self, planned: Planned, budget: Budget) -> bool:
        """Measure a placement unless another worker does, or the budget is used up; tell whether."""
        trial = self.journal.try_unclaimed(planned, self.space(), self.measure, limit=budget.trials)
        if trial is not None:
            self.watch(trial)
        return trial is not None


def best_of_arms(
    trials: Iterable[Trial], objective: Objective, limits: Limits = NO_LIMITS
) -> dict[ArmName, Trial]:
    """Return the best measured trial of each arm, in the report's order of arms (see `ranked`)."""
    of_arm: dict[ArmName, list[Trial]] = {}
    for trial in trials:
        of_arm.setdefault(trial.arm or "hot", []).append(trial)
    order: tuple[ArmName, ...] = (*BASELINES, "hot")
    best = {arm: ranked(of_arm.get(arm, []), objective, limits) for arm in order}
    return {arm: found[0] for arm, found in best.items() if found}


def ranked(trials: Iterable[Trial], objective: Objective, limits: Limits = NO_LIMITS) -> list[Trial]:
    """Return one measured trial of each placement, the best first.

    What was measured several times counts with its mean. What keeps the limits goes before what does not.
    """
    measured: dict[Placement, list[tuple[Trial, Measurement]]] = {}
    for trial in trials:
        if isinstance(trial.outcome, Measurement):
            measured.setdefault(trial.placement, []).append((trial, trial.outcome))

    def rank(found: list[tuple[Trial, Measurement]]) -> tuple[bool, float]:
        kept = all(limits.kept(outcome) for _, outcome in found)
        return not kept, fmean(objective.cost(outcome) for _, outcome in found)

    return [found[0][0] for found in sorted(measured.values(), key=rank)]
