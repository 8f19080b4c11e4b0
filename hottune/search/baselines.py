"""Baselines: what the user could have without hottune, each as good as it gets under the same ceiling."""

from __future__ import annotations

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


def measure_baselines(space: CurrentSpace, attempt: Attempt) -> None:
    """Measure every baseline at every ubatch of the space.

    Args:
        space: returns the space as corrected by everything measured so far.
        attempt: measures (or recalls) one placement of a baseline and journals it.
    """
    for ubatch in space().ubatches:
        attempt("all-cpu", space().all_cpu(ubatch))
    for ubatch in space().ubatches:
        _best_layers(space, ubatch, attempt)
    for ubatch in space().ubatches:
        attempt("fit", space().fit(ubatch))


def _best_layers(space: CurrentSpace, ubatch: int, attempt: Attempt) -> None:
    """Find the fullest layer offload under the ceiling.

    Starts where the memory model says; goes one layer emptier after running out of memory (or over the
    ceiling), one fuller when what was measured leaves room for a whole layer more.
    """
    n_layers = space().shape.n_layers
    n_cpu_moe = space().fewest_cpu_layers(ubatch)
    tried: set[int] = set()
    while n_cpu_moe < n_layers and n_cpu_moe not in tried and len(tried) < LAYER_ATTEMPTS:
        tried.add(n_cpu_moe)
        outcome = attempt("layers", space().layers(n_cpu_moe, ubatch))
        if too_large(outcome):
            n_cpu_moe = max(n_cpu_moe + 1, min(space().fewest_cpu_layers(ubatch), n_layers - 1))
        elif isinstance(outcome, Measurement) and n_cpu_moe > 0:
            fuller_mib = outcome.vram_peak_mib + space().layer_mib(n_cpu_moe - 1)
            n_cpu_moe -= fuller_mib <= space().ceiling_mib
        else:
            return
