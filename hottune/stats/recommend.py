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


def recommend(
    best_baseline: str, challenger: str | None, change: PairedChange | None, *, rivals: int = 1
) -> Recommendation:
    """Recommend the best baseline, unless the challenger's lower bound is at least 0.99 times its speed.

    Args:
        best_baseline: the best of the baselines by the objective.
        challenger: the best confirmed arm that is not a baseline; None when there is none.
        change: the challenger compared with the best baseline; None when it could not be compared.
        rivals: how many candidates the challenger is the best of; the interval of `change` allows for that.
    """
    if challenger is None or change is None:
        return Recommendation(best_baseline, f"{best_baseline} is the best of what could be compared")
    measured = f"{challenger} was {change.ratio:.2f}x as fast as {best_baseline}"
    if change.low is None or change.high is None:
        return Recommendation(best_baseline, f"{measured}, but with too few replicates to tell")
    allowing = f"; interval for the best of {rivals}" if rivals > 1 else ""
    measured += f" ({change.low:.2f} to {change.high:.2f}, {change.verdict}{allowing})"
    if change.low >= LOWER_BOUND:
        return Recommendation(challenger, measured)
    return Recommendation(
        best_baseline, f"{measured}; to replace it, the lower end would have to be at least {LOWER_BOUND}"
    )
