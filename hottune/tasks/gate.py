"""Whether a comparison passes `--fail-below`: a line for each arm, and which of them are too slow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from hottune.report.schema import Metric
from hottune.tasks.comparison import Comparison


class Judged(BaseModel):
    """One arm held against the least ratio allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    letter: str
    metric: Metric
    least: float = Field(description="ratio to the first arm that --fail-below asks for")
    failed: bool
    why: str = Field(description="one sentence")


def judge(comparison: Comparison, metric: Metric, least: float) -> list[Judged]:
    """Fail an arm when it is surely below `least` times the first: the whole interval is, to its upper end.

    An arm that has no interval (one replicate) fails by its ratio alone; one without a ratio fails, because
    nothing shows that it is fast enough.
    """
    first = comparison.arms[0].letter
    found = []
    for row in comparison.against_first:
        change = row.changes.get(metric)
        who = f"{row.letter} / {first}, {metric}"
        if change is None:
            failed, why = True, f"{who}: no replicate of both to compare"
        elif change.low is None or change.high is None:
            failed = change.ratio < least
            side = "below" if failed else "not below"
            why = f"{who}: the ratio {change.ratio:.4g} is {side} {least:g} (there is no interval)"
        else:
            failed = change.high < least
            side = "below" if failed else "not below"
            why = f"{who}: the interval's upper end {change.high:.4g} is {side} {least:g}"
            if not failed and change.ratio < least:
                why += f", though the ratio {change.ratio:.4g} is: more replicates would tell"
        found.append(Judged(letter=row.letter, metric=metric, least=least, failed=failed, why=f"{why}."))
    return found
