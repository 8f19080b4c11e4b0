"""Other engines against the recommended arm."""

from __future__ import annotations

from hottune.report.schema import METRICS, Arm, ArmName, Change, Metric
from hottune.search.confirm import contest
from hottune.search.objective import Objective
from hottune.stats import PairedChange
from hottune.tasks.changes import as_change
from hottune.tasks.limited import Replicates


def against_engines(
    rows: list[Arm], replicates: Replicates, winner: ArmName, metric: Metric, level: float
) -> tuple[list[Arm], list[ArmName]]:
    """Compare every other engine with the recommended arm; also return those that were faster.

    Verdicts are by Holm's method over all other engines, for each of the three speeds by itself.

    Args:
        rows: all arms.
        replicates: of the measured ones.
        winner: the recommended arm.
        metric: of the objective.
        level: confidence level.
    """
    engines = [row.name for row in rows if row.placement.engine and row.name in replicates]
    found: dict[Metric, dict[tuple[str, str], PairedChange]] = {
        one: contest(replicates, Objective(one), level, baselines=[winner], candidates=engines).verdicts()
        for one in METRICS
    }
    against: dict[str, dict[Metric, Change]] = {
        name: {
            one: as_change(changes[name, winner])
            for one, changes in found.items()
            if (name, winner) in changes
        }
        for name in engines
    }
    faster = [
        name for name in engines if metric in against[name] and against[name][metric].verdict == "faster"
    ]
    return [
        row.model_copy(update={"versus_winner": against[row.name]}) if row.name in against else row
        for row in rows
    ], faster
