"""How often a placement must be measured before it is believed to be better than another.

Servers scatter by some percent, settings often differ by less: the best of twenty equal placements, measured
once each, looks 8 % better than it is where the noise is 4 %. So what seems best is looked at again, as often
as the noise asks for, which the repeated measurements themselves tell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean

#: Noise that is assumed before anything was measured twice, and how many degrees of freedom that is worth.
#: Real servers scattered by 3 to 8 % (`python -m bench.verdicts` fits it to published replicates).
PRIOR_NOISE, PRIOR_WEIGHT = 0.04, 4
#: The mean of the looks shall scatter by this much.
WANTED = 0.02
FEWEST, MOST = 2, 6
#: A difference of so many times the noise needs no second look: 3 standard errors of a difference.
CLEAR = 3 * math.sqrt(2)


def noise_of(repeats: Iterable[Sequence[float]]) -> float:
    """Return the relative scatter of one measurement: pooled within placements, drawn towards the prior.

    Args:
        repeats: for each placement, its costs (all of one sign), measurement by measurement.
    """
    squares, freedom = PRIOR_WEIGHT * PRIOR_NOISE**2, float(PRIOR_WEIGHT)
    for costs in repeats:
        if len(costs) > 1:
            mean = fmean(costs)
            squares += sum((cost / mean - 1) ** 2 for cost in costs)
            freedom += len(costs) - 1
    return math.sqrt(squares / freedom)


def looks_for(noise: float) -> int:
    """Return how many measurements bring the scatter of their mean down to `WANTED`, within bounds."""
    return min(MOST, max(FEWEST, math.ceil((noise / WANTED) ** 2)))


def looks_among(costs: Collection[Sequence[float]]) -> int:
    """Return how often one of these must be measured to be well known: by the noise, or the most there is.

    Args:
        costs: for each placement, its costs, measurement by measurement.
    """
    return min(looks_for(noise_of(costs)), max(map(len, costs), default=1))


def gain(found: float, before: float) -> float:
    """Return how much lower the first cost is, relative to the second; negative: it is higher."""
    if not math.isfinite(before):
        return math.inf if math.isfinite(found) else 0.0
    return (before - found) / abs(before)
