"""Structure before sampling: what to measure next, from what is known, before any sampler draws.

The plan is an ordinary program, `_plan`, that asks for the cost of one placement after another and decides by
the answers. What the journal knows is answered; the first unknown placement stops the program, is measured,
and the program runs again from its beginning. So the plan has no state of its own: a study that was killed,
or that several workers share, goes on with the same placements.

The plan: where along the ceiling the best mix of whole layers and cache lies (the cost model proposes where
to begin), then the device's live settings (one server serves them all), then what needs a restart: threads
and ubatch; at the end the mix once more, closer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from hottune.placement import INTERVAL_POLICIES, Placement, Policy
from hottune.search.space import DEFAULT_INTERVAL, Space

#: Shares of the room for experts that whole layers take: tried in this order, the cache takes the rest.
SHARES = (0.0, 0.5)
#: How far from the best share its neighbours lie, in the first look and in the last.
FIRST_STEP, LAST_STEP = 0.25, 0.125
#: A measured placement answers for one whose cache is this much larger or smaller: bounds move as trials
#: correct the memory model.
SAME_CACHE = 0.05

Cost = Callable[[Placement], float | None]


@dataclass(frozen=True)
class Start:
    """Where the plan begins: settings of the best baseline, or what a replayed trace recommends."""

    ubatch: int
    threads: int
    policy: Policy = "lfru"
    interval: int = DEFAULT_INTERVAL


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
            space.mixed(self.layer_share, self.ubatch),
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
        costs: every placement that ended, with its cost (lower is better), or None when it has none.
    """

    def __init__(self, costs: Iterable[tuple[Placement, float | None]]) -> None:
        self._exact: dict[Placement, float | None] = {}
        self._alike: dict[Placement, list[tuple[int, float]]] = {}
        for placement, cost in costs:
            self._exact[placement] = cost
            if cost is not None and placement.hot_k:
                self._alike.setdefault(_without_cache(placement), []).append((placement.hot_k, cost))

    def __contains__(self, placement: Placement) -> bool:
        return placement in self._exact or self._near(placement) is not None

    def cost(self, placement: Placement) -> float:
        """Return the cost; infinite for what could not be measured."""
        known = self._exact.get(placement)
        if known is None:
            known = self._near(placement)
        return math.inf if known is None else known

    def _near(self, placement: Placement) -> float | None:
        within = max(1.0, SAME_CACHE * placement.hot_k)
        near = [
            (abs(hot_k - placement.hot_k), cost)
            for hot_k, cost in self._alike.get(_without_cache(placement), [])
            if abs(hot_k - placement.hot_k) <= within
        ]
        return min(near)[1] if near else None


class _Unknown(Exception):
    def __init__(self, placement: Placement) -> None:
        self.placement = placement


def next_structured(space: Space, start: Start, known: Known, *, quick: bool = False) -> Placement | None:
    """Return the first placement of the plan that is not known yet; None when the plan is through.

    Args:
        space: with its bounds as they are now.
        start: settings to begin with.
        known: everything measured so far.
        quick: only the first look: the mix, and the settings with most to tell.
    """

    def ask(point: Point) -> float:
        placement = point.placement(space)
        if placement is None:
            return math.inf
        if placement not in known:
            raise _Unknown(placement)
        return known.cost(placement)

    try:
        _plan(space, start, ask, quick)
    except _Unknown as unknown:
        return unknown.placement
    return None


def foreseen(space: Space, start: Start, *, quick: bool = False) -> list[Placement]:
    """Return the placements of the plan, in order, if all turned out equally fast; for `--dry-run`."""
    asked: dict[Placement, None] = {}

    def ask(point: Point) -> float:
        placement = point.placement(space)
        if placement is None:
            return math.inf
        asked[placement] = None
        return 1.0

    _plan(space, start, ask, quick)
    return list(asked)


def _plan(space: Space, start: Start, ask: Callable[[Point], float], quick: bool) -> None:
    best = Point(0.0, start.ubatch, start.threads, start.policy, start.interval, space.bypasses[0])

    def better(points: Iterable[Point]) -> bool:
        """Move to the best of the points; tell whether that was a move."""
        nonlocal best
        found = min([best, *points], key=ask)
        moved, best = found != best, found
        return moved

    def shares(*values: float) -> list[Point]:
        return [replace(best, layer_share=min(1.0, max(0.0, value))) for value in values]

    proposed = proposed_share(space, start)
    better(shares(proposed, *SHARES))
    if quick:
        better(_live(best, quick=True))
        better(_others(best, "threads", _steps(space.threads, best.threads)[:1]))
        return
    better(shares(best.layer_share + FIRST_STEP, best.layer_share - FIRST_STEP))
    better(_live(best, quick=False))
    better([replace(best, shared=True)])
    better(_others(best, "bypass", [bypass for bypass in space.bypasses if bypass != best.bypass]))
    for field, choices in (("threads", space.threads), ("ubatch", space.ubatches)):
        # Up or down, as long as it helps; a setting at which the other direction lost is not tried again.
        for step in (1, -1):
            while better(_others(best, field, _neighbour(choices, getattr(best, field), step))):
                pass
    better(shares(best.layer_share + LAST_STEP, best.layer_share - LAST_STEP))


def proposed_share(space: Space, start: Start) -> float:
    """Return the share of whole layers that the cost model expects to decode fastest; 0 without a model."""
    if space.foresee is None:
        return 0.0
    speeds = {}
    for step in range(9):
        point = Point(step / 8, start.ubatch, start.threads, start.policy, start.interval, space.bypasses[0])
        placement = point.placement(space)
        if placement is not None:
            speeds[step / 8] = space.foresee(placement)
    return max(speeds, key=lambda share: speeds[share], default=0.0)


def _live(best: Point, *, quick: bool) -> list[Point]:
    """Return variants that a running server can turn to: other rebalancing, other policies."""
    intervals = (16,) if quick else (16, 240)
    found = [replace(best, interval=interval) for interval in intervals if best.policy in INTERVAL_POLICIES]
    policies: Sequence[Policy] = () if quick else ("lfru", "lru", "window")
    for policy in policies:
        if policy != best.policy:
            interval = best.interval if policy in INTERVAL_POLICIES else DEFAULT_INTERVAL
            found.append(replace(best, policy=policy, interval=interval))
    return found


def _others(best: Point, field: str, values: Sequence[int]) -> list[Point]:
    return [replace(best, **{field: value}) for value in values]  # type: ignore[arg-type]


def _neighbour(choices: Sequence[int], value: int, step: int) -> list[int]:
    if value not in choices:
        return []
    index = choices.index(value) + step
    return [choices[index]] if 0 <= index < len(choices) else []


def _steps(choices: Sequence[int], value: int) -> list[int]:
    return [*_neighbour(choices, value, 1), *_neighbour(choices, value, -1)]


def _without_cache(placement: Placement) -> Placement:
    return placement.model_copy(update={"hot_k": 0})
