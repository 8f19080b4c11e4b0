"""One worker of a shared study, without servers: what a forked process of a test runs.

It writes each placement that it is asked to measure to a file the moment it begins.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench.durability import landscape
from hottune import workflow
from hottune.errors import HottuneError
from hottune.outcomes import Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.search import storage

BEAT_S, GRACE_S = 1, 2


class Said(NoProgress):
    def say(self, line: str) -> None:
        os.write(1, f"{line}\n".encode())  # the process that was forked has print's buffer, too


def work(folder: Path, name: str, url: str, given: dict[str, Any]) -> None:
    """Work on the study and end the process, with hottune's exit code."""
    said = (folder / f"said-{name}.txt").open("a")
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    code = 1
    try:
        code = _run(folder, name, url, given)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(folder: Path, name: str, url: str, given: dict[str, Any]) -> int:
    storage.BEAT_S, storage.GRACE_S = BEAT_S, GRACE_S
    storage.OUTAGE_LIMIT_S = given.get("outage_limit_s", storage.OUTAGE_LIMIT_S)
    workflow.surroundings = list  # what else goes on on this machine is no part of the comparison
    plan = landscape.plan(folder / name, storage=url, worker=name, trials=given["trials"], replicates=2)
    by_formula = landscape.measuring(plan.ceiling_mib, given["pause_s"], surprise_mib=0)
    asked = folder / f"asked-{name}.txt"

    def measure(placement: Placement) -> Outcome:
        first = not asked.exists()
        with asked.open("a") as file:
            file.write(placement.model_dump_json() + "\n")
        time.sleep(given.get("first_pause_s", 0) if first else 0)
        return by_formula(placement)

    while not (folder / "go").exists():
        time.sleep(0.01)
    try:
        workflow.run_plan(plan, Said(), lambda plan, meter: measure)
    except HottuneError as error:
        os.write(1, f"{error}\n".encode())
        return error.exit_code
    return 0
