"""Study: baselines, then the structured plan, then the sampler; all of it resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import ArmName, Trial
from hottune.search.baselines import BASELINES, measure_baselines
from hottune.search.draw import Fixed
from hottune.search.entries import Planned
from hottune.search.hints import NO_HINTS, Hints
from hottune.search.journal import Journal
from hottune.search.looks import MOST, gain, looks_among, looks_for, noise_of
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.recorder import Measure
from hottune.search.rivals import Rival, measure_rival
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

#: Runners-up are measured again while they are behind by less than so many standard errors.
CLOSE = 0.5

Watch = Callable[[Trial], None]


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
    rivals: tuple[Rival, ...] = ()

    @property
    def objective(self) -> Objective:
        """What is optimised."""
        return self.journal.objective

    def space(self, trials: list[Trial] | None = None) -> Space:
        """Return the space with its bounds corrected by everything measured so far.

        Args:
            trials: of the search, where they were read just now.
        """
        return self.plan.corrected(self.journal.history(trials))

    def baselines(self) -> None:
        """Measure every baseline that is not in the journal yet, then every other engine."""
        measure_baselines(self.space, self._baseline, self.objective.cost)
        start = self.best().get("layers")
        for rival in self.rivals:
            placement = start.placement if start else None
            measure_rival(rival, self.space, placement, self._baseline, self.objective.cost)

    def search(self, budget: Budget) -> None:
        """Measure hot placements until the budget is used up.

        Placements that an earlier process began and did not finish come first, then the structured plan, then
        the sampler, in the joint space.
        """
        for planned in self.journal.unfinished():
            trials = self.journal.trials()
            if planned.origin == "baseline" or self._done(budget, trials):
                continue
            space = self.space(trials)
            if space.fits(planned.placement):
                self._try_unclaimed(planned, space, budget)
        while not self._done(budget, trials := self.journal.trials()):
            space = self.space(trials)
            wanted = self._next_structured(space, trials, quick=budget.quick)
            if wanted is None or not self._try_unclaimed(
                Planned(wanted.placement, "grid", repeat=wanted.repeat), space, budget
            ):
                break  # the plan is through, or another worker measures what it waits for
        dry = 0
        while not self._done(budget, trials := self.journal.trials()) and dry < DRY_DRAWS_IN_ALL:
            space = self.space(trials)
            doubtful = None if budget.quick else self._doubtful(trials)
            if doubtful is not None and self._try_unclaimed(doubtful, space, budget):
                continue
            trial = self.journal.try_sample(
                space,
                self.measure,
                at_random=dry >= DRY_DRAWS,
                fixed=self._fixed(space, trials, dry),
                limit=budget.trials,
            )
            dry = 0 if trial else dry + 1
            if trial:
                self.watch(trial)

    def _doubtful(self, trials: list[Trial]) -> Planned | None:
        """Return what must be measured again before the best is known; None when nothing must.

        First what seems better than the best and was measured less often than the noise asks for; then close
        runners-up, and the best itself beside them, as long as they are within half a standard error.
        """
        searched = _searched(trials)
        costs = costs_of(searched, self.objective, self.journal.limits)
        mean = {placement: fmean(one) for placement, one in costs.items()}
        noise = noise_of(costs.values())
        looks = looks_for(noise)
        known = [placement for placement, one in costs.items() if len(one) >= looks]
        best = min(known, key=lambda one: mean[one], default=None)
        seeming = min((one for one in costs if one not in known), key=lambda one: mean[one], default=None)
        if seeming is not None and (best is None or mean[seeming] < mean[best]):
            return _again(seeming, searched)
        close = [
            one
            for one in known
            if best is not None and gain(mean[best], mean[one]) < CLOSE * noise / math.sqrt(len(costs[one]))
        ]
        again = min(close, key=lambda one: (len(costs[one]), mean[one]), default=None)
        if len(close) < 2 or again is None or len(costs[again]) >= MOST:
            return None
        return _again(again, searched)

    def _next_structured(self, space: Space, trials: list[Trial], *, quick: bool) -> Wanted | None:
        """Return what the structured plan wants to know next, or None when it is through."""
        known = Known((trial.placement, self._cost(trial)) for trial in trials)
        return next_structured(space, self._start_of_plan(space, trials), known, quick=quick)

    def _start_of_plan(self, space: Space, trials: list[Trial]) -> Start:
        """Return where the plan begins: ubatch and threads of the best baseline, then what the hints say."""
        static = best_of_arms((trial for trial in trials if trial.arm), self.objective)
        known = [static[arm].placement for arm in ("layers", "all-cpu") if arm in static]
        first = known[0] if known else space.all_cpu(space.ubatches[0])
        return self.hints.applied(Start(first.ubatch, first.threads), space)

    def _cost(self, trial: Trial) -> float | None:
        """Return a trial's cost; None where it was not measured, or breaks a limit of the study."""
        if not isinstance(trial.outcome, Measurement) or not self.journal.limits.kept(trial.outcome):
            return None
        return self.objective.cost(trial.outcome)

    def _fixed(self, space: Space, trials: list[Trial], dry: int) -> Fixed | None:
        """Return the parameters that the next draw keeps from the best placement; None = it is free.

        The plan ends near the best, and few trials are left: most draws look around it, a group of parameters
        at a time. Those that a running server can turn to come most often, for they are cheap.
        """
        best = best_of_arms(trials, self.objective, self.journal.limits).get("hot")
        if best is None:
            return None
        parameters = space.parameters(best.placement)
        drawn = sum(1 for trial in trials if trial.origin == "sampler")
        free = DRAWN_TOGETHER[(drawn + dry) % len(DRAWN_TOGETHER)]
        return {name: value for name, value in parameters.items() if name not in free} if free else None

    def searched(self) -> list[Trial]:
        """Return the trials that count against the budget: all but baselines."""
        return _searched(self.journal.trials())

    def best(self) -> dict[ArmName, Trial]:
        """Return the best measured trial of every arm that has one; `hot` is the best of the search."""
        return best_of_arms(self.journal.trials(), self.objective, self.journal.limits)

    def _done(self, budget: Budget, trials: list[Trial]) -> bool:
        begun = len(_searched(trials)) + self.journal.claimed_by_search()
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

    def _try_unclaimed(self, planned: Planned, space: Space, budget: Budget) -> bool:
        """Measure a placement unless another worker does, or the budget is used up; tell whether."""
        trial = self.journal.try_unclaimed(planned, space, self.measure, limit=budget.trials)
        if trial is not None:
            self.watch(trial)
        return trial is not None


