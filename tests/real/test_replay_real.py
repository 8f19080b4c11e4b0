"""Replay against reality: the hit rates of the device's own counters, from the routing that it recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hottune_command import require_engine

from hottune.cli.common import cache_dir
from hottune.engine import control
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.launch import launch
from hottune.engine.replay_library import provide_replay_library
from hottune.machine.probe import virtual_gpu
from hottune.models.resolve import resolve_model
from hottune.placement import Placement, Policy
from hottune.routing.replay import Replay, ReplaySettings, Routing
from hottune.routing.trace import read_trace
from hottune.workload.client import drive
from hottune.workload.workloads import load_workload

pytestmark = pytest.mark.real
CEILING_MIB = 200.0
CACHES: tuple[tuple[Policy, int], ...] = (
    ("lru", 8),
    ("lfru", 16),
    ("window", 8),
    ("lru", 16),
    ("lfru", 8),
    ("window", 16),
)
POINT = 0.01


def test_the_replay_predicts_the_devices_own_hit_rate(tmp_path: Path) -> None:
    require_engine()
    options = BuildOptions(backend="cpu")
    engine = find_engine(options, cache_dir=cache_dir())
    assert engine is not None
    model = resolve_model("demo", cache_dir=cache_dir())
    n_layers, workload = model.shape.n_layers, load_workload("chat", scale=0.3)
    # another policy each time, so that it begins with nothing counted
    base = Placement(n_cpu_moe=n_layers, threads=1, context=512, hot_k=4, policy="static")
    library = provide_replay_library(cache_dir())
    with launch(
        engine,
        model,
        base,
        gpu=virtual_gpu(CEILING_MIB),
        ceiling_mib=CEILING_MIB,
        log_path=tmp_path / "server.log",
    ) as server:
        drive(server.base_url, workload)
        for policy, slots in CACHES:
            server.apply(base.model_copy(update={"policy": policy, "hot_k": slots}))
            socket, file = server._folder / "hot.sock", tmp_path / f"{policy}-{slots}.hottrace"
            control.request(socket, {"cmd": "set", "fetch": 0})  # how many are fetched, the clock decides
            control.start_trace(socket, file)
            drive(server.base_url, workload)
            control.stop_trace(socket)
            counted = control.request(socket, {"cmd": "stats"})["layer"]
            routing = Routing.from_trace(read_trace(file))
            replay = Replay(library, routing, expert_bytes=[model.shape.one_expert_bytes] * n_layers)
            said = replay.run(ReplaySettings(policy=policy, slots=slots, slots_from_start=True))
            by_name = {layer.name: layer for layer in said.layers}
            hits = sum(layer["hits"] for layer in counted)
            choices = sum(layer["hits"] + layer["misses"] for layer in counted)
            print(
                f"{policy} {slots}: device {100 * hits / choices:.2f} %, replay {100 * said.hit_rate:.2f} %, "
                f"{said.tokens} tokens, uploads {sum(one['uploads'] for one in counted)} / {said.uploads}"
            )
            assert len(by_name) == len(counted) == n_layers
            assert said.tokens > 100
            for layer in counted:
                mine, its = by_name[layer["name"]], layer["hits"] + layer["misses"]
                last = layer["name"] == routing.layers[-1].name  # also sees the end of every prompt
                assert mine.hits + mine.misses == pytest.approx(its, rel=0.1 if last else 0)
                assert mine.hits / (mine.hits + mine.misses) == pytest.approx(
                    layer["hits"] / its, abs=3 * POINT
                )
            assert said.hit_rate == pytest.approx(hits / choices, abs=POINT)
