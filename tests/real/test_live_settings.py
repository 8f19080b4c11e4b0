"""A live server turned to other settings by the device's socket: no restart, and the counters show it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hottune_command import require_engine

from hottune.cli.common import cache_dir
from hottune.engine import control
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.launch import launch
from hottune.engine.server import Server
from hottune.machine.probe import virtual_gpu
from hottune.models.resolve import resolve_model
from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.tasks import measure
from hottune.tasks.measure import Bench
from hottune.workload.client import drive
from hottune.workload.workloads import load_workload

pytestmark = pytest.mark.real
CEILING_MIB = 200.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    require_engine()
    options = BuildOptions(backend="cpu")
    engine = find_engine(options, cache_dir=cache_dir())
    assert engine is not None
    model = resolve_model("demo", cache_dir=cache_dir())
    return Bench(
        engine=engine,
        model=model,
        gpu=virtual_gpu(CEILING_MIB),
        ceiling_mib=CEILING_MIB,
        workload=load_workload("chat", scale=0.2),
        log_dir=tmp_path,
    )


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every server that was started, by its process."""
    found: list[int] = []
    real: Callable[..., Any] = measure.launch

    def launch(*arguments: Any, **more: Any) -> Any:
        context = real(*arguments, **more)
        enter = context.__enter__

        class Watched:
            def __enter__(self) -> Server:
                server: Server = enter()
                found.append(server.pid)
                return server

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Watched()

    monkeypatch.setattr(measure, "launch", launch)
    return found


def placement(bench: Bench, **changes: Any) -> Placement:
    base = Placement(n_cpu_moe=bench.model.shape.n_layers, threads=1, context=256)
    return base.model_copy(update={"hot_k": 16} | changes)


def measured(bench: Bench, **changes: Any) -> Measurement:
    outcome = bench.measure(placement(bench, **changes))
    assert isinstance(outcome, Measurement), outcome
    return outcome


def test_what_was_changed_while_it_ran_is_what_a_fresh_server_measures(bench: Bench, pids: list[int]) -> None:
    with bench.keeping():
        first = measured(bench)
        changed = measured(bench, hot_k=24, policy="lru")
        again = measured(bench)
    assert len(set(pids)) == 1
    assert [one.reused_server for one in (first, changed, again)] == [False, True, True]
    fresh = measured(bench, hot_k=24, policy="lru")
    assert len(set(pids)) == 2
    for one, other in ((changed, fresh), (again, first)):
        mine, its = one.engagement.hot, other.engagement.hot
        assert mine is not None
        assert its is not None
        assert (mine.slots, mine.layers, mine.policy) == (its.slots, its.layers, its.policy)
        assert mine.hits + mine.misses == pytest.approx(its.hits + its.misses, rel=0.02)
        assert mine.hit_rate == pytest.approx(its.hit_rate, abs=0.05), "its cache began as empty"
        assert one.vram_peak_mib == pytest.approx(other.vram_peak_mib, rel=0.05)
        assert [sample.text_sha256 for sample in one.requests] == [
            sample.text_sha256 for sample in other.requests
        ]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_every_live_setting_is_in_the_counters_of_the_same_server(bench: Bench) -> None:
    one = placement(bench)
    with launch(
        bench.engine,
        bench.model,
        one,
        gpu=bench.gpu,
        ceiling_mib=CEILING_MIB,
        log_path=bench.log_dir / "server.log",
    ) as server:
        drive(server.base_url, bench.workload)
        pid, before = server.pid, server.hot_stats()
        assert before is not None
        assert (before.slots, before.policy, before.shared_budget) == (16, "lfru", False)
        server.apply(
            one.model_copy(
                update={"hot_k": 9, "policy": "lru", "shared_budget": True, "rebalance_interval": 7}
            )
        )
        after = server.hot_stats()
        assert after is not None
        assert (after.slots, after.policy, after.shared_budget) == (9, "lru", True)
        assert after.hits + after.misses == 0, "counters begin again"
        raw = control.request(server._folder / "hot.sock", {"cmd": "stats"})
        assert (raw["k"], raw["interval"]) == (9, 7)
        assert server.pid == pid
        assert server.alive()
        with pytest.raises(control.ControlError, match="refused"):
            control.request(server._folder / "hot.sock", {"cmd": "set", "interval": 0})
        assert server.alive()
