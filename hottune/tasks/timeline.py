"""VRAM and hit rate over time, sampled while a server is driven.

A look asks the device over its control socket and takes the VRAM sampler's last value. Looks fall between
requests, and seldom into one, for there they are not free: docs/measuring.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from hottune.engine.control import Glance
from hottune.machine.background import Background
from hottune.outcomes import Timeline, evenly

#: Seconds between looks, beside those before each request.
INTERVAL_S = 2.0
#: Most intervals that are kept; of a longer measurement, neighbours are put together.
MOST = 60

#: Told of every look: VRAM in MiB, and the hit rate (0 to 1) since the look before; None = not known.
OnSample = Callable[[float | None, float | None], None]


@dataclass(frozen=True)
class Sample:
    """One look. Hits and misses are counted since the server's start, or the last reset."""

    at_s: float
    vram_mib: float | None
    counts: tuple[int, int] | None


class TimelineSampler(Background):
    """Looks at a server from `begin` on, until the context is left; then `timeline` says what was seen.

    Args:
        glance: asks the device.
        vram_mib: VRAM use as last seen; the virtual GPU's own number goes before it.
        on_sample: told of every look, mostly on the sampler's own thread.
        interval_s: seconds between looks.
    """

    def __init__(
        self,
        glance: Callable[[], Glance | None],
        vram_mib: Callable[[], float | None],
        *,
        on_sample: OnSample | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        super().__init__("timeline")
        self._glance, self._vram_mib = glance, vram_mib
        self._on_sample, self._interval_s = on_sample, interval_s
        self._began = threading.Event()
        self._epoch = 0.0
        self._lock = threading.Lock()  # of the samples: two threads look
        self._samples: list[Sample] = []

    def begin(self) -> None:
        """Say that a request is about to be sent: the first one begins the time, and each is a look."""
        if self._began.is_set():
            self._look()
            return
        self._epoch = time.monotonic()
        self._look()  # what was counted before any request
        self._began.set()
        self._start()

    def end(self) -> None:
        """Stop looking, with a last look at once: the last interval ends with the last request."""
        self.__exit__(None, None, None)
        if self._began.is_set():
            self._look()

    def timeline(self) -> Timeline | None:
        """Return what was seen, put together to at most `MOST` intervals; None when that is nothing."""
        return timeline(self._samples)

    def __enter__(self) -> Self:
        return self

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        with self._lock:
            try:
                self._look_once()
            except Exception:  # a look must never take its measurement down: then there is just no sample
                return

    def _look_once(self) -> None:
        seen = self._glance()
        virtual_mib = seen.virtual_mib if seen else None
        sample = Sample(
            at_s=time.monotonic() - self._epoch,
            vram_mib=self._vram_mib() if virtual_mib is None else virtual_mib,
            counts=seen.counts if seen else None,
        )
        self._samples.append(sample)
        if self._on_sample is not None:
            last = self._samples[-2] if len(self._samples) > 1 else None
            self._on_sample(sample.vram_mib, _hit_rate(last, sample))


def timeline(samples: Sequence[Sample], most: int = MOST) -> Timeline | None:
    """Return looks as intervals; the first look is where the first interval begins.

    Looks at which the device was silent, where it answered others, are left out: the next one has counted on.

    Args:
        samples: in order of time.
        most: intervals at most; neighbours are put together evenly.
    """
    cached = any(one.counts for one in samples)
    known = [one for one in samples if one.counts is not None or not cached]
    intervals = len(known) - 1
    if intervals < 1:
        return None
    kept = evenly(intervals, most)
    parts = [known[1:][part] for part in kept]
    grown = [_grown(known[part.start], known[part.stop]) for part in kept]
    if not cached and all(one.vram_mib is None for one in known):
        return None
    vram = [[one.vram_mib for one in part if one.vram_mib is not None] for part in parts]
    return Timeline(
        at_s=[round(part[-1].at_s, 2) for part in parts],
        vram_mib=[round(max(found), 1) for found in vram] if all(vram) else [],
        hits=[hits for hits, _ in grown] if cached else [],
        misses=[misses for _, misses in grown] if cached else [],
    )


def _grown(before: Sample, after: Sample) -> tuple[int, int]:
    """Return hits and misses between two looks."""
    (hits, misses), (more_hits, more_misses) = before.counts or (0, 0), after.counts or (0, 0)
    return max(0, more_hits - hits), max(0, more_misses - misses)


def _hit_rate(before: Sample | None, after: Sample) -> float | None:
    if before is None or after.counts is None:
        return None
    hits, misses = _grown(before, after)
    return hits / (hits + misses) if hits + misses else None
