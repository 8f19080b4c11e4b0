"""What hottune needs from an engine: start a server for a Placement, and proof of what it did.

llama.cpp is the first engine (`server.LlamaCppEngine`); others come beside it without a change elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from hottune.machine.facts import Gpu
from hottune.models.shape import ModelFile
from hottune.outcomes import Crashed, Engagement, HotStats, NotEngaged, OutOfMemory, TimedOut
from hottune.placement import Placement

#: What a server that did not serve can end as.
Failure = OutOfMemory | TimedOut | Crashed | NotEngaged
Stage = Literal["load", "first_batch", "later"]


class LaunchFailed(Exception):
    """The server did not come up as asked; `outcome` says how it ended."""

    def __init__(self, outcome: Failure) -> None:
        self.outcome = outcome
        super().__init__(f"{outcome.kind}: {outcome.detail}")


class RunningServer(Protocol):
    """A server that answered its health check and did what was asked at load."""

    @property
    def base_url(self) -> str:
        """Where it listens: `http://127.0.0.1:<port>`."""

    @property
    def pid(self) -> int:
        """Process id, for VRAM sampling."""

    @property
    def log_path(self) -> Path:
        """Its log; stays after the end."""

    @property
    def load_s(self) -> float:
        """Seconds from start to health."""

    def engagement(self) -> Engagement:
        """Return the proof of what took effect; the cache's counters are in it as they were last read."""

    def hot_stats(self) -> HotStats | None:
        """Read the cache's counters now; None where there is no cache."""

    def apply(self, placement: Placement) -> None:
        """Turn to another placement without a restart and set the counters to zero, or raise ControlError."""

    def stop(self) -> HotStats | None:
        """End the process for certain and return the cache's final counters."""

    def failure(self, stage: Stage) -> OutOfMemory | Crashed:
        """Say why a request to it failed, from exit status and log."""


class Engine(Protocol):
    """Something that can serve a model in a given arrangement."""

    def launch(
        self,
        model: ModelFile,
        placement: Placement,
        *,
        gpu: Gpu | None,
        ceiling_mib: float,
        log_path: Path,
        port: int | None = None,
        load_timeout_s: float | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> AbstractContextManager[RunningServer]:
        """Start a fresh server; it is gone when the context ends.

        Raises (on entering): LaunchFailed, PortTakenError.
        """
