"""The time budget of a session: when it ends, and when what is left of it is needed to measure again."""

from __future__ import annotations

import time

from hottune.search.baselines import BASELINES
from hottune.search.confirm import LEAST_ROUNDS
from hottune.search.journal import Journal
from hottune.tasks.settings import RunConfig

#: Hot placements that are measured even when the time budget is short: without one there is no answer.
LEAST_TRIALS = 2


class Clock:
    """Watches the time budget of one session."""

    def __init__(self, config: RunConfig, journal: Journal) -> None:
        self._config = config
        self._journal = journal
        self._began = time.monotonic()

    @property
    def deadline(self) -> float | None:
        """When the budget is used up, by `time.monotonic()`; None = there is none."""
        budget_s = self._config.budget_s
        return None if budget_s is None else self._began + budget_s

    def spent(self) -> bool:
        """Whether the budget is used up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def must_confirm(self) -> bool:
        """Whether what is left of the budget is needed for the replicates of baselines and candidates."""
        deadline = self.deadline
        if deadline is None:
            return False
        trials = self._journal.trials()
        if sum(1 for trial in trials if trial.arm is None) < LEAST_TRIALS:
            return False
        # A replicate needs a fresh server; what was measured without loading one says nothing about that.
        seconds = [trial.seconds for trial in trials if not trial.in_reused_server]
        each_s = sum(seconds) / len(seconds)
        arms = len(BASELINES) + len(self._config.engines) + self._config.top_wanted
        servers = 1 + arms * min(LEAST_ROUNDS, self._config.rounds.most)
        return time.monotonic() + servers * each_s >= deadline
