"""python -m bench.durability: kill -9 at random moments, and what was lost by it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.durability.lives import Tally, kill_studies


def main() -> int:
    """Run the benchmark; exit code 1 when anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m bench.durability", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--real", action="store_true", help="kill `hottune run demo` with its real servers")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hottune-durability-") as folder:
        if options.real:
            from bench.durability.real import kill_demo

            tally = kill_demo(Path(folder), options.kills, options.seed)
        else:
            tally = kill_studies(Path(folder), options.kills, options.seed)
    print(summary(tally, time.monotonic() - began, real=options.real))
    return 1 if tally.faults else 0


def summary(tally: Tally, seconds: float, *, real: bool) -> str:
    """Return what was found in a few lines."""
    held = "no server left" if real else "every result as undisturbed"
    lines = [
        f"{tally.kills} processes killed in {tally.studies} studies, {seconds:.0f} s",
        f"{tally.finished} measurements had been stored; each storage was checked after each kill",
        *(tally.faults[:20] or [f"no measurement lost, no storage damaged, {held}"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
