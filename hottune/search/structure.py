"""Structure before sampling: what to measure next, from what is known, before any sampler draws.

The plan is an ordinary program, `_Plan.run`, that asks for the cost of one placement after another and
decides by the answers. What the journal knows is answered; the first unknown one stops it, is measured,
and it runs again from its beginning. So the plan has no state of its own: a study that was killed,
or that several workers share, goes on with the same placements.

The plan: where along the ceiling the best mix of whole layers and cache lies (an earlier study or the cost
model proposes where to begin; the first cache that is measured calibrates the model, which then leaves out
mixes without hope); then threads and ubatch, which do most. All of it once quickly and once with care, around
what was found: there, what is better by less than servers scatter is believed only when it still is, by
`MARGIN`, after both were measured again (hottune/search/looks.py). At the end the device's live settings,
which one server serves all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from hottune.placement import INTERVAL_POLICIES, Placement, Policy
from hottune.search.looks import CLEAR, gain, looks_for, noise_of
from hottune.search.space import DEFAULT_INTERVAL, Foresee, Space

#: Shares of the room for experts that whole layers take: tried in this order, the cache takes the rest.
SHARES = (0.0, 0.5)
#: How far from the best share its neighbours lie, in the first look and in the last.
FIRST_STEP, LAST_STEP = 0.25, 0.125
#: A measured placement answers for one whose cache is this much larger or smaller: bounds move as trials
#: correct the memory model.
SAME_CACHE = 0.05

#: A mix that a calibrated cost model expects to be so much slower than the best known is not measured.
HOPELESS = 0.15
#: What replaces another setting in a close call must be so much better.
MARGIN = 0.01
#: Of settings that do much, whatever is behind by so many standard errors is measured again, too.
TIES = 1.25


@dataclass(frozen=True)
class Start:
    """Where the plan begins: settings of the best baseline, or what a replayed trace recommends."""

    ubatch: int
    threads: int
    policy: Policy = "lfru"
    interval: int = DEFAULT_INTERVAL
    layer_share: float | None = None  # None = what the cost model proposes


@dataclass(frozen=True)
class Point:
    """A placement by what it means: the same point is another placement when the bounds have moved."""

    layer_share: float
    ubatch: int
    threads: int
    policy: Policy
    interval: int
    bypass: int
    shared: bool = False

    def placement(self, space: Space) -> Placement | None:
        """Return the placement with the largest cache that fits, or None without room for one."""
        return space.hot(
            space.fullest(space.mixed(self.layer_share, self.ubatch), self.ubatch),
            self.ubatch,
            threads=self.threads,
            interval=self.interval,
            bypass=self.bypass,
            policy=self.policy,
            shared=self.shared,
        )


class Known:
    """Costs of what was measured, looked up by placement; a slightly different cache counts as the same.

    Args:
        costs: every trial that ended, as placement and cost (lower is better), None where it has none.
    """

    def __init__(self, costs: Iterable[tuple[Placement, float | None]]) -> None:
        self._exact: dict[Placement, list[float | None]] = {}
        self._alike: dict[Placement, set[Placement]] = {}
        for placement, cost in costs:
            self._exact.setdefault(placement, []).append(cost)
            if cost is not None and placement.hot_k:
                self._alike.setdefault(_without_cache(placement), set()).add(placement)

    @property
    def noise(self) -> float:
        """Relative scatter of one measurement (see `looks`)."""
        found = [[cost for cost in costs if cost is not None] for costs in self._exact.values()]
        return noise_of(found)

    def measured(self, placement: Placement) -> tuple[Placement, list[float | None]]:
        """Return the placement that answers for this one, and what it cost, measurement by measurement."""
        if placement in self._exact:
            return placement, self._exact[placement]
        within = max(1.0, SAME_CACHE * placement.hot_k)
        near = [
            (abs(one.hot_k - placement.hot_k), -one.hot_k, one)
            for one in self._alike.get(_without_cache(placement), ())
            if abs(one.hot_k - placement.hot_k) <= within
        ]
        if not near:
            return placement, []
        found = min(near, key=lambda one: one[:2])[2]
        return found, self._exact[found]


@dataclass(frozen=True)
class Wanted:
    """A placement that the plan wants to know, and how many measurements of it there are."""

    placement: Placement
    repeat: int = 0


class _Unknown(Exception):
    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted


#: Mean cost of a point, measured so many times at least.
Ask = Callable[[Point, int], float]


def next_structured(space: Space, start: Start, known: Known, *, quick: bool = False) -> Wanted | None:
    """Return the first placement of the plan that is not known well enough; None when the plan is through.

    Args:
        space: with its bounds as they are now.
        start: settings to begin with.
        known: everything measured so far.
        quick: only the first look: the mix, and the settings with most to tell.
    """

    def ask(point: Point, looks: int) -> float:
        placement = point.placement(space)
        if placement is None:
            return math.inf
        found, costs = known.measured(placement)
        if None in costs:
            return math.inf
        if len(costs) < looks:
            raise _Unknown(Wanted(found, len(costs)))
        return fmean(cost for cost in costs if cost is not None)

    def is_known(point: Point) -> bool:
        placement = point.placement(space)
        return placement is not None and bool(known.measured(placement)[1])

    try:
        _Plan(space, start, ask, is_known, 0.0 if quick else known.noise).run(quick)
    except _Unknown as unknown:
        return unknown.wanted
    return None


def foreseen(space: Space, start: Start, *, quick: bool = False) -> list[Placement]:
    """Return the placements of the plan, in order, if all turned out equally fast; for `--dry-run`."""
    asked: dict[Placement, None] = {}

    def ask(point: Point, looks: int) -> float:
        placement = point.placement(space)
        if placement is None:
            return math.inf
        asked[placement] = None
        return 1.0

    _Plan(space, start, ask, lambda point: False, 0.0).run(quick)
    return list(asked)


class _Plan:
    def __init__(
        self, space: Space, start: Start, ask: Ask, is_known: Callable[[Point], bool], noise: float
    ) -> None:
        self._space = space
        self._ask = ask
        self._is_known = is_known
        self._start = start
        self._known_noise = noise
        self._noise = 0.0  # the first round believes what it sees
        self._best = Point(
            first_share(space, start),
            start.ubatch,
            start.threads,
            start.policy,
            start.interval,
            space.bypasses[0],
        )

    def run(self, quick: bool) -> None:
        space = self._space
        self._ask(self._best, 1)  # first of all, for it calibrates the cost model
        again = [proposed_share(space, self._start, space.calibrated)] if space.calibrated else []
        self._shares(*again, *SHARES[: 1 if quick else None])
        if quick:
            self._choices("threads", space.threads[-2:])
            self._live((16,), ())
            self._shares(0.5)
            return
        self._around(FIRST_STEP)
        self._choices("threads", space.threads)
        self._choices("ubatch", space.ubatches)
        self._noise = self._known_noise
        self._shares(*SHARES, self._best.layer_share + LAST_STEP, self._best.layer_share - LAST_STEP)
        self._choices("threads", _beside(space.threads, self._best.threads))
        self._choices("ubatch", _beside(space.ubatches, self._best.ubatch))
        self._live((16, 240), ("lfru", "lru", "window"))
        self._take([replace(self._best, shared=True)])

    def _take(self, points: Iterable[Point], ties: float = 0.0) -> bool:
        """Move to the best of the points; tell whether that was a move.

        All are measured once; then, as often as the noise asks for, again what may still be the best: the one
        that seems it, what is now, and whatever is behind by less than `ties` standard errors.
        """
        before, looks = self._best, looks_for(self._noise) if self._noise else 1
        by_placement: dict[Placement | None, Point] = {}
        for point in (before, *points):
            by_placement.setdefault(point.placement(self._space), point)
        alive = list(by_placement.values())
        found, costs = before, {before: math.inf}
        for n_looks in range(1, looks + 1):
            costs = {point: self._ask(point, n_looks) for point in alive}
            found = min(alive, key=lambda point: costs[point])
            error = self._noise / math.sqrt(n_looks)
            allowed = {point: (CLEAR if point == before else ties) * error for point in alive}
            alive = [
                point
                for point in alive
                if point == found or gain(costs[found], costs[point]) < allowed[point]
            ]
            if alive == [found]:
                break
        margin = MARGIN if before in alive and self._noise else 0.0
        if (
            found != before
            and math.isfinite(costs[found])
            and gain(costs[found], costs.get(before, math.inf)) >= margin
        ):
            self._best = found
        return self._best != before

    def _shares(self, *values: float) -> None:
        points = [replace(self._best, layer_share=min(1.0, max(0.0, value))) for value in values]
        self._take((point for point in points if not self._hopeless(point)), TIES)

    def _hopeless(self, point: Point) -> bool:
        """Tell whether a mix need not be measured: a cost model that has proved itself says so.

        What is measured already always counts, so that what was decided by it stays decided.
        """
        model = self._space.calibrated
        if model is None or not model.trusted or self._is_known(point):
            return False
        best, other = self._best.placement(self._space), point.placement(self._space)
        return best is not None and other is not None and model(other) * (1 + HOPELESS) < model(best)

    def _around(self, step: float) -> None:
        self._shares(self._best.layer_share + step, self._best.layer_share - step)

    def _choices(self, field: str, choices: Sequence[int]) -> bool:
        """Try all of a few choices: the best may lie behind one that makes no difference."""
        return self._take((replace(self._best, **{field: value}) for value in choices), TIES)  # type: ignore[arg-type]

    def _live(self, intervals: Sequence[int], policies: Sequence[Policy]) -> None:
        """Try other policies and rebalancing, which a running server can turn to."""
        best = self._best
        found = [replace(best, interval=one) for one in intervals if best.policy in INTERVAL_POLICIES]
        for policy in policies:
            interval = best.interval if policy in INTERVAL_POLICIES else DEFAULT_INTERVAL
            found.append(replace(best, policy=policy, interval=interval))
        self._take(found)


def first_share(space: Space, start: Start) -> float:
    """Return the share of whole layers to measure first: that of the start, else what the model proposes."""
    if start.layer_share is not None and _at(start.layer_share, space, start) is not None:
        return start.layer_share
    return proposed_share(space, start, space.foresee)


def proposed_share(space: Space, start: Start, foresee: Foresee | None) -> float:
    """Return the share of whole layers that a cost model expects to do best; 0 without a model."""
    if foresee is None:
        return 0.0
    speeds = {}
    for step in range(9):
        placement = _at(step / 8, space, start)
        if placement is not None:
            speeds[step / 8] = foresee(placement)
    return max(speeds, key=lambda share: speeds[share], default=0.0)


def _beside(choices: Sequence[int], value: int) -> Sequence[int]:
    """Return the choices next to a value."""
    if value not in choices:
        return choices
    index = choices.index(value)
    return choices[max(0, index - 1) : index + 2]


def _at(layer_share: float, space: Space, start: Start) -> Placement | None:
    point = Point(layer_share, start.ubatch, start.threads, start.policy, start.interval, space.bypasses[0])
    return point.placement(space)


def _without_cache(placement: Placement) -> Placement:
    return placement.model_copy(update={"hot_k": 0})
