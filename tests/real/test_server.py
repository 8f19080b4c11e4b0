"""`launch` with the real llama-server and the real device library, on the virtual GPU and without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from hottune.cli.common import cache_dir
from hottune.engine import process
from hottune.engine.argv import child_environment, server_argv, server_env
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.engaged import check_engaged
from hottune.engine.facts import EngineBuild
from hottune.engine.failures import LaunchFailed
from hottune.engine.launch import launch
from hottune.engine.loadlog import parse
from hottune.engine.ports import free_port
from hottune.machine.facts import Gpu
from hottune.machine.probe import virtual_gpu
from hottune.models.resolve import resolve_model
from hottune.models.shape import ModelFile
from hottune.outcomes import Crashed, Engagement, HotStats, NotEngaged, OutOfMemory
from hottune.placement import KvType, LoadMode, Placement, SpecType

pytestmark = pytest.mark.real
PROMPT = "A tired traveller counts the lamps along the harbour and writes their number down."


@dataclass
class Run:
    """What one server did."""

    text: str
    engagement: Engagement
    hot: HotStats | None
    virtual_peak_mib: float | None
    live: HotStats | None = field(default=None)


@dataclass
class Bench:
    build: EngineBuild
    model: ModelFile
    folder: Path

    @property
    def layers(self) -> int:
        return self.model.shape.n_layers

    def placement(self, **changes: Any) -> Placement:
        return Placement(**({"n_cpu_moe": self.layers, "threads": 2, "context": 1024} | changes))

    def launch(self, one: Placement, gpu: Gpu | None, **more: Any) -> Any:
        ceiling_mib = gpu.vram_total_mib if gpu else 0
        log = self.folder / "server.log"
        arguments = {"build": self.build, "model": self.model} | more
        return launch(placement=one, gpu=gpu, ceiling_mib=ceiling_mib, log_path=log, **arguments)

    def run(self, one: Placement, gpu: Gpu | None) -> Run:
        with self.launch(one, gpu) as server:
            text = complete(server.base_url)
            live = server.hot_stats()
            hot = server.stop()
            return Run(text, server.engagement(), hot, server.virtual_peak_mib, live)

    def failure(self, one: Placement, gpu: Gpu | None, **more: Any) -> Any:
        with pytest.raises(LaunchFailed) as failed, self.launch(one, gpu, **more):
            pytest.fail("the server came up")
        return failed.value.outcome


def complete(base_url: str) -> str:
    body = {"prompt": PROMPT, "n_predict": 48, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    answer = httpx.post(f"{base_url}/completion", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200
    return str(answer.json()["content"])


@pytest.fixture(scope="module")
def engine() -> EngineBuild:
    """The build that `hottune run` would use: with the device as its source is now, not an older one."""
    build = find_engine(BuildOptions(), cache_dir=cache_dir())
    if build is None:
        pytest.skip("no finished engine for the present sources in the cache folder: run `hottune build`")
    return build


@pytest.fixture(scope="module")
def demo(engine: EngineBuild) -> ModelFile:
    return resolve_model("demo", cache_dir=cache_dir())


@pytest.fixture
def bench(engine: EngineBuild, demo: ModelFile, tmp_path: Path) -> Bench:
    return Bench(engine, demo, tmp_path)


@pytest.fixture(scope="module")
def needs(engine: EngineBuild, demo: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The demo with no expert and with all experts on a roomy virtual GPU."""
    bench = Bench(engine, demo, tmp_path_factory.mktemp("needs"))
    roomy = virtual_gpu(2048)
    return bench.run(bench.placement(), roomy), bench.run(bench.placement(n_cpu_moe=0), roomy)