def _again(placement: Placement, searched: Sequence[Trial]) -> Planned:
    before = [trial for trial in searched if trial.placement == placement]
    return Planned(placement, before[0].origin, repeat=len(before))


def _searched(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.arm is None]


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

    What keeps the limits goes before what does not, and what was measured as often as the noise asks for (or
    as often as anything was) before what was measured less often: its luck has not been looked at.
    """
    known = list(trials)
    first: dict[Placement, Trial] = {}
    for trial in known:
        if isinstance(trial.outcome, Measurement):
            first.setdefault(trial.placement, trial)
    costs = costs_of(known, objective)
    kept = costs_of(known, objective, limits)
    looks = looks_among(costs.values())

    def rank(placement: Placement) -> tuple[bool, bool, float]:
        return placement not in kept, len(costs[placement]) < looks, fmean(costs[placement])

    return [first[placement] for placement in sorted(first, key=rank)]


def costs_of(
    trials: Iterable[Trial], objective: Objective, limits: Limits = NO_LIMITS
) -> dict[Placement, list[float]]:
    """Return the costs of each placement, measurement by measurement; without those that broke a limit."""
    found: dict[Placement, list[float]] = {}
    broken = set()
    for trial in trials:
        if isinstance(trial.outcome, Measurement):
            found.setdefault(trial.placement, []).append(objective.cost(trial.outcome))
            if not limits.kept(trial.outcome):
                broken.add(trial.placement)
    return {placement: costs for placement, costs in found.items() if placement not in broken}
