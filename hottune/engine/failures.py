"""How a server that did not come up as asked is told."""

from __future__ import annotations

from typing import Literal

from hottune.outcomes import Crashed, NotEngaged, OutOfMemory, TimedOut

#: What a server that did not serve can end as.
Failure = OutOfMemory | TimedOut | Crashed | NotEngaged
Stage = Literal["load", "first_batch", "later"]


class LaunchFailed(Exception):
    """The server did not come up as asked; `outcome` says how it ended."""

    def __init__(self, outcome: Failure) -> None:
        self.outcome = outcome
        super().__init__(f"{outcome.kind}: {outcome.detail}")
