"""The cost model as the search uses it: what a placement is worth by the study's objective, roughly.

Decoding is that of `hottune plan` (hottune/tasks/foresight.py), prefill the experts that a batch brings over
PCIe. Both know bytes and bandwidths, but not this model's routing nor this machine's kernels, so the first
cache that a study measures corrects three numbers: how often choices hit, and how fast both phases are. Only
ratios between mixes of layers and cache are asked for; threads and policies the model knows nothing of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean

from hottune.models.shape import MoeShape
from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import Roofline
from hottune.routing.bound import Bandwidths
from hottune.routing.published import HitCurve, published_hit_rate
from hottune.search.objective import Objective
from hottune.search.structure import HOPELESS
from hottune.tasks.foresight import speed
from hottune.tasks.prepare import Plan
from hottune.workload.facts import Workload

#: Hit rates are kept this far from 0 and 1, where odds have no use.
_EDGE = 1e-3


@dataclass(frozen=True)
class Forecast:
    """Expected worth of placements, higher is better: tok/s of a phase, or turns a second.

    Args:
        shape: of the model.
        machine: measured bandwidths.
        workload: its mean lengths weigh prefill against decode in a turn.
        objective: whose worth is told; a Pareto front counts as its turn.
        curve: hit rate by the share of a layer's experts in the cache.
        hit_odds: factor on the odds of a hit, so that none stays none and all stays all.
        decode_factor: measured decode speed over that of the model.
        prefill_factor: the same of prefill.
        trusted: whether the corrected model also told how layer offload compares with the first cache.
    """

    shape: MoeShape
    machine: Bandwidths
    workload: Workload
    objective: Objective
    curve: HitCurve = published_hit_rate
    hit_odds: float = 1.0
    decode_factor: float = 1.0
    prefill_factor: float = 1.0
    trusted: bool = False

    def __call__(self, placement: Placement) -> float:
        """Return what the placement is expected to be worth."""
        prefill_s, decode_s = self._seconds(placement)
        match self.objective:
            case Objective.DECODE:
                return 1 / decode_s
            case Objective.PREFILL:
                return 1 / prefill_s if prefill_s else math.inf
        asked = self.workload.requests[self.workload.warmup_requests :] or self.workload.requests
        prompt, output = (
            fmean(getattr(one, f"{kind}_tokens") for one in asked) for kind in ("prompt", "output")
        )
        return 1 / (prompt * prefill_s + output * decode_s)

    def hit_rate(self, share: float) -> float:
        """Return the expected hit rate with `share` (0 to 1) of each layer's experts in the cache."""
        rate = self.curve(share)
        if not 0 < rate < 1:
            return rate
        odds = self.hit_odds * rate / (1 - rate)
        return odds / (1 + odds)

    def learnt(self, history: Iterable[tuple[Placement, Outcome]]) -> Forecast | None:
        """Return the model corrected by the first cache that was measured; None when none was.

        The first alone, so that what the model says does not move while the plan follows it.

        Args:
            history: placements and outcomes in the order in which they were planned.
        """
        known = [
            (one, outcome) for one, outcome in history if isinstance(outcome, Measurement) and not one.fit
        ]
        caches = ((one, outcome) for one, outcome in known if outcome.engagement.hot is not None)
        placement, first = next(caches, (None, None))
        if placement is None or first is None or first.engagement.hot is None:
            return None
        hot = first.engagement.hot
        expected = self.curve(hot.slots / self.shape.n_experts)
        hits = replace(self, hit_odds=_odds(hot.hit_rate) / _odds(expected))
        prefill_s, decode_s = hits._seconds(placement)
        scaled = replace(
            hits,
            decode_factor=first.decode_tok_s * decode_s,
            prefill_factor=first.prefill_tok_s * prefill_s or 1.0,
        )
        return replace(scaled, trusted=scaled._tells_layers(placement, first, known))

    def _tells_layers(
        self, placement: Placement, first: Measurement, known: Iterable[tuple[Placement, Measurement]]
    ) -> bool:
        """Tell whether layer offload, which the model has not seen, compares with the cache as it says."""
        like = [
            (one, outcome)
            for one, outcome in known
            if one.hot_k == 0
            and one.n_cpu_moe < self.shape.n_layers
            and (one.ubatch, one.threads) == (placement.ubatch, placement.threads)
        ]
        if not like:
            return False
        layers, measured = min(like, key=lambda pair: pair[0].n_cpu_moe)
        told = self(layers) / self(placement)
        really = self._worth(measured) / self._worth(first)
        return abs(math.log(told / really)) <= math.log1p(HOPELESS)

    def _seconds(self, placement: Placement) -> tuple[float, float]:
        """Return the seconds of a prompt's token (0 = no experts cross PCIe) and of an output's."""
        told = speed(self.shape, placement, self.machine, self.hit_rate)
        prefill = told.prefill_at_most_tok_s
        prefill_s = 1 / (prefill * self.prefill_factor) if prefill else 0.0
        return prefill_s, 1 / (told.decode_tok_s * self.decode_factor)

    def _worth(self, measurement: Measurement) -> float:
        value = self.objective.measured(measurement)
        return 1 / value if self.objective.metric == "turn" else value


def with_forecast(plan: Plan, roofline: Roofline, curve: HitCurve | None = None) -> Plan:
    """Return the plan with a cost model for its search, where the model holds.

    It does not on a virtual GPU, without measured bandwidths, and where a batch of several tokens shares its
    experts (parallel requests, drafts).
    """
    base = plan.space.base
    if plan.gpu.virtual or roofline.bandwidths is None or base.parallel > 1 or base.spec_type != "none":
        return plan
    forecast = Forecast(
        plan.model.shape,
        roofline.bandwidths,
        plan.workload,
        plan.config.objective,
        curve or published_hit_rate,
    )
    return replace(plan, space=replace(plan.space, foresee=forecast))


def _odds(rate: float) -> float:
    inside = min(1 - _EDGE, max(_EDGE, rate))
    return inside / (1 - inside)
