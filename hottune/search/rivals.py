"""Rivals: other engines, each measured with a placement as good for it as can be found in a few servers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hottune.outcomes import Outcome, Rejected, too_large
from hottune.placement import Placement
from hottune.search.baselines import Attempt, Cost, CurrentSpace, best_threads, costed, fullest_layers
from hottune.search.space import Space
from hottune.units import mib

#: Caches that a rival of kind "hot" may try until one fits.
HOT_ATTEMPTS = 4
#: By how much a cache is cut that ran out of memory without saying how much was missing.
CUT = 0.85


@dataclass(frozen=True)
class Rival:
    """What the search must know of another engine.

    Args:
        name: of the engine, and of its arm.
        kind: layers, whole layers in VRAM; hot, a cache of hot experts of its own.
        rebalance_interval: of a cache.
        prefill_bypass: of a cache.
        refused: it cannot be measured here, and says so in its one outcome.
    """

    name: str
    kind: Literal["layers", "hot"]
    rebalance_interval: int = 60
    prefill_bypass: int = 64
    refused: bool = False


def measure_rival(
    rival: Rival, space: CurrentSpace, start: Placement | None, attempt: Attempt, cost: Cost
) -> None:
    """Measure a rival beside the baselines, under the same ceiling.

    Args:
        rival: the engine.
        space: returns the space as corrected by everything measured so far.
        start: the best layer offload of hottune's own llama.cpp; None when no layer fitted.
        attempt: measures (or recalls) one placement of an arm and journals it.
        cost: of a measurement by the objective; lower is better.
    """
    now = space()
    plain = (start or now.all_cpu(max(now.ubatches))).model_copy(update={"engine": rival.name})
    if rival.refused:
        attempt(rival.name, plain)
        return
    if rival.kind == "hot":
        _largest_cache(rival, now, plain, attempt)
        return
    found: dict[Placement, float] = {}
    tried = costed(attempt, cost, found)

    def layers(n_cpu_moe: int) -> Outcome:
        return tried(rival.name, plain.model_copy(update={"n_cpu_moe": n_cpu_moe}))

    if start is not None:
        fullest_layers(now, start.n_cpu_moe, layers, lambda n_cpu_moe: n_cpu_moe + 1)
    if not found:
        layers(now.shape.n_layers)
    if found:
        best = min(found, key=lambda placement: found[placement])
        best_threads(space, rival.name, best, found[best], tried, found)


def first_placement(rival: Rival, space: Space, plain: Placement) -> Placement:
    """Return the placement with which a rival begins: that of layers, or the largest cache that fits."""
    plain = plain.model_copy(update={"engine": rival.name})
    if rival.kind == "layers":
        return plain
    sizes = range(space.shape.n_experts, 1, -1)
    caches = (_cached(rival, space, plain, size) for size in sizes)
    return next((one for one in caches if space.fits(one)), _cached(rival, space, plain, 1))


def _cached(rival: Rival, space: Space, plain: Placement, hot_k: int) -> Placement:
    changes = {
        "n_cpu_moe": space.shape.n_layers,
        "hot_k": hot_k,
        "policy": "window",
        "rebalance_interval": rival.rebalance_interval,
        "prefill_bypass": rival.prefill_bypass,
        "stream_from": 0,
    }
    return plain.model_copy(update=changes)


def _largest_cache(rival: Rival, space: Space, plain: Placement, attempt: Attempt) -> None:
    """Measure the largest cache that the memory model allows; a smaller one when it took too much."""
    hot_k = first_placement(rival, space, plain).hot_k
    one_mib = mib(sum(space.shape.layer_expert_bytes)) / space.shape.n_experts
    for _ in range(HOT_ATTEMPTS):
        outcome = attempt(rival.name, _cached(rival, space, plain, hot_k))
        if not too_large(outcome) or hot_k == 1:
            return
        fewer = math.floor(hot_k * CUT)
        if isinstance(outcome, Rejected) and outcome.vram_peak_mib is not None:
            fewer = hot_k - math.ceil((outcome.vram_peak_mib - space.ceiling_mib) / max(one_mib, 1e-9))
        hot_k = max(1, min(fewer, hot_k - 1))
