"""One server for several trials of the search: only where a restart changes nothing, and never unmarked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import planned
import pytest

from hottune import workflow
from hottune.engine.control import ControlError
from hottune.outcomes import Crashed, Engagement, HotStats, Measurement, NextTokens, Outcome
from hottune.placement import Placement, needs_restart
from hottune.progress import NoProgress
from hottune.tasks import measure, surroundings
from hottune.workload.client import RequestFailed

CEILING_MIB = 50.0


class FakeServer:
    """A server that counts as if its cache held `slots` experts, and that can be turned to other settings."""

    base_url = "http://127.0.0.1:1"
    pid = 1
    load_s = 2.0

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.applied: list[Placement] = []
        self.stopped = False
        self.dead = False
        self.refuses = ""
        self.answers = True
        self.slots_lost = 0
        self.virtual_peak_mib: float | None = 40.0

    def hot(self) -> HotStats:
        slots = self.placement.hot_k - self.slots_lost * bool(self.applied)
        counts = {"layers": 8, "hits": 3, "misses": 1, "uploads": 1, "uploaded_bytes": 1, "cache_bytes": 1}
        return HotStats(slots=slots, **counts)

    def hot_stats(self) -> HotStats | None:
        return self.hot() if self.answers else None

    def glance(self) -> None:
        return None

    def apply(self, placement: Placement) -> None:
        if self.refuses:
            raise ControlError(self.refuses)
        assert not needs_restart(self.placement, placement)
        self.placement = placement
        self.applied.append(placement)

    def stop(self) -> HotStats | None:
        self.stopped = True
        return self.hot() if self.placement.hot_k else None

    def alive(self) -> bool:
        return not self.stopped and not self.dead

    def log_tail(self) -> list[str]:
        return []

    def failure(self, stage: str) -> Outcome:
        return Crashed(exit_code=1, detail=f"died at {stage}")

    def engagement(self) -> Engagement:
        sizes = dict.fromkeys(("vram_model_mib", "vram_kv_mib", "vram_compute_mib", "host_model_mib"), 1.0)
        return Engagement(gpu_device="VGPU0", hot=self.hot() if self.placement.hot_k else None, **sizes)


class Machine:
    """A bench whose servers are fakes: those started so far, and what happens to requests."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = planned.plan(folder)
        self.base = plan.space.base
        self.started: list[FakeServer] = []
        self.drive_error: BaseException | None = None
        self.said: list[str] = []
        monkeypatch.setattr(measure, "launch", self.launch)
        monkeypatch.setattr(measure, "drive", self.drive)
        monkeypatch.setattr(measure, "require_finite", lambda *_, **__: None)
        monkeypatch.setattr(measure, "score", self.score)
        self.bench = measure.Bench(
            engine=plan.engine,
            model=plan.model,
            gpu=plan.gpu,
            ceiling_mib=CEILING_MIB,
            workload=plan.workload,
            log_dir=folder,
            note=self.said.append,
        )

    @contextmanager
    def launch(self, engine: object, model: object, placement: Placement, **_: Any) -> Iterator[FakeServer]:
        assert all(server.stopped for server in self.started), "never two servers at once"
        self.started.append(FakeServer(placement))
        try:
            yield self.started[-1]
        finally:
            self.started[-1].stop()

    def drive(self, *_: Any, on_progress: Callable[[str], None], **__: Any) -> Any:
        on_progress("request 1")
        error, self.drive_error = self.drive_error, None
        if error is not None:
            raise error
        return planned.measured(self.base, 1.0).requests

    def score(self, *_: Any, **__: Any) -> NextTokens:
        return NextTokens(text="lighthouses", prefix_tokens=160, ids=[[5]], logprobs=[[-0.1]])

    def placement(self, **changes: Any) -> Placement:
        return self.base.model_copy(update={"n_cpu_moe": 8, "hot_k": 4} | changes)

    def measured(self, **changes: Any) -> Measurement:
        outcome = self.bench.measure(self.placement(**changes))
        assert isinstance(outcome, Measurement)
        return outcome


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_a_running_device_can_change_is_measured_in_the_same_server(machine: Machine) -> None:
    with machine.bench.keeping():
        first = machine.measured()
        second = machine.measured(hot_k=3, policy="lru")
        third = machine.measured(rebalance_interval=16)
    (server,) = machine.started
    assert [one.hot_k for one in server.applied] == [3, 4]
    assert [one.reused_server for one in (first, second, third)] == [False, True, True]
    assert second.engagement.hot is not None
    assert second.engagement.hot.slots == 3
    assert "same server, new settings" in machine.said
    assert server.stopped


@pytest.mark.parametrize("change", [{"n_cpu_moe": 7}, {"ubatch": 8}, {"hot_k": 0}, {"fit": True}])
def test_what_is_placed_at_load_gets_a_fresh_server(machine: Machine, change: dict[str, Any]) -> None:
    with machine.bench.keeping():
        machine.measured()
        assert machine.measured(**change).reused_server is False
    assert len(machine.started) == 2


