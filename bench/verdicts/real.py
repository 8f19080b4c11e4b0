"""A/A with real servers: one placement as two arms, through the tool's confirm stage."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.verdicts.fitted import Server, fit
from hottune import workflow
from hottune.cli.options import run_config
from hottune.errors import HottuneError, NothingMeasuredError
from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report.schema import ArmName, Replicate
from hottune.search.confirm import Confirmed, confirm, contest
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.search.rounds import Rounds
from hottune.search.storage import sqlite_url
from hottune.tasks import prepare
from hottune.tasks.show import Meter, outcome_line


def equal_arms(model: str, rounds: int) -> int:
    """Measure one placement as `layers` and as `hot`, interleaved; print replicates, verdicts and noise.

    Returns 1 when any of the three speeds was told apart (5 times in 100 that is chance), or when an error of
    hottune ended it.
    """
    try:
        confirmed = _measured(model, rounds)
    except HottuneError as error:
        print(error, file=sys.stderr)
        return 1
    apart = False
    for objective in Objective:
        change = contest(confirmed.replicates, objective, confirmed.level).verdicts()["hot", "layers"]
        bounds = "" if change.low is None else f" ({change.low:.3f} to {change.high:.3f})"
        print(f"{objective}: {change.verdict}, ratio {change.ratio:.3f}{bounds}; {change.method}")
        apart |= change.verdict != "can't tell"
    found = fit(model, servers(confirmed))
    far = ", ".join(f"{size:+.0%}" for size in found.outliers) or "none"
    print(
        f"noise of a turn: CV {found.cv:.1%}, {found.drift:+.2%} a server, lag-1 {found.lag1:+.2f}, "
        f"outliers {far}"
    )
    return int(apart)


def servers(confirmed: Confirmed) -> list[Server]:
    """Return the replicates of all arms as one series, for `fit`: here all arms are one."""
    every = [one for replicates in confirmed.replicates.values() for one in replicates]
    ordered = sorted(every, key=lambda one: one.position)
    return [
        Server(0, one.position, one.outcome.turn_s) for one in ordered if isinstance(one.outcome, Measurement)
    ]


def _measured(model: str, rounds: int) -> Confirmed:
    plan = prepare.prepare(run_config(model=model, vram=None), NoProgress())
    placement = plan.space.grid(plan.space.ubatches[0])[0]
    print(f"{plan.model.name} on {plan.gpu.name}, ceiling {plan.ceiling_mib:.0f} MiB: {placement.label()}")
    measure = workflow.real_servers(plan, Meter(NoProgress()))
    placements: dict[ArmName, Placement] = {"layers": placement, "hot": placement}

    def watch(arm: ArmName, placement: Placement, replicate: Replicate) -> None:
        arm_name = "A" if arm == "layers" else "B"
        print(f"  {replicate.position:>2} {arm_name}  {outcome_line(replicate.outcome)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal("equal arms", sqlite_url(Path(folder) / "a.db"), Objective.TURN)
        confirmed = confirm(journal, placements, Rounds(rounds), measure, watch=watch)
    if not all(
        any(isinstance(one.outcome, Measurement) for one in found) for found in confirmed.replicates.values()
    ):
        raise NothingMeasuredError("The placement could not be measured.", "", "`hottune doctor` says more.")
    return confirmed
