"""Did the GPU protect itself from heat? Then what was measured is the cooling, not the placement.

Only the hardware's own thermal slowdown counts (clocks halved or worse, near the card's limit). That a driver
lowers clocks a little at its target temperature is everyday life of a desktop card, and only a warning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hottune.machine.clocks import HARDWARE_HEAT, GpuState, gpu_state
from hottune.machine.facts import Gpu
from hottune.machine.nvml import NvmlUnavailable, ask, nvml

COOLER_BY_C = 10.0
COOL_LIMIT_S = 120.0


class HeatWatch:
    """Tells of a hardware thermal slowdown since it was made.

    Two witnesses: the driver's counter of time in that state, where there is one (drivers from about 560 on),
    and the state itself, whenever `look` is called. Neither costs a request anything.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._counted = heat_counter(gpu)
        self._seen = False

    def look(self) -> None:
        """See whether the slowdown is active right now."""
        self._seen = self._seen or HARDWARE_HEAT in gpu_state(self._gpu).throttled_by

    def slowed_down(self) -> bool:
        """Tell whether the GPU slowed down for heat since this watch was made."""
        self.look()
        now = heat_counter(self._gpu)
        grown = now is not None and self._counted is not None and now > self._counted
        return self._seen or grown


def heat_counter(gpu: Gpu) -> int | None:
    """Return the driver's growing count of time in hardware thermal slowdown; None where there is none."""
    if gpu.virtual:
        return None
    try:
        with nvml() as module:
            return ask(module, lambda: _counter(module, gpu.index), None)
    except NvmlUnavailable:
        return None


def _counter(module: Any, index: int) -> int | None:
    field = getattr(module, "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN", None)
    if field is None:  # an older NVML
        return None
    handle = module.nvmlDeviceGetHandleByIndex(index)
    (value,) = module.nvmlDeviceGetFieldValues(handle, [field])
    return int(value.value.ullVal) if value.nvmlReturn == module.NVML_SUCCESS else None


def wait_until_cooler(
    gpu: Gpu,
    *,
    state: Callable[[Gpu], GpuState] = gpu_state,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the GPU is `COOLER_BY_C` cooler than now and no longer slowed down, `COOL_LIMIT_S` at most.

    Args:
        gpu: which.
        state: asks it.
        pause: waits so many seconds.
    """
    hot_c = state(gpu).temperature_c
    for _ in range(int(COOL_LIMIT_S)):
        now = state(gpu)
        cooler = hot_c is None or now.temperature_c is None or now.temperature_c <= hot_c - COOLER_BY_C
        if cooler and HARDWARE_HEAT not in now.throttled_by:
            return
        pause(1.0)
