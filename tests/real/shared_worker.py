"""One worker of a shared study, without servers: `python shared_worker.py SETTINGS`, a JSON object.

It writes each placement that it is asked to measure to a file the moment it begins.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from bench.durability import landscape
from hottune import workflow
from hottune.errors import HottuneError
from hottune.outcomes import Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.search import storage
from hottune.tasks import surroundings


class Said(NoProgress):
    def say(self, line: str) -> None:
        print(line, flush=True)


def main() -> int:
    given = json.loads(sys.argv[1])
    folder, name = Path(given["folder"]), given["name"]
    storage.BEAT_S, storage.GRACE_S = 1, 3
    if "outage_limit_s" in given:
        storage.Patience.limit_s = given["outage_limit_s"]
        storage.Patience.__init__.__defaults__ = (given["outage_limit_s"],)
    surroundings.surroundings.__defaults__ = (0.0,)
    plan = landscape.plan(
        folder / name, storage=given.get("url"), worker=name, trials=given["trials"], replicates=2
    )
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
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
