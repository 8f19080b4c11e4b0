"""How well and how fast the search finds the best placement, against other ways to search.

    python -m bench.search [--seeds 5] [--out FILE.json] [--method NAME ...] [--landscape TEXT ...]

Landscapes are modelled ones (modelled.py) and recorded ones (landscapes/*.json, real servers). The table has
for each the seconds that measuring the whole grid takes, and for each method the share of the grid's best
speed that its choice really has (worst and median over seeds), when 2 % and 10 % of those seconds are spent,
baselines included; and the share of the seconds at which it had 97 % for good.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.search.landscape import Clocked, Landscape, sweep
from bench.search.methods import METHODS
from bench.search.modelled import modelled
from bench.search.recorded import recorded

SHARES = (0.02, 0.05, 0.1)
GOAL = 0.97


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    options = parse(arguments)
    rows = []
    for landscape in [*modelled(), *recorded()]:
        if options.landscape and not any(text in landscape.name for text in options.landscape):
            continue
        optimum_s, grid_s = sweep(landscape)
        for name, method in METHODS.items():
            if options.method and name not in options.method:
                continue
            clocks = []
            for seed in range(options.seeds):
                clock = Clocked(landscape, seed=1000 + seed)
                method(clock, SHARES[-1] * grid_s, seed)
                clocks.append(clock)
            row = summary(landscape, name, clocks, optimum_s, grid_s)
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--landscape", action="append", metavar="TEXT")
    return parser.parse_args(arguments)


def summary(
    landscape: Landscape, method: str, clocks: list[Clocked], optimum_s: float, grid_s: float
) -> dict[str, Any]:
    """Return what one method reached on one landscape, over all seeds."""
    found: dict[str, Any] = {"landscape": landscape.name, "method": method, "grid_s": round(grid_s)}
    for share in SHARES:
        qualities = [clock.quality_at(share * grid_s, optimum_s) for clock in clocks]
        found[f"median_{share:g}"], found[f"worst_{share:g}"] = median(qualities), min(qualities)
    found["goal_s"] = median(reached_s(clock, optimum_s, SHARES[-1] * grid_s) for clock in clocks)
    found["servers"] = median(clock.servers for clock in clocks)
    return found


def reached_s(clock: Clocked, optimum_s: float, limit_s: float) -> float:
    """Return the seconds after which the choice had `GOAL` of the best speed for good; infinite: never."""
    times = [at for _, at, _ in clock.history if at <= limit_s]
    good = float("inf")
    for at in reversed(times):
        if clock.quality_at(at, optimum_s) < GOAL:
            break
        good = at
    return good


def line(row: dict[str, Any]) -> str:
    """Return a row for people who wait."""
    shares = "  ".join(
        f"{share:.0%}: {row[f'median_{share:g}']:.3f} ({row[f'worst_{share:g}']:.3f})" for share in SHARES
    )
    return f"{row['landscape']:36} {row['method']:24} {shares}  97 % after {row['goal_s']:.0f} s"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    head = [
        "landscape",
        "grid s",
        "method",
        *(f"at {share:.0%}" for share in SHARES),
        "97 % after s",
        "servers",
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: | --- |" + " ---: |" * (len(head) - 3)]
    for row in rows:
        shares = [f"{row[f'median_{share:g}']:.1%} ({row[f'worst_{share:g}']:.1%})" for share in SHARES]
        goal = "never" if row["goal_s"] == float("inf") else f"{row['goal_s']:,.0f}"
        cells = [
            row["landscape"],
            f"{row['grid_s']:,}",
            row["method"],
            *shares,
            goal,
            f"{row['servers']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
