"""Confirm: the winner of the search and every baseline again, in fresh servers and interleaved.

The best of many noisy trials looks better than it is (the winner's curse), so the search's own numbers
decide only what is measured again, never what is recommended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hottune.placement import Placement
from hottune.report.schema import ArmName, Replicate
from hottune.search.journal import Journal, Measure
from hottune.stats.order import interleaved

#: Rounds that are measured even when the time budget is used up: one replicate can never be told from noise.
LEAST_ROUNDS = 2


@dataclass(frozen=True)
class Confirmed:
    """Replicates of each arm, in the order they were measured."""

    placements: dict[ArmName, Placement]
    replicates: dict[ArmName, list[Replicate]] = field(default_factory=dict)


Watch = Callable[[ArmName, Placement, Replicate], None]


def confirm(
    journal: Journal,
    placements: Mapping[ArmName, Placement],
    rounds: int,
    measure: Measure,
    *,
    spent: Callable[[], bool] = lambda: False,
    watch: Watch = lambda arm, placement, replicate: None,
) -> Confirmed:
    """Measure every arm once a round, in interleaved order; replicates already in the journal are kept.

    Args:
        journal: where replicates are kept; a killed process loses only the one that ran.
        placements: what to measure again, by arm.
        rounds: replicates of each arm.
        measure: starts a fresh server and measures a placement in it.
        spent: says that the time is up; asked before each round from the third on.
        watch: told about every replicate, also about those that were kept.
    """
    key = plan_key(placements)
    done = journal.replicates(key)
    result = Confirmed(dict(placements), {arm: [] for arm in placements})
    for position, name in enumerate(interleaved(list(placements), rounds)):
        arm = next(known for known in placements if known == name)
        if position not in done:
            round_number = position // max(1, len(placements))
            starts_round = position % max(1, len(placements)) == 0
            if starts_round and round_number >= LEAST_ROUNDS and spent():
                break
            done[position] = (
                arm,
                journal.try_replicate(key, position, arm, placements[arm], measure),
            )
        replicate = done[position][1]
        result.replicates[arm].append(replicate)
        watch(arm, placements[arm], replicate)
    return result


def plan_key(placements: Mapping[ArmName, Placement]) -> str:
    """Return a key of what is compared, so that replicates of another comparison are never mixed in."""
    text = "\n".join(f"{arm} {placement.model_dump_json()}" for arm, placement in placements.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
