"""Everything a placement can do wrong ends as an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import planned
import pytest

from hottune.engine.control import Glance
from hottune.engine.failures import LaunchFailed
from hottune.machine.clocks import HARDWARE_HEAT
from hottune.outcomes import (
    Crashed,
    DuringRun,
    Engagement,
    Garbage,
    HotStats,
    Measurement,
    NextTokens,
    Outcome,
    OutOfMemory,
    Rejected,
    TimedOut,
)
from hottune.placement import Placement
from hottune.tasks import measure
from hottune.workload.client import RequestFailed, WrongAnswer
from hottune.workload.next_tokens import CannotScore

HOT = HotStats(slots=4, layers=8, hits=3, misses=1, uploads=1, uploaded_bytes=1, cache_bytes=1)
SCORED = NextTokens(text="lighthouses", prefix_tokens=64, ids=[[5]], logprobs=[[-0.1]])


class FakeServer:
    base_url = "http://127.0.0.1:1"
    pid = 1
    load_s = 2.0

    def __init__(self, hot: HotStats | None = None, peak_mib: float | None = 40.0) -> None:
        self.hot = hot
        self.virtual_peak_mib = peak_mib
        self.stopped = False
        self.silent = False
        self.driven = 0
        self.glances = 0
        self.looks: list[str] = []  # at the logits

    def hot_stats(self) -> HotStats | None:
        return None if self.silent else self.hot

    def glance(self) -> Glance:
        self.glances += 1
        hot = self.hot is not None
        return Glance((3 * self.glances, self.glances) if hot else None, virtual_mib=30.0 + self.glances)

    def stop(self) -> HotStats | None:
        self.stopped = True
        return self.hot

    def alive(self) -> bool:
        return not self.stopped

    def log_tail(self) -> list[str]:
        return ["last line"]

    def failure(self, stage: str) -> Outcome:
        return Crashed(exit_code=1, detail=f"died at {stage}")

    def engagement(self) -> Engagement:
        return Engagement(
            gpu_device="VGPU0",
            vram_model_mib=1,
            vram_kv_mib=1,
            vram_compute_mib=1,
            host_model_mib=1,
            hot=self.hot,
        )


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    plan = planned.plan(tmp_path)

    def run(
        *,
        scoring: bool = False,
        score_error: Exception | None = None,
        hot_times: int = 0,
        hot_k: int = 0,
        server: FakeServer | None = None,
        launch_error: Exception | None = None,
        drive_error: Exception | None = None,
    ) -> Outcome:
        served = server or FakeServer(HOT if hot_k else None)

        @contextmanager
        def launch(*_: Any, **__: Any) -> Iterator[FakeServer]:
            if launch_error:
                raise launch_error
            yield served

        def drive(*_: Any, on_progress: Callable[[str], None], **__: Any) -> Any:
            on_progress("request 1")
            served.driven += 1
            if drive_error:
                raise drive_error
            return planned.measured(placement, 1.0).requests

        def look(name: str) -> Callable[..., NextTokens]:
            def looked(*_: Any, **__: Any) -> NextTokens:
                assert not served.stopped
                served.looks.append(name)
                if score_error:
                    raise score_error
                return SCORED

            return looked

        times = iter([True] * hot_times)
        if hot_times:
            heat = DuringRun(samples=50, throttled={HARDWARE_HEAT: 0.02, "power limit": 0.5})
            cool = DuringRun(samples=50, throttled={"power limit": 0.5})

            def seen(watch: object) -> DuringRun:
                return heat if next(times, False) else cool

            monkeypatch.setattr(measure.MachineWatch, "seen", seen)

        placement = plan.space.base.model_copy(update={"n_cpu_moe": 8, "hot_k": hot_k})
        monkeypatch.setattr(measure, "launch", launch)
        monkeypatch.setattr(measure, "drive", drive)
        monkeypatch.setattr(measure, "score", look("score"))
        monkeypatch.setattr(measure, "require_finite", look("finite"))
        bench = measure.Bench(
            engine=plan.engine,
            model=plan.model,
            gpu=plan.gpu,
            ceiling_mib=50.0,
            workload=plan.workload,
            log_dir=tmp_path,
        )
        with bench.scoring({placement: int(scoring)}):
            return bench.measure(placement)

    return run


def test_a_server_that_does_all_that_was_asked_is_a_measurement(measured: Callable[..., Outcome]) -> None:
    outcome = measured(hot_k=4)
    assert isinstance(outcome, Measurement)
    assert outcome.hit_rate == 0.75
    assert (outcome.vram_peak_mib, outcome.vram_source, outcome.load_s) == (40.0, "virtual", 2.0)


def test_a_launch_that_failed_ends_as_its_outcome(measured: Callable[..., Outcome]) -> None:
    wanted = OutOfMemory(stage="load", detail="no room")
    assert measured(launch_error=LaunchFailed(wanted)) == wanted


def test_a_cache_that_left_no_counters_is_not_engaged(measured: Callable[..., Outcome]) -> None:
    outcome = measured(hot_k=4, server=FakeServer(hot=None))
    assert outcome.kind == "not_engaged"


def test_a_cache_that_does_not_answer_is_read_from_its_file(measured: Callable[..., Outcome]) -> None:
    server = FakeServer(HOT)
    server.silent = True
    outcome = measured(hot_k=4, server=server)
    assert isinstance(outcome, Measurement)
    assert outcome.hit_rate == 0.75
    assert server.stopped


def test_a_virtual_gpu_without_a_peak_is_not_engaged(measured: Callable[..., Outcome]) -> None:
    outcome = measured(server=FakeServer(peak_mib=None))
    assert outcome.kind == "not_engaged"


@pytest.mark.parametrize(("peak_mib", "kind"), [(50.9, "measurement"), (51.1, "rejected")])
def test_a_peak_above_the_ceiling_is_rejected_whatever_its_speed(
    measured: Callable[..., Outcome], peak_mib: float, kind: str
) -> None:
    outcome = measured(server=FakeServer(peak_mib=peak_mib))
    assert outcome.kind == kind


def test_a_server_that_dies_in_its_first_request_is_diagnosed_there(measured: Callable[..., Outcome]) -> None:
    outcome = measured(drive_error=RequestFailed("connection broke"))
    assert isinstance(outcome, Crashed)
    assert "connection broke" in outcome.detail
    assert "first_batch" in outcome.detail


def test_a_request_without_an_end_is_timed_out(measured: Callable[..., Outcome]) -> None:
    outcome = measured(drive_error=RequestFailed("no end", timed_out=True))
    assert outcome.kind == "timed_out"


def test_an_answer_that_is_none_is_garbage_and_keeps_the_log(measured: Callable[..., Outcome]) -> None:
    outcome = measured(drive_error=WrongAnswer("8 tokens generated, not 20"))
    assert outcome == Garbage(detail="8 tokens generated, not 20", log_tail=["last line"])


def test_a_wrong_answer_of_a_server_that_died_of_it_is_a_crash(measured: Callable[..., Outcome]) -> None:
    server = FakeServer()
    server.stopped = True
    outcome = measured(server=server, drive_error=WrongAnswer("an event is not JSON"))
    assert isinstance(outcome, Crashed)


def test_logits_that_are_not_finite_are_garbage_however_fast(measured: Callable[..., Outcome]) -> None:
    outcome = measured(hot_k=4, score_error=WrongAnswer("the logits are not finite"))
    assert outcome.kind == "garbage"


def test_a_server_that_hangs_after_its_workload_is_timed_out(measured: Callable[..., Outcome]) -> None:
    outcome = measured(score_error=RequestFailed("silent", timed_out=True))
    assert isinstance(outcome, TimedOut)


def test_every_server_is_looked_at_but_only_a_wanted_one_is_scored(measured: Callable[..., Outcome]) -> None:
    plain, scored = FakeServer(HOT), FakeServer(HOT)
    first, second = measured(hot_k=4, server=plain), measured(hot_k=4, server=scored, scoring=True)
    assert isinstance(first, Measurement)
    assert isinstance(second, Measurement)
    assert (first.next_tokens, second.next_tokens) == (None, SCORED)
    assert (plain.looks, scored.looks) == (["finite"], ["score"])
    assert first.hit_rate == second.hit_rate


def test_a_model_that_cannot_be_scored_is_measured_all_the_same(measured: Callable[..., Outcome]) -> None:
    outcome = measured(scoring=True, score_error=CannotScore("9 tokens were processed for one more"))
    assert isinstance(outcome, Measurement)
    assert outcome.next_tokens is None


def test_a_cache_that_does_not_answer_is_not_looked_at_for_its_counters_would_change(
    measured: Callable[..., Outcome],
) -> None:
    server = FakeServer(HOT)
    server.silent = True
    measured(hot_k=4, server=server, scoring=True)
    assert server.looks == []


def test_what_broke_the_ceiling_keeps_its_log(measured: Callable[..., Outcome]) -> None:
    outcome = measured(server=FakeServer(peak_mib=60.0))
    assert isinstance(outcome, Rejected)
    assert outcome.log_tail == ["last line"]


def test_a_gpu_that_slowed_down_for_heat_is_measured_once_more(measured: Callable[..., Outcome]) -> None:
    server = FakeServer()
    assert isinstance(measured(server=server, hot_times=1), Measurement)
    assert server.driven == 2


def test_heat_that_stays_is_no_number_and_says_nothing_of_the_ceiling(
    measured: Callable[..., Outcome],
) -> None:
    server = FakeServer()
    outcome = measured(server=server, hot_times=5)
    assert isinstance(outcome, Rejected)
    assert (outcome.rule, outcome.vram_peak_mib) == ("heat", None)
    assert "heat" in outcome.detail
    assert outcome.log_tail == ["last line"]
    assert server.driven == 2


def test_ctrl_c_goes_through(measured: Callable[..., Outcome]) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(drive_error=KeyboardInterrupt())  # type: ignore[arg-type]


def test_old_logs_are_pruned(tmp_path: Path, measured: Callable[..., Outcome]) -> None:
    for number in range(measure.LOGS_KEPT + 5):
        (tmp_path / f"20000101-{number:06d}.log").touch()
    measured()
    logs = sorted(tmp_path.glob("*.log"))
    assert len(logs) == measure.LOGS_KEPT
    assert logs[0].name == "20000101-000005.log"


def test_a_placement_label_is_what_a_person_reads(tmp_path: Path) -> None:
    assert Placement(n_cpu_moe=8, hot_k=4, threads=1).label() == "ncmoe 8 + hot 4/60 ub 512"


def test_every_measurement_tells_the_machines_state_around_it(measured: Callable[..., Outcome]) -> None:
    outcome = measured()
    assert isinstance(outcome, Measurement)
    state = outcome.machine_state
    assert state is not None
    assert (state.waited_s, state.settled, state.temperature_c) == (0, True, None)
    assert state.during is not None
    assert state.during.swap_growth_mib is not None
    assert state.during.samples == 0, "a virtual GPU is not asked"


def test_every_measurement_tells_vram_and_hits_over_time(measured: Callable[..., Outcome]) -> None:
    outcome = measured(hot_k=4)
    assert isinstance(outcome, Measurement)
    assert outcome.timeline is not None
    assert (outcome.timeline.vram_mib, outcome.timeline.hit_rates) == ([32.0], [0.75])
    plain = measured(server=FakeServer())
    assert isinstance(plain, Measurement)
    assert plain.timeline is not None
    assert plain.timeline.hits == []
