"""How long work reports that it is alive: one small protocol, so that rooms do not know the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class BestSoFar:
    """What leads a study just now, in words; never a verdict.

    Args:
        label: the placement, with its arm where that is a baseline.
        value: its number by the objective, with its unit: `turn 1.23 s`.
        basis: what the number rests on: `single measurement, not a verdict`.
        ratio: how many times as fast as the best baseline so far; None where it is that one or none is.
        baseline: that baseline.
    """

    label: str
    value: str
    basis: str
    ratio: float | None = None
    baseline: str = ""


@dataclass(frozen=True)
class StudyState:
    """What a study is doing. Times are of `time.monotonic()`, in seconds, so that a view can count on.

    Args:
        stage: its name; a new name begins a new stage.
        done: servers of the stage that ended.
        total: servers that the stage may take.
        began_at: when the stage began.
        stage_ends_at: when it ends at the pace so far; None while no pace is known.
        study_ends_at: when the study ends at the latest at the pace so far; None while no pace is known.
        label: the placement that is measured, "" between two.
        step: what its server is doing.
        label_at: when it began.
        best: what leads, once anything was measured.
        ceiling_mib: the VRAM that a server may use, None where that is not known.
        vram_mib: what the server uses now, without a ballast; None while it cannot be read.
        vram_peak_mib: the most that it used.
        hit_rate: of the cache since the counters of this server began, 0 to 1; None without one.
    """

    stage: str
    done: int = 0
    total: int = 0
    began_at: float = 0.0
    stage_ends_at: float | None = None
    study_ends_at: float | None = None
    label: str = ""
    step: str = ""
    label_at: float = 0.0
    best: BestSoFar | None = None
    ceiling_mib: float | None = None
    vram_mib: float | None = None
    vram_peak_mib: float | None = None
    hit_rate: float | None = None

    @property
    def doing(self) -> str:
        """What is measured and what its server is doing, in one line."""
        return f"{self.label}: {self.step}" if self.label else ""


class Progress(Protocol):
    """A sink for progress. Implementations: a Rich bar, plain lines, nothing (`NoProgress`)."""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        """Begin a named task; `total` in `unit` (bytes, steps), None when unknown."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how much of the current task is done (absolute, not a difference)."""

    def show(self, state: StudyState) -> None:
        """Show what a study is doing: begins a task for each new stage, and updates it; `finish` ends it.

        May be called from any thread, but for the first call of a stage.
        """

    def finish(self, note: str = "") -> None:
        """End the current task."""

    def say(self, line: str) -> None:
        """Show one line of text that stays."""


class NoProgress:
    """Reports nothing."""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        """Do nothing."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Do nothing."""

    def show(self, state: StudyState) -> None:
        """Do nothing."""

    def finish(self, note: str = "") -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""
