"""How long work reports that it is alive: one small protocol, so that rooms do not know the terminal."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A sink for progress. Implementations: a Rich bar, plain lines, nothing (`NoProgress`)."""

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        """Begin a named task; `total` in `unit` (bytes, steps), None when unknown."""

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how much of the current task is done (absolute, not a difference)."""

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

    def finish(self, note: str = "") -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""
