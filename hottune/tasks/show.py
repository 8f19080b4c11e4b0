"""What a person sees while a study runs: one line for every server, and what goes on between them."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.progress import Progress, StudyState
from hottune.report.schema import ArmName, Replicate, Trial
from hottune.search.baselines import BASELINES
from hottune.search.journal import Journal
from hottune.tasks.pace import Pace
from hottune.tasks.prepare import Plan
from hottune.tasks.standings import Standings, named


class Meter:
    """Counts servers of one stage and passes on what the current one is doing.

    Args:
        progress: where it is shown.
        standings: know what is best so far; None = nothing is compared.
        pace: tells when stages end; None = one that knows of no later stages.
        ceiling_mib: the VRAM that a server may use; None = not shown.
    """

    def __init__(
        self,
        progress: Progress,
        standings: Standings | None = None,
        pace: Pace | None = None,
        ceiling_mib: float | None = None,
    ) -> None:
        self._progress = progress
        self._standings = standings
        self._pace = pace or Pace()
        self._state = StudyState("", ceiling_mib=ceiling_mib)
        self._lock = threading.RLock()  # of the state: looks come from another thread

    def stage(self, task: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` servers, `done` of which an earlier session measured."""
        self._pace.stage(task, total - done)
        self._between(stage=task, done=done, total=total, began_at=time.monotonic())

    def begin(self, placement: Placement) -> None:
        """Say what is being measured now."""
        self._show(
            label=named(placement),
            step="starting",
            label_at=time.monotonic(),
            vram_mib=None,
            vram_peak_mib=None,
            hit_rate=None,
        )

    def note(self, line: str) -> None:
        """Say what the current server is doing."""
        self._show(step=line)

    def look(self, vram_mib: float | None, hit_rate: float | None) -> None:
        """Take over what the current server uses (MiB) and hits (0 to 1) just now; any thread may call it."""
        with self._lock:
            if not self._state.label:  # it has ended meanwhile
                return
            known = (vram_mib, self._state.vram_peak_mib)
            peak = max((one for one in known if one is not None), default=None)
            self._show(vram_mib=vram_mib, vram_peak_mib=peak, hit_rate=hit_rate)

    def trial(self, trial: Trial) -> None:
        """Show a trial that has just ended."""
        who = f"{trial.arm}: " if trial.arm and not trial.placement.engine else ""
        self.ended(f"#{trial.number:<3} {who}{named(trial.placement)}", trial.outcome)

    def replicate(self, arm: ArmName, placement: Placement, replicate: Replicate) -> None:
        """Show a replicate that has just ended (or that was kept)."""
        if self._standings is not None:
            self._standings.replicate(arm, placement, replicate.outcome)
        who = "" if placement.engine else f"{arm}: "  # an engine's placement begins with its name
        self.ended(f"again {who}{named(placement)}", replicate.outcome)

    def finish(self) -> None:
        """End the stage."""
        self._progress.finish(f"{self._state.done} servers")

    def ended(self, who: str, outcome: Outcome) -> None:
        """Show the line of a server that has just ended."""
        seconds = time.monotonic() - self._state.label_at if self._state.label else None
        done = self._state.done + 1
        total = max(self._state.total, done)
        fresh = not (isinstance(outcome, Measurement) and outcome.reused_server)
        self._pace.ended(total - done, seconds, fresh=fresh)
        self._progress.say(f"  {who:<46} {outcome_line(outcome)}")
        self._between(done=done, total=total)

    def _between(self, **changes: Any) -> None:
        """Show that nothing is measured just now, what leads, and when it will all end."""
        stage_ends_at, study_ends_at = self._pace.ends()
        self._show(
            label="",
            step="",
            best=self._standings.best() if self._standings else None,
            stage_ends_at=stage_ends_at,
            study_ends_at=study_ends_at,
            **changes,
        )

    def _show(self, **changes: Any) -> None:
        with self._lock:
            self._state = replace(self._state, **changes)
            self._progress.show(self._state)


def study_meter(plan: Plan, journal: Journal, deadline: float | None, ui: Progress) -> Meter:
    """Return what shows a study while it runs: its stages, what leads, and when it ends.

    Args:
        plan: what is measured.
        journal: knows what was measured.
        deadline: end of the time budget, by `time.monotonic()`; None = there is none.
        ui: where it is shown.
    """
    config = plan.config
    arms = len(BASELINES) + config.top_wanted
    later = {"Baselines": 0, "Search": config.trials_wanted, "Confirm": config.rounds.most * arms}
    standings = Standings(config.objective, journal.trials, journal.limits)
    return Meter(ui, standings, Pace(later, deadline), plan.ceiling_mib)


def outcome_line(outcome: Outcome) -> str:
    """Return an outcome in one line: the numbers, or why there are none."""
    if not isinstance(outcome, Measurement):
        return f"{outcome.kind.replace('_', ' ')}: {outcome.detail}"[:160]
    hits = "" if outcome.hit_rate is None else f"  hits {outcome.hit_rate:.0%}"
    several = outcome.multi_hit_rate
    hits += "" if several is None else f" (batches {several:.0%})"
    same = "  (same server)" * outcome.reused_server
    return (
        f"turn {outcome.turn_s:.2f} s  decode {outcome.decode_tok_s:.1f} tok/s  "
        f"prefill {outcome.prefill_tok_s:.0f} tok/s  VRAM {outcome.vram_peak_mib:.0f} MiB{hits}{same}"
    )
