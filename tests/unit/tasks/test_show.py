"""The one line of a server that ended, and the state of a study that is passed on."""

from __future__ import annotations

from datetime import UTC, datetime

import planned

from hottune.outcomes import Measurement, NotEngaged
from hottune.placement import Placement
from hottune.progress import NoProgress, StudyState
from hottune.report.schema import Replicate
from hottune.tasks.show import Meter, outcome_line

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


class Shown(NoProgress):
    def __init__(self) -> None:
        self.states: list[StudyState] = []

    def show(self, state: StudyState) -> None:
        self.states.append(state)

    @property
    def last(self) -> StudyState:
        return self.states[-1]


def test_a_stage_counts_its_servers_and_says_what_each_one_does() -> None:
    shown = Shown()
    meter = Meter(shown, ceiling_mib=64.0)
    meter.stage("Search", 5, done=2)
    assert (shown.last.stage, shown.last.done, shown.last.total) == ("Search", 2, 5)
    meter.begin(HOT)
    meter.note("loading")
    assert shown.last.doing == f"{HOT.label()} t 1: loading"
    meter.ended("x", planned.measured(HOT, 1.0))
    assert (shown.last.done, shown.last.doing) == (3, "")
    assert shown.last.stage_ends_at is not None
    assert shown.last.ceiling_mib == 64.0


def test_a_stage_may_take_more_servers_than_planned() -> None:
    shown = Shown()
    meter = Meter(shown)
    meter.stage("Baselines", 1)
    for _ in range(3):
        meter.ended("x", planned.measured(HOT, 1.0))
    assert (shown.last.done, shown.last.total) == (3, 3)


def test_looks_belong_to_the_server_that_runs() -> None:
    shown = Shown()
    meter = Meter(shown)
    meter.stage("Search", 5)
    meter.look(9.0, 0.9)
    assert shown.last.vram_mib is None, "none runs"
    meter.begin(HOT)
    meter.look(30.0, 0.5)
    meter.look(20.0, 0.6)
    assert (shown.last.vram_mib, shown.last.vram_peak_mib, shown.last.hit_rate) == (20.0, 30.0, 0.6)
    meter.look(None, None)
    assert (shown.last.vram_mib, shown.last.vram_peak_mib) == (None, 30.0)
    meter.begin(HOT)
    assert (shown.last.vram_mib, shown.last.vram_peak_mib, shown.last.hit_rate) == (None, None, None)


def test_a_replicate_that_was_kept_says_nothing_about_the_pace() -> None:
    shown = Shown()
    meter = Meter(shown)
    meter.stage("Confirm", 5)
    meter.replicate(
        "hot", HOT, Replicate(position=0, started=datetime.now(UTC), outcome=planned.measured(HOT, 1.0))
    )
    assert shown.last.done == 1
    assert shown.last.stage_ends_at is None