def test_every_flag_that_hottune_passes_exists_in_this_build(bench: Bench) -> None:
    helped = subprocess.run([bench.build.llama_server, "--help"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", helped.stdout))
    speculating = [bench.placement(spec_type=kind, spec_ngram=4) for kind in get_args(SpecType)]
    for one in (bench.placement(), bench.placement(fit=True), *speculating):
        for gpu in (None, virtual_gpu(64)):
            argv = server_argv(
                bench.build,
                bench.model.path,
                one,
                shape=bench.model.shape,
                port=1,
                gpu=gpu,
                ceiling_mib=64,
                no_warmup=True,
            )
            flags = {word for word in argv[1:] if re.match(r"--?[a-z]", word)}
            assert flags <= known


def test_without_a_gpu_the_model_is_served_from_host_memory(bench: Bench) -> None:
    run = bench.run(bench.placement(), None)
    assert run.text
    assert run.engagement.gpu_device == ""
    assert run.engagement.vram_model_mib == 0
    assert run.engagement.host_model_mib == pytest.approx(bench.model.size_bytes / 1024**2, rel=0.1)


def test_experts_moved_to_the_virtual_gpu_are_there_and_its_own_peak_confirms_the_log(
    needs: tuple[Run, Run], bench: Bench
) -> None:
    none, everything = needs
    moved = everything.engagement.vram_model_mib - none.engagement.vram_model_mib
    assert moved == pytest.approx(bench.model.shape.expert_bytes / 1024**2, rel=0.02)
    for run in needs:
        found = run.engagement
        assert found.gpu_device == "VGPU0"
        logged = found.vram_model_mib + found.vram_kv_mib + found.vram_compute_mib
        assert run.virtual_peak_mib == pytest.approx(logged, rel=0.05)


def test_the_cache_counts_and_the_greedy_text_stays_the_same(needs: tuple[Run, Run], bench: Bench) -> None:
    one = bench.placement(hot_k=16)
    run = bench.run(one, virtual_gpu(2048))
    assert check_engaged(one, run.hot) is None
    assert run.hot is not None
    assert run.hot.slots == 16
    assert run.hot.hit_rate > 0
    assert run.hot.uploaded_bytes > 0
    assert run.live is not None, "the device answers over its socket while it runs"
    assert 0 < run.live.hits + run.live.misses <= run.hot.hits + run.hot.misses
    assert run.engagement.hot == run.hot
    assert run.text == needs[0].text


def test_without_a_cache_the_device_is_not_there(needs: tuple[Run, Run]) -> None:
    assert needs[0].hot is None
    assert needs[0].live is None


def test_what_fit_chose_is_read_so_exactly_that_it_can_be_repeated_by_hand(
    needs: tuple[Run, Run], bench: Bench
) -> None:
    low, high = (run.virtual_peak_mib or 0 for run in needs)
    gpu = virtual_gpu(round((low + high) / 2))
    run = bench.run(bench.placement(fit=True), gpu)
    fit = run.engagement.fit
    assert fit is not None
    assert fit.overrides
    assert fit.projected_mib is not None
    assert fit.projected_mib <= gpu.vram_total_mib
    assert low < (run.virtual_peak_mib or 0) <= gpu.vram_total_mib

    argv = server_argv(
        bench.build,
        bench.model.path,
        bench.placement(fit=True),
        shape=bench.model.shape,
        port=free_port(),
        gpu=gpu,
        ceiling_mib=gpu.vram_total_mib,
    )
    at = argv.index("-fit")
    argv[at : at + 4] = ["-fit", "off", "-ngl", str(fit.n_gpu_layers), "-ot", ",".join(fit.overrides)]
    env = server_env(
        bench.build,
        bench.placement(),
        shape=bench.model.shape,
        gpu=gpu,
        ceiling_mib=gpu.vram_total_mib,
        stats_path=bench.folder / "by-hand.json",
    )
    child = process.start(argv, env=child_environment(env), log_path=bench.folder / "by-hand.log")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and "model loaded" not in child.log_path.read_text():
            assert child.alive()
            time.sleep(0.1)
    finally:
        child.stop()
    by_hand = parse(child.log_path.read_text()).engagement()
    assert by_hand.vram_model_mib == run.engagement.vram_model_mib
    assert by_hand.host_model_mib == run.engagement.host_model_mib


def test_fit_on_a_gpu_too_small_for_a_single_layer_is_not_engaged(bench: Bench) -> None:
    outcome = bench.failure(bench.placement(fit=True), virtual_gpu(2))
    assert isinstance(outcome, NotEngaged)
    assert "no layer" in outcome.detail


def test_a_ceiling_below_the_dense_part_is_out_of_memory_at_load(
    needs: tuple[Run, Run], bench: Bench
) -> None:
    gpu = virtual_gpu(int(needs[0].engagement.vram_model_mib / 2))
    outcome = bench.failure(bench.placement(), gpu)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.stage == "load"
    assert "virtual GPU out of memory" in outcome.detail


def test_a_ceiling_between_weights_and_buffers_is_out_of_memory_too(
    needs: tuple[Run, Run], bench: Bench
) -> None:
    found = needs[0].engagement
    gpu = virtual_gpu(int(found.vram_model_mib + found.vram_kv_mib + 1))
    assert isinstance(bench.failure(bench.placement(), gpu), OutOfMemory)


@pytest.mark.parametrize("library", ["absent", "no library"])
@pytest.mark.parametrize("gpu", [virtual_gpu(2048), None])
def test_a_library_that_cannot_be_loaded_is_never_measured(
    bench: Bench, library: str, gpu: Gpu | None
) -> None:
    """llama.cpp only logs that it could not load it, and would serve without."""
    path = bench.folder / "libggml-hot.so"
    if library == "no library":
        path.write_bytes(b"not a shared object")
    build = bench.build.model_copy(update={"device_library": path})
    outcome = bench.failure(bench.placement(hot_k=16), gpu, build=build)
    assert isinstance(outcome, NotEngaged)
    assert "libggml-hot.so" in outcome.detail


def test_a_truncated_model_crashes_with_its_reason(bench: Bench) -> None:
    cut = bench.folder / "cut.gguf"
    with bench.model.path.open("rb") as whole:
        cut.write_bytes(whole.read(bench.model.size_bytes // 2))
    outcome = bench.failure(bench.placement(), None, model=bench.model.model_copy(update={"path": cut}))
    assert isinstance(outcome, Crashed)
    assert "corrupted or incomplete" in outcome.detail


def test_a_quantized_cache_and_a_mapped_file_are_served_as_asked(bench: Bench) -> None:
    one = bench.placement(kv_type_k=KvType.Q8_0, kv_type_v=KvType.Q8_0, load_mode=LoadMode.MMAP)
    run = bench.run(one, virtual_gpu(2048))
    assert run.text
    assert "load_mode = mmap" in (bench.folder / "server.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_kill_9_of_the_tool_leaves_no_llama_server(bench: Bench) -> None:
    script = bench.folder / "tool.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time
            from pathlib import Path
            from hottune.engine.facts import EngineBuild
            from hottune.engine.launch import launch
            from hottune.models.shape import ModelFile
            from hottune.placement import Placement
            build = EngineBuild.model_validate_json({bench.build.model_dump_json()!r})
            model = ModelFile.model_validate_json({bench.model.model_dump_json()!r})
            one = Placement(n_cpu_moe=0, threads=2, context=512)
            log = Path({str(bench.folder / "tool.log")!r})
            with launch(build, model, one, gpu=None, ceiling_mib=0, log_path=log) as server:
                print(server.pid, flush=True)
                time.sleep(600)
            """
        )
    )
    tool = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert tool.stdout is not None
        pid = int(tool.stdout.readline())
        status = Path(f"/proc/{pid}/stat")
        assert "llama-server" in status.read_text()
        tool.kill()
        tool.wait()
        deadline = time.monotonic() + 5
        while status.exists() and time.monotonic() < deadline and " Z " not in status.read_text():
            time.sleep(0.02)
        assert not status.exists() or " Z " in status.read_text()
    finally:
        tool.kill()
        if tool.stdout is not None:
            tool.stdout.close()
