"""How fast servers come and go, and so when a stage and the whole study end."""

from __future__ import annotations

import time
from statistics import fmean


class Pace:
    """Estimates ends from the servers of this session; without any there is no estimate.

    A stage ends at its own pace: a trial in a reused server takes a fraction of one that loads the model.
    What comes later goes at the pace of fresh servers and may be less than planned: both ends are the latest.

    Args:
        later: servers that each stage may take at most, in their order.
        deadline: when the time budget ends, by `time.monotonic()`; None = there is no budget.
    """

    def __init__(self, later: dict[str, int] | None = None, deadline: float | None = None) -> None:
        self._later = dict(later or {})
        self._deadline = deadline
        self._left = 0
        self._seconds: list[float] = []  # of the stage's servers
        self._fresh: list[float] = []  # of all fresh servers

    def stage(self, name: str, left: int) -> None:
        """Begin a stage that may take `left` more servers."""
        if name in self._later:
            names = list(self._later)
            self._later = {one: self._later[one] for one in names[names.index(name) + 1 :]}
        self._left, self._seconds = max(0, left), []

    def ended(self, left: int, seconds: float | None, *, fresh: bool = True) -> None:
        """Take over how long a server took; None = not measured now. The stage may take `left` more."""
        self._left = left
        if seconds is not None:
            self._seconds.append(seconds)
            self._fresh += [seconds] * fresh

    def ends(self) -> tuple[float | None, float | None]:
        """Return when the stage and the study end, by `time.monotonic()`; None where nothing tells it."""
        now = time.monotonic()
        pace = self._seconds or self._fresh
        if not pace:
            return None, None
        stage = now + fmean(pace) * self._left
        servers = sum(self._later.values())
        if servers and not self._fresh:
            return self._within(stage, now), None
        study = stage + (fmean(self._fresh) * servers if servers else 0.0)
        return self._within(stage, now), self._within(study, now)

    def _within(self, end: float, now: float) -> float:
        """Return the end, or that of the budget if it is sooner; a budget that is used up tells nothing."""
        return end if self._deadline is None or self._deadline <= now else min(end, self._deadline)
