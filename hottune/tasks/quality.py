"""Quality beside speed: how far an arm's next tokens are from the all-CPU arm's, in scored replicates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from hottune.outcomes import Measurement, NextTokens
from hottune.placement import Placement
from hottune.report.schema import Arm, ArmName, Replicate
from hottune.stats.divergence import divergence

REFERENCE: ArmName = "all-cpu"
#: The reference is scored twice: what it differs from itself is the noise below which nothing is told.
_TIMES_OF_REFERENCE = 2


def to_score(
    placements: Mapping[ArmName, Placement], done: Mapping[ArmName, Iterable[Replicate]]
) -> dict[Placement, int]:
    """Return how many replicates of each placement are still to be scored.

    Args:
        placements: what is confirmed, by arm.
        done: the replicates that an earlier session left.
    """
    wanted: dict[Placement, int] = {}
    for arm, placement in placements.items():
        times = _TIMES_OF_REFERENCE if arm == REFERENCE else 1
        wanted[placement] = max(0, times - len(_scored(done.get(arm, ()))))
    return wanted


def with_quality(arms: list[Arm]) -> list[Arm]:
    """Return the arms with their divergence from the all-CPU arm's first scored replicate.

    The all-CPU arm's own is that of its second one: 0 where the server is deterministic. Without a scored
    replicate on both sides nothing is said.
    """
    reference = next((_scored(arm.replicates) for arm in arms if arm.name == REFERENCE), [])
    return [_with_quality(arm, reference) for arm in arms]


def _with_quality(arm: Arm, reference: list[NextTokens]) -> Arm:
    scored = _scored(arm.replicates)
    if arm.name == REFERENCE:
        scored = scored[1:]
    scored = [one for one in scored if reference and _same_positions(one, reference[0])]
    if arm.outcome != "measurement" or not scored:
        return arm
    found = [divergence(reference[0].tops, one.tops) for one in scored]
    return arm.model_copy(
        update={
            "kld_to_all_cpu": fmean(one.kld for one in found),
            "same_top_token": fmean(one.same_top for one in found),
            "scored_positions": sum(one.positions for one in found),
        }
    )


def _scored(replicates: Iterable[Replicate]) -> list[NextTokens]:
    measured = [one.outcome for one in replicates if isinstance(one.outcome, Measurement)]
    return [one.next_tokens for one in measured if one.next_tokens is not None]


def _same_positions(one: NextTokens, other: NextTokens) -> bool:
    """Tell whether both are about the same tokens; a study can be resumed with a later hottune."""
    facts = [(each.text, each.prefix_tokens, len(each.ids)) for each in (one, other)]
    return facts[0] == facts[1]
