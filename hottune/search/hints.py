"""Hints: what is known about where a search should begin, before a study measured anything."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hottune.placement import INTERVAL_POLICIES, Policy
from hottune.routing.published import HitCurve
from hottune.search.space import DEFAULT_INTERVAL, INTERVALS, POLICIES, Space
from hottune.search.structure import Start


class Hints(BaseModel):
    """Where earlier studies or a replayed trace say that the search should begin. None = they do not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ubatch: int | None = None
    threads: int | None = None
    policy: Policy | None = None
    interval: int | None = Field(default=None, description="tokens, see Placement.rebalance_interval")
    layer_share: float | None = Field(
        default=None, ge=0, le=1, description="of the VRAM for experts, taken by whole layers"
    )
    curve: tuple[tuple[float, float], ...] = Field(
        default=(), description="share of a layer's experts in the cache, and the hit rate with it"
    )
    origin: tuple[str, ...] = Field(default=(), description="one sentence for each source")

    def applied(self, start: Start, space: Space) -> Start:
        """Return the start with every hint that the present space can follow."""
        policy = self.policy if self.policy in POLICIES else None
        interval = start.interval if self.interval is None or policy is None else self.interval
        if policy is not None and policy not in INTERVAL_POLICIES:
            interval = DEFAULT_INTERVAL  # means nothing to it, and must not make another placement of it
        return Start(
            ubatch=self.ubatch if self.ubatch in space.ubatches else start.ubatch,
            threads=self.threads if self.threads in space.threads else start.threads,
            policy=policy or start.policy,
            interval=min(INTERVALS[1], max(INTERVALS[0], interval)),
            layer_share=self.layer_share if start.layer_share is None else start.layer_share,
        )

    def hit_curve(self) -> HitCurve | None:
        """Return the curve between its points; None without any."""
        if not self.curve:
            return None
        shares, rates = zip(*self.curve, strict=True)
        return lambda share: float(np.interp(share, shares, rates))

    def over(self, other: Hints) -> Hints:
        """Return both together; where both say something, this one counts (interval with policy)."""
        mine = self.model_dump(exclude_none=True, exclude={"origin", "curve"})
        theirs = other.model_dump(exclude={"origin", "curve"})
        if self.policy is not None:
            mine["interval"] = self.interval
        return Hints(
            **{**theirs, **mine},
            curve=self.curve or other.curve,
            origin=(*self.origin, *other.origin),
        )


NO_HINTS = Hints()
