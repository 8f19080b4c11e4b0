"""What a person sees while a study runs: one line for every server, and a bar with an ETA."""

from __future__ import annotations

from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.report.schema import ArmName, Replicate, Trial


class Meter:
    """Counts servers of one stage and passes on what the current one is doing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0
        self._total = 0.0
        self._label = ""

    def stage(self, task: str, total: int, done: int = 0) -> None:
        """Begin a stage of `total` servers, `done` of which an earlier session measured."""
        self._done, self._total = done, float(total)
        self._progress.start(task, self._total, "servers")
        self._progress.update(done)

    def begin(self, placement: Placement) -> None:
        """Say what is being measured now."""
        self._label = _name(placement)
        self.note("starting")

    def note(self, line: str) -> None:
        """Say what the current server is doing."""
        self._progress.update(self._done, self._total, f"{self._label}: {line}")

    def trial(self, trial: Trial) -> None:
        """Show a trial that has just ended."""
        who = f"{trial.arm}: " if trial.arm and not trial.placement.engine else ""
        self.ended(f"#{trial.number:<3} {who}{_name(trial.placement)}", trial.outcome)

    def replicate(self, arm: ArmName, placement: Placement, replicate: Replicate) -> None:
        """Show a replicate that has just ended (or that was kept)."""
        who = "" if placement.engine else f"{arm}: "  # an engine's placement begins with its name
        self.ended(f"again {who}{_name(placement)}", replicate.outcome)

    def finish(self) -> None:
        """End the stage."""
        self._progress.finish(f"{self._done} servers")

    def ended(self, who: str, outcome: Outcome) -> None:
        """Show the line of a server that has just ended."""
        self._done += 1
        self._progress.say(f"  {who:<46} {outcome_line(outcome)}")
        self._progress.update(self._done, max(self._total, self._done))


def _name(placement: Placement) -> str:
    return f"{placement.label()} t {placement.threads}"


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
