"""llama-server unloads its model when idle: the cache goes with it and comes back, never stale."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from hottune_command import require_engine

from hottune.cli.common import cache_dir
from hottune.engine import control, process
from hottune.engine.argv import child_environment, server_argv, server_env
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.ports import free_port
from hottune.machine.probe import virtual_gpu
from hottune.models.resolve import resolve_model
from hottune.placement import Placement

pytestmark = pytest.mark.real
CEILING_MIB = 200.0
LIMIT_S = 60


def wait_for(what: str, condition: object) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if callable(condition) and condition():
            return
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {LIMIT_S} s")


def test_the_cache_sleeps_and_wakes_with_the_model(tmp_path: Path) -> None:
    require_engine()
    options = BuildOptions(backend="cpu")
    engine = find_engine(options, cache_dir=cache_dir())
    assert engine is not None
    model = resolve_model("demo", cache_dir=cache_dir())
    gpu = virtual_gpu(CEILING_MIB)
    placement = Placement(n_cpu_moe=model.shape.n_layers, hot_k=16, threads=1, context=512)
    port = free_port()
    argv = server_argv(
        engine, model.path, placement, shape=model.shape, port=port, gpu=gpu, ceiling_mib=CEILING_MIB
    )
    socket_path = tmp_path / "hot.sock"
    env = server_env(
        engine,
        placement,
        shape=model.shape,
        gpu=gpu,
        ceiling_mib=CEILING_MIB,
        stats_path=tmp_path / "stats.json",
        socket_path=socket_path,
    )
    env["GGML_HOT_PROFILE"] = str(tmp_path / "profile.json")
    child = process.start(
        [*argv, "--sleep-idle-seconds", "1"], env=child_environment(env), log_path=tmp_path / "log"
    )
    base = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        try:
            return httpx.get(f"{base}/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def text() -> str:
        body: dict[str, object] = {"prompt": "The lamps along the harbour", "n_predict": 60}
        body |= {"temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{base}/completion", json=body, timeout=LIMIT_S, trust_env=False)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["content"])

    try:
        wait_for("health", healthy)
        first = text()
        before = control.request(socket_path, {"cmd": "stats"})
        assert before["hits"] > 0
        wait_for("sleep: the socket goes with the last context", lambda: not socket_path.exists())
        # what the cache took is given back
        asleep = control.read_file(tmp_path / "stats.json")
        assert asleep is not None
        assert (tmp_path / "profile.json").is_file(), "what was learnt is kept"
        assert text() == first, "awake again, and not from old copies"
        after = control.request(socket_path, {"cmd": "stats"})
        assert after["hits"] > 0
        choices = [one["hits"] + one["misses"] for one in (before, after)]
        assert choices[1] <= choices[0], "a cache that begins anew"
        assert after["layers"] == before["layers"]
    finally:
        child.stop()
