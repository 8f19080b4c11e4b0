"""A whole study with simulated servers, for tests that need one to be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planned

from hottune import workflow
from hottune.outcomes import NotEngaged, Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress


def run(folder: Path, **changes: Any) -> None:
    """Run it to its end: a cache makes a turn a third faster than the best baseline."""

    def measure(placement: Placement) -> Outcome:
        if placement.fit:
            return NotEngaged(detail="fit placed nothing")
        slow = 0.75 if placement.hot_k else 1.0 if placement.n_cpu_moe < 8 else 1.5
        return planned.measured(placement, slow)

    workflow.run_plan(planned.plan(folder, **changes), NoProgress(), lambda plan, meter: measure)
