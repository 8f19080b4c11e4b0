"""The rule that makes a recommendation out of confirmed replicates."""

from __future__ import annotations

from dataclasses import dataclass

from hottune.stats.intervals import PairedChange

#: The challenger must keep at least this share of the baseline's speed, at the lower end of its interval.
LOWER_BOUND = 0.99


@dataclass(frozen=True)
class Recommendation:
    """Which arm to use, and why in one sentence."""

    arm: str
    reason: str


def recommend(best_baseline: str, challenger: str | None, change: PairedChange | None) -> Recommendation:
    """Recommend the best baseline, unless the challenger's lower bound is at least 0.99 times its speed.

    Args:
        best_baseline: the best of the baselines by the objective.
        challenger: the best confirmed arm that is not a baseline; None when there is none.
        change: the challenger compared with the best baseline; None when it could not be compared.
    """
    if challenger is None or change is None:
        return Recommendation(best_baseline, f"{best_baseline}: nothing else was measured to compare it with")
    if change.low is None or change.high is None:
        return Recommendation(
            best_baseline,
            f"{best_baseline}: {challenger} was {change.ratio:.2f}x as fast, "
            f"but there are too few replicates to tell",
        )
    measured = f"{change.ratio:.2f}x as fast ({change.low:.2f} to {change.high:.2f}, {change.verdict})"
    if change.low >= LOWER_BOUND:
        return Recommendation(challenger, f"{challenger}: {measured} as {best_baseline}")
    return Recommendation(
        best_baseline,
        f"{best_baseline}: {challenger} was {measured}, "
        f"and a recommendation needs at least {LOWER_BOUND} at the lower end",
    )