def test_without_keeping_every_measurement_has_a_fresh_server(machine: Machine) -> None:
    outcomes = [machine.measured(), machine.measured(rebalance_interval=16), machine.measured()]
    assert not any(one.reused_server for one in outcomes)
    assert len(machine.started) == 3
    assert all(server.stopped for server in machine.started)


def test_a_server_is_not_kept_beyond_the_search(machine: Machine) -> None:
    with machine.bench.keeping():
        machine.measured()
    assert machine.measured(rebalance_interval=16).reused_server is False
    assert len(machine.started) == 2


def test_a_device_that_refuses_costs_a_restart_and_no_measurement(machine: Machine) -> None:
    with machine.bench.keeping():
        machine.measured()
        machine.started[0].refuses = "the device does not know policy"
        again = machine.measured(policy="lru")
    assert again.reused_server is False
    assert len(machine.started) == 2
    assert any("does not know policy" in line for line in machine.said)


def test_a_failed_request_of_a_reused_server_is_done_again_in_a_fresh_one(machine: Machine) -> None:
    with machine.bench.keeping():
        machine.measured()
        machine.drive_error = RequestFailed("connection broke")
        again = machine.measured(rebalance_interval=16)
    assert again.reused_server is False
    assert len(machine.started) == 2


def test_a_reused_server_above_the_ceiling_is_no_verdict_on_the_placement(machine: Machine) -> None:
    with machine.bench.keeping():
        machine.measured()
        machine.started[0].virtual_peak_mib = CEILING_MIB * 1.1
        assert machine.measured(hot_k=5).reused_server is False


def test_a_reused_server_with_fewer_places_than_asked_for_is_no_verdict_either(machine: Machine) -> None:
    with machine.bench.keeping():
        machine.measured()
        machine.started[0].slots_lost = 1
        again = machine.measured(hot_k=5)
    assert again.reused_server is False
    assert again.engagement.hot is not None
    assert again.engagement.hot.slots == 5


def test_a_server_that_died_meanwhile_is_not_kept(machine: Machine) -> None:
    with machine.bench.keeping():
        machine.measured()
        machine.started[0].dead = True
        machine.started[0].refuses = "the device does not answer"
        assert machine.measured(hot_k=3).reused_server is False


def test_a_device_that_does_not_answer_is_read_from_its_file_and_its_server_ends(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeServer, "hot_stats", lambda self: None)
    with machine.bench.keeping():
        first = machine.measured()
        assert machine.started[0].stopped
        assert machine.measured(hot_k=3).reused_server is False
    assert first.hit_rate == 0.75


def test_a_failure_in_a_fresh_server_is_the_placements_outcome_and_keeps_nothing(machine: Machine) -> None:
    machine.drive_error = RequestFailed("connection broke")
    with machine.bench.keeping():
        assert machine.bench.measure(machine.placement()).kind == "crashed"
        assert machine.started[0].stopped
        assert machine.measured().reused_server is False


def test_ctrl_c_in_a_reused_server_stops_it(machine: Machine) -> None:
    with pytest.raises(KeyboardInterrupt), machine.bench.keeping():
        machine.measured()
        machine.drive_error = KeyboardInterrupt()
        machine.measured(hot_k=3)
    assert [server.stopped for server in machine.started] == [True]


def test_the_search_alone_reuses_servers(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baselines and replicates of a whole run each have a server of their own."""
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr(workflow, "make_bench", lambda plan, note: machine.bench)
    plan = planned.plan(tmp_path, trials=30, replicates=2)
    machine.bench.ceiling_mib = plan.ceiling_mib
    report = workflow.run_plan(plan, NoProgress())
    hot = [trial.outcome for trial in report.trials if trial.arm is None]
    reused = [isinstance(one, Measurement) and one.reused_server for one in hot]
    assert reused.count(True) >= 2
    assert len(hot) == 30
    rest = [trial.outcome for trial in report.trials if trial.arm]
    rest += [replicate.outcome for arm in report.arms for replicate in arm.replicates]
    measured = [one for one in rest if isinstance(one, Measurement)]
    assert len(measured) > 8
    assert {
        arm.name: [one.outcome.next_tokens is not None for one in arm.replicates] for arm in report.arms
    } == {
        "all-cpu": [True, True],
        "layers": [True, False],
        "fit": [True, False],
        "hot": [True, False],
        "hot-2": [True, False],
    }
    assert {arm.kld_to_all_cpu for arm in report.arms} == {0.0}
    assert not any(trial.outcome.next_tokens for trial in report.trials)
    assert not any(one.reused_server for one in measured)
    assert all(server.stopped for server in machine.started)
