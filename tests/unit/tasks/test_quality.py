"""Which replicates are scored, and what the report makes of it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import planned
import pytest

from hottune.outcomes import Crashed, NextTokens, Outcome
from hottune.placement import Placement
from hottune.report.schema import Arm, ArmName, Replicate
from hottune.tasks.quality import to_score, with_quality

ALL_CPU = Placement(n_cpu_moe=8, threads=1)
HOT = ALL_CPU.model_copy(update={"hot_k": 4})
BOTH: dict[ArmName, Placement] = {"all-cpu": ALL_CPU, "hot": HOT}


def scored(*probabilities: float, first: int = 1, text: str = "lighthouses") -> NextTokens:
    """Two tokens at each position: `first` with a probability, another one with the rest."""
    return NextTokens(
        text=text,
        prefix_tokens=64,
        ids=[[first, 9] for _ in probabilities],
        logprobs=[[math.log(p), math.log(1 - p)] for p in probabilities],
    )


def replicate(
    placement: Placement, found: NextTokens | None = None, outcome: Outcome | None = None
) -> Replicate:
    measured = planned.measured(placement, 1.0).model_copy(update={"next_tokens": found})
    return Replicate(position=0, started=datetime.now(UTC), outcome=outcome or measured)


def arm(name: ArmName, *replicates: Replicate) -> Arm:
    return Arm(
        name=name, placement=BOTH[name], argv=[], env={}, outcome="measurement", replicates=list(replicates)
    )


def test_each_arm_is_scored_once_and_the_reference_twice() -> None:
    assert to_score(BOTH, {}) == {ALL_CPU: 2, HOT: 1}


def test_what_an_earlier_session_scored_is_not_scored_again() -> None:
    crashed = replicate(HOT, outcome=Crashed(exit_code=-11, detail="gone"))
    done = {"all-cpu": [replicate(ALL_CPU, scored(0.6)), replicate(ALL_CPU)], "hot": [crashed]}
    assert to_score(BOTH, done) == {ALL_CPU: 1, HOT: 1}
    done["hot"].append(replicate(HOT, scored(0.6)))
    assert to_score(BOTH, done)[HOT] == 0


def test_the_divergence_is_that_of_the_first_scored_replicates() -> None:
    cpu = arm("all-cpu", replicate(ALL_CPU, scored(0.6, 0.6)), replicate(ALL_CPU, scored(0.6, 0.6)))
    hot = arm("hot", replicate(HOT), replicate(HOT, scored(0.6, 0.5)))
    reference, row = with_quality([cpu, hot])
    assert reference.kld_to_all_cpu == pytest.approx(0, abs=1e-12)
    assert row.kld_to_all_cpu == pytest.approx((0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)) / 2)
    assert (row.same_top_token, row.scored_positions) == (1.0, 2)


def test_another_top_token_is_counted() -> None:
    cpu = arm("all-cpu", replicate(ALL_CPU, scored(0.6)))
    hot = arm("hot", replicate(HOT, scored(0.6, first=2)))
    reference, row = with_quality([cpu, hot])
    assert row.same_top_token == 0
    assert row.kld_to_all_cpu is not None
    assert row.kld_to_all_cpu > 0.1
    assert reference.kld_to_all_cpu is None, "one replicate tells nothing of its own noise"


@pytest.mark.parametrize("other", [scored(0.6, 0.6), scored(0.6, text="bridges")])
def test_positions_of_another_text_are_not_compared(other: NextTokens) -> None:
    cpu = arm("all-cpu", replicate(ALL_CPU, scored(0.6)))
    assert with_quality([cpu, arm("hot", replicate(HOT, other))])[1].kld_to_all_cpu is None


def test_without_a_reference_nothing_is_said() -> None:
    (row,) = with_quality([arm("hot", replicate(HOT, scored(0.6)))])
    assert row.kld_to_all_cpu is None
