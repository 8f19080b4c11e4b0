"""Baselines: what the user could have without hottune, each as good as it gets under the same ceiling."""

from __future__ import annotations

import math
from collections.abc import Callable

from hottune.outcomes import Measurement, Outcome, too_large
from hottune.placement import Placement
from hottune.report.schema import ArmName
from hottune.search.space import Space

#: How many placements the layer-offload baseline may try for one ubatch until the best one is found.
LAYER_ATTEMPTS = 6

BASELINES: tuple[ArmName, ...] = ("all-cpu", "layers", "fit")

Attempt = Callable[[ArmName, Placement], Outcome]
CurrentSpace = Callable[[], Space]
Cost = Callable[[Measurement], float]


def measure_baselines(space: CurrentSpace, attempt: Attempt, cost: Cost) -> None:
    """Measure every baseline, each with settings as good for it as hottune searches for its own.

    All-CPU experts first: they say what the memory model gets wrong. Layer offload at every ubatch of the
    space, then at other numbers of threads; what is best for it, all-CPU experts and `--fit` get as well.

    Args:
        space: returns the space as corrected by everything measured so far.
        attempt: measures (or recalls) one placement of a baseline and journals it.
        cost: of a measurement by the objective; lower is better.
    """
    found: dict[Placement, float] = {}
    tried = costed(attempt, cost, found)
    before = space()
    ubatches, n_layers = before.ubatches, before.shape.n_layers
    tried("all-cpu", before.all_cpu(max(ubatches)))
    for ubatch in sorted(ubatches, reverse=True):
        _best_layers(space, ubatch, tried)
    layers = {placement: value for placement, value in found.items() if placement.n_cpu_moe < n_layers}
    if layers:
        best = min(layers, key=lambda placement: layers[placement])
        best = best_threads(space, "layers", best, layers[best], tried, found)
        tried("all-cpu", before.all_cpu(best.ubatch, best.threads))
        tried("fit", before.fit(best.ubatch, best.threads))
        return
    for ubatch in ubatches:  # no layer fits
        tried("all-cpu", before.all_cpu(ubatch))
        tried("fit", before.fit(ubatch))


def costed(attempt: Attempt, cost: Cost, found: dict[Placement, float]) -> Attempt:
    """Return `attempt` such that what each measured placement costs is put into `found`."""

    def tried(arm: ArmName, placement: Placement) -> Outcome:
        outcome = attempt(arm, placement)
        if isinstance(outcome, Measurement):
            found[placement] = cost(outcome)
        return outcome

    return tried


def first_baselines(space: Space) -> list[tuple[ArmName, Placement]]:
    """Return the baselines that `measure_baselines` begins with, as far as no measurement decides."""
    ubatches = sorted(space.ubatches, reverse=True)
    layers = [(space.fewest_cpu_layers(ubatch), ubatch) for ubatch in ubatches]
    found: list[tuple[ArmName, Placement]] = [("all-cpu", space.all_cpu(ubatches[0]))]
    found += [("layers", space.layers(n, ubatch)) for n, ubatch in layers if n < space.shape.n_layers]
    return [*found, ("fit", space.fit(ubatches[0]))]


def best_threads(
    space: CurrentSpace,
    arm: ArmName,
    best: Placement,
    least: float,
    tried: Attempt,
    found: dict[Placement, float],
) -> Placement:
    """Go on with fewer threads as long as that is faster; return the best placement."""
    for threads in space().threads:
        if threads >= best.threads:
            continue
        fewer = best.model_copy(update={"threads": threads})
        tried(arm, fewer)
        if found.get(fewer, math.inf) >= least:
            break
        best, least = fewer, found[fewer]
    return best


def _best_layers(space: CurrentSpace, ubatch: int, attempt: Attempt) -> None:
    """Find the fullest layer offload under the ceiling.

    Starts where the memory model says; goes one layer emptier after running out of memory (or over the
    ceiling), one fuller when what was measured leaves room for a whole layer more.
    """
    before = space()
    n_layers = before.shape.n_layers

    def emptier(n_cpu_moe: int) -> int:
        return max(n_cpu_moe + 1, min(space().fewest_cpu_layers(ubatch), n_layers - 1))

    fullest_layers(
        before,
        before.fewest_cpu_layers(ubatch),
        lambda n_cpu_moe: attempt("layers", before.layers(n_cpu_moe, ubatch)),
        emptier,
    )


def fullest_layers(
    space: Space, n_cpu_moe: int, attempt: Callable[[int], Outcome], emptier: Callable[[int], int]
) -> None:
    """Try layer offloads from `n_cpu_moe` on, up to the fullest one under the ceiling."""
    tried: set[int] = set()
    while n_cpu_moe < space.shape.n_layers and n_cpu_moe not in tried and len(tried) < LAYER_ATTEMPTS:
        tried.add(n_cpu_moe)
        outcome = attempt(n_cpu_moe)
        if too_large(outcome):
            n_cpu_moe = emptier(n_cpu_moe)
        elif isinstance(outcome, Measurement) and n_cpu_moe > 0:
            fuller_mib = outcome.vram_peak_mib + space.layer_mib(n_cpu_moe - 1)
            n_cpu_moe -= fuller_mib <= space.ceiling_mib
        else:
            return
