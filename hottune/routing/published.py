"""A hit-rate curve from the literature: what stands in for a model whose routing nobody has traced yet."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

#: Share of a layer's experts in the cache -> share of choices that hit.
HitCurve = Callable[[float], float]

#: Qwen3-30B-A3B, a least-recently-used cache in each layer, with 8, 24, 49 and 81 of 128 experts. Figures
#: posted in a public thread on caches of experts for llama.cpp (posts 1359 and 1374 there); not rerun here.
_EXPERTS = 128
_POINTS = {0: 0.0, 8: 0.366, 24: 0.741, 49: 0.894, 81: 0.962, 128: 1.0}

SOURCE = (
    "hit rates of another model: LRU on Qwen3-30B-A3B, 36.6 / 74.1 / 89.4 / 96.2 % with 8 / 24 / 49 / 81 of "
    "128 experts, interpolated by share; other models and other texts differ much"
)


def published_hit_rate(share: float) -> float:
    """Return the share of choices that hit, with `share` (0 to 1) of each layer's experts in the cache."""
    xs = [experts / _EXPERTS for experts in _POINTS]
    return float(np.interp(share, xs, list(_POINTS.values())))


def independent_misses(n_used: int, hit_rate: float) -> tuple[float, ...]:
    """Return the probability of 0, 1, .. `n_used` misses of a token in a layer, choices taken as independent.

    Real choices are not: misses come in clusters, and then the mean of a maximum is larger than this says.
    """
    miss = 1 - hit_rate
    return tuple(math.comb(n_used, m) * miss**m * hit_rate ** (n_used - m) for m in range(n_used + 1))
