"""The one line of a server that ended."""

from __future__ import annotations

import planned

from hottune.outcomes import Measurement, NotEngaged
from hottune.placement import Placement
from hottune.tasks.show import outcome_line

HOT = Placement(n_cpu_moe=8, hot_k=4, threads=1)


def with_counters(one: Measurement, **counters: int) -> Measurement:
    hot = one.engagement.hot
    assert hot is not None
    engagement = one.engagement.model_copy(update={"hot": hot.model_copy(update=counters)})
    return one.model_copy(update={"engagement": engagement})


def test_hits_stand_in_the_line_of_a_cache_and_in_no_other() -> None:
    assert outcome_line(planned.measured(HOT, 1.0)).endswith("hits 75%")
    assert "hits" not in outcome_line(planned.measured(HOT.model_copy(update={"hot_k": 0}), 1.0))


def test_hits_of_batches_stand_beside_those_of_all() -> None:
    one = with_counters(planned.measured(HOT, 1.0), multi_hits=1, multi_misses=3)
    assert outcome_line(one).endswith("hits 75% (batches 25%)")


def test_a_server_that_was_kept_is_named() -> None:
    one = planned.measured(HOT, 1.0).model_copy(update={"reused_server": True})
    assert outcome_line(one).endswith("(same server)")


def test_what_is_no_measurement_is_told_with_its_reason() -> None:
    assert outcome_line(NotEngaged(detail="no device")) == "not engaged: no device"
