"""Glances at a server while it is measured, for whoever watches: its VRAM now, and its cache's hit rate.

A glance must not disturb what it watches. VRAM is what the sampler of the peak has seen anyway. The device
is asked once a second: its socket's thread copies the counters under the lock that computing takes, too, and
makes JSON of them outside it, 0.2 ms of processor time in all for 6 layers. Glances are taken whether or not
there is a terminal, so that one changes nothing about a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from hottune.engine.control import DeviceStats
from hottune.machine.background import Background
from hottune.machine.vram import VramSampler

#: Seconds between two glances.
EVERY_S = 1.0


@dataclass(frozen=True)
class Glance:
    """A server at one moment. None: it could not be read, or (hit rate) there is no cache that was used.

    Args:
        vram_mib: what it uses now; a ballast does not count.
        hit_rate: of its cache, since the counters began; 0 to 1.
        vram_peak_mib: the most it has used; None = not more than was seen in glances.
    """

    vram_mib: float | None
    hit_rate: float | None
    vram_peak_mib: float | None = None


Look = Callable[[Glance], None]


class Watched(Protocol):
    """A server that can be asked for its device's counters."""

    def glance(self) -> DeviceStats | None:
        """Read the device's counters; None where there are none. Any thread may ask."""


class Glances(Background):
    """Takes a glance every second, from entering the context until leaving it.

    Args:
        vram: samples the VRAM that the server uses.
        look: gets every glance, on a thread of its own; None = nothing is asked, no thread runs.
        every_s: seconds between two.
    """

    def __init__(self, vram: VramSampler, look: Look | None, *, every_s: float = EVERY_S) -> None:
        super().__init__("glances")
        self._vram, self._look, self._every_s = vram, look, every_s
        self._server: Watched | None = None

    def watch(self, server: Watched) -> None:
        """Name the server, once it is up; before that only its VRAM is looked at."""
        self._server = server

    def __enter__(self) -> Self:
        if self._look is not None:
            self._start()
        return self

    def _run(self) -> None:
        assert self._look is not None
        while not self._stop.wait(self._every_s):
            try:
                self._look(self._taken())
            except Exception:  # a watch must never take its run down
                return

    def _taken(self) -> Glance:
        stats = self._server.glance() if self._server is not None else None
        hot = stats.hot if stats else None
        hit_rate = hot.hit_rate if hot is not None and hot.hits + hot.misses > 0 else None
        if stats is not None and stats.virtual_used_mib is not None:
            return Glance(stats.virtual_used_mib, hit_rate, stats.virtual_peak_mib)
        now_mib = self._vram.now_mib
        return Glance(now_mib, hit_rate, None if now_mib is None else self._vram.peak_mib)
