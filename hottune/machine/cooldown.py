"""Between servers: wait until the GPU is about as cool and as idle as before the first of them.

A card that is still hot from the server before clocks lower, so the arm that comes later would look slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hottune.machine.clocks import GpuState, gpu_state
from hottune.machine.facts import Gpu

#: So many degrees above the first server's are near enough. Below `COOL_C` heat takes no more than a step or
#: two of the boost clock, and a card under a desk may need minutes to get colder.
NEAR_C = 5.0
COOL_C = 60.0
#: Utilisation, percent, that a desktop alone may cause.
IDLE_PERCENT = 5.0
#: Seconds that are waited at most: fans keep a used card warmer than an unused one, perhaps for ever.
LIMIT_S = 30.0
#: The same in a run that must be quick.
QUICK_LIMIT_S = 5.0
_POLL_S = 0.5


@dataclass(frozen=True)
class Cooled:
    """How the card was in the end, and how long that took."""

    state: GpuState
    waited_s: float = 0.0
    settled: bool = True


class Cooldown:
    """Remembers one GPU as it was before the first server.

    Args:
        gpu: the card; a virtual one is always as it was.
        limit_s: seconds to wait at most.
        look: asks for the card's state. For tests, as are `sleep` and `now`.
    """

    def __init__(
        self,
        gpu: Gpu,
        *,
        limit_s: float = LIMIT_S,
        look: Callable[[Gpu], GpuState] = gpu_state,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gpu, self._limit_s, self._look = gpu, limit_s, look
        self._sleep, self._now = sleep, now
        self._first: GpuState | None = None

    def wait(self) -> Cooled:
        """Return when the card is as it was, or the limit is over; the first call returns at once."""
        state = self._look(self._gpu)
        self._first = self._first or state
        if _like(state, self._first):
            return Cooled(state)
        began = self._now()
        while True:
            self._sleep(_POLL_S)
            state, waited_s = self._look(self._gpu), self._now() - began
            settled = _like(state, self._first)
            if settled or waited_s >= self._limit_s:
                return Cooled(state, waited_s, settled)


def _like(state: GpuState, first: GpuState) -> bool:
    """Tell whether a card is as it was; what the driver does not tell is taken to be."""
    warm = state.temperature_c
    cool = warm is None or warm <= max(COOL_C, (first.temperature_c or 0.0) + NEAR_C)
    busy = state.utilisation_percent
    idle = busy is None or busy <= max(IDLE_PERCENT, first.utilisation_percent or 0.0)
    return cool and idle and set(state.throttled_by) <= set(first.throttled_by)
