"""`launch` against programs that pretend to be llama-server: every way to fail, in seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import observed_logs as observed
import pytest
from engine_builder import REAL_GPU, VIRTUAL_GPU, engine_build, model_file, placement

from hottune.engine import control
from hottune.engine import launch as launching
from hottune.engine.control import ControlError
from hottune.engine.engaged import check_engaged, check_loaded
from hottune.engine.failures import LaunchFailed
from hottune.engine.launch import launch
from hottune.engine.loadlog import parse
from hottune.engine.ports import free_port
from hottune.errors import PortTakenError
from hottune.machine.facts import Gpu
from hottune.outcomes import Crashed, HotStats, NotEngaged, OutOfMemory, TimedOut
from hottune.placement import Placement

#: Answers /health with 503 until `READY_AFTER` seconds, then 200; on SIGTERM writes the device's counters.
FAKE = """\
#!{python}
import http.server, json, os, signal, sys, threading, time
LOG, READY_AFTER, STATS, LATE_S = {log!r}, {ready_after!r}, {stats!r}, {late_s!r}
threading.Timer(LATE_S, print, [LOG], dict(flush=True)).start() if LATE_S else print(LOG, flush=True)
began = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - began >= READY_AFTER else 503)
        self.end_headers()
    def log_message(self, *rest): pass
def stop(*rest):
    if STATS is not None:
        open(os.environ["GGML_HOT_STATS"], "w").write(json.dumps(STATS))
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
COUNTERS: dict[str, Any] = {
    "version": 1,
    "enabled": True,
    "slots": 8,
    "layers": 4,
    "hits": 3,
    "misses": 1,
    "uploads": 1,
    "uploaded_bytes": 1,
    "cache_bytes": 1,
    "vgpu": {"peak_bytes": 5 * 1024**2},
}


class Bench:
    """Launches a given program as llama-server."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.library = tmp_path / "libggml-hot.so"
        self.library.touch()
        self.model = model_file(tmp_path / "model.gguf")
        self.log_path = tmp_path / "server.log"

    def program(self, code: str) -> Path:
        path = self.folder / "llama-server"
        path.write_text(textwrap.dedent(code))
        path.chmod(0o755)
        return path

    def healthy(
        self,
        log: str,
        *,
        ready_after: float = 0.0,
        stats: dict[str, Any] | None = None,
        late_s: float = 0.0,
    ) -> Path:
        facts = {"log": log, "ready_after": ready_after, "stats": stats, "late_s": late_s}
        return self.program(FAKE.format(python=sys.executable, **facts))

    def dying(self, log: str, exit_code: int) -> Path:
        return self.program(f"#!{sys.executable}\nprint({log!r})\nraise SystemExit({exit_code})\n")

    def launch(self, program: Path, one: Placement | None = None, gpu: Gpu | None = None, **more: Any) -> Any:
        build = engine_build(llama_server=program, device_library=self.library)
        return launch(
            build,
            self.model,
            one or placement(),
            gpu=gpu,
            ceiling_mib=64,
            log_path=self.log_path,
            **({"load_timeout_s": 20} | more),
        )

    def failure(self, *arguments: Any, **more: Any) -> Any:
        with pytest.raises(LaunchFailed) as failed, self.launch(*arguments, **more):
            pytest.fail("the server came up")
        return failed.value.outcome


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_log_that_lags_behind_the_servers_health_is_waited_for(bench: Bench) -> None:
    with bench.launch(bench.healthy(observed.HOT, late_s=1.0), gpu=VIRTUAL_GPU) as server:
        assert server.engagement().gpu_device == "VGPU0"


def test_a_log_that_is_complete_is_judged_at_once(bench: Bench) -> None:
    began = time.monotonic()
    assert (
        bench.failure(bench.healthy("srv  llama_server: model loaded"), gpu=VIRTUAL_GPU).kind == "not_engaged"
    )
    assert time.monotonic() - began < launching._LOG_LAG_S


def test_a_server_is_up_inside_the_context_and_gone_after_it(bench: Bench) -> None:
    with bench.launch(bench.healthy(observed.HOT, ready_after=0.3), gpu=VIRTUAL_GPU) as server:
        assert server.alive()
        assert server.base_url == f"http://127.0.0.1:{server.port}"
        assert server.load_s >= 0.3
        assert server.engagement().gpu_device == "VGPU0"
        pid = server.pid
    assert gone(pid)
    assert "model loaded" in bench.log_path.read_text(), "the log stays"


def test_another_plug_in_is_loaded_in_the_devices_place_by_its_variables(bench: Bench) -> None:
    other = {"GGML_BACKEND_PATH": "/x/other.so", "OTHER_K": "4"}
    with bench.launch(bench.healthy(observed.HOT), gpu=VIRTUAL_GPU, extra_env=other) as server:
        assert {name: server.env[name] for name in other} == other


def test_the_counters_written_at_the_end_come_back_from_stop(bench: Bench) -> None:
    hot = placement(hot_k=8)
    with bench.launch(bench.healthy(observed.HOT, stats=COUNTERS), hot, VIRTUAL_GPU) as server:
        assert server.engagement().hot is None
        stats = server.stop()
        assert stats is not None
        assert stats.hit_rate == 0.75
        assert server.stop() == stats
        assert server.virtual_peak_mib == 5
        assert server.engagement().hot == stats
        assert server.hot_stats() == stats


def test_a_running_server_turns_to_another_placement_through_the_devices_socket(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []

    def answer(path: Path, what: dict[str, object], **_: object) -> dict[str, object]:
        told.append(what)
        return COUNTERS | {"ok": True}

    monkeypatch.setattr(control, "request", answer)
    one = placement(hot_k=8)
    with bench.launch(bench.healthy(observed.HOT), one, VIRTUAL_GPU) as server:
        server.apply(one.model_copy(update={"hot_k": 4}))
        server.apply(one.model_copy(update={"hot_k": 4, "policy": "lru"}))
        assert told == [
            {"cmd": "set", "k": 0},
            {"cmd": "set", "k": 4},
            {"cmd": "reset"},
            {"cmd": "set", "k": 0},
            {"cmd": "set", "k": 4, "policy": "lru"},
            {"cmd": "reset"},
        ]
        assert server.engagement().hot is None, (
            "what was counted before the change is not the new placement's"
        )
        hot = server.hot_stats()
        assert hot is not None
        assert server.engagement().hot == hot
        assert server.virtual_peak_mib == 5


@pytest.mark.parametrize("change", [{"hot_k": 0}, {"n_cpu_moe": 2}, {"fit": True}, {"ubatch": 64}])
def test_a_change_that_needs_a_restart_is_refused(bench: Bench, change: dict[str, int]) -> None:
    one = placement(hot_k=8)
    with (
        bench.launch(bench.healthy(observed.HOT), one, VIRTUAL_GPU) as server,
        pytest.raises(ControlError, match="needs a restart"),
    ):
        server.apply(one.model_copy(update=change))


def test_a_profile_is_copied_so_that_the_device_cannot_change_it(bench: Bench) -> None:
    profile = bench.folder / "uses.json"
    profile.write_text("{}")
    with bench.launch(
        bench.healthy(observed.HOT), placement(hot_k=8, hot_profile=profile), VIRTUAL_GPU
    ) as server:
        copied = Path(server.env["GGML_HOT_PROFILE"])
        assert copied != profile
        assert copied.read_text() == "{}"
    assert profile.exists()


def test_a_profile_that_is_not_there_is_not_engaged(bench: Bench) -> None:
    one = placement(hot_k=8, hot_profile=bench.folder / "none.json")
    outcome = bench.failure(bench.healthy(observed.HOT), one, VIRTUAL_GPU)
    assert isinstance(outcome, NotEngaged)
    assert "none.json" in outcome.detail


def test_an_exception_inside_the_context_stops_the_server_too(bench: Bench) -> None:
    pid = 0
    with pytest.raises(KeyboardInterrupt), bench.launch(bench.healthy("")) as server:
        pid = server.pid
        raise KeyboardInterrupt
    assert gone(pid)


def test_nothing_is_left_in_the_temporary_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench.folder / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with bench.launch(bench.healthy("")):
        (private,) = folder.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []


def test_exhausted_vram_at_load_is_an_outcome_with_the_log_that_shows_it(bench: Bench) -> None:
    outcome = bench.failure(bench.dying(observed.CUDA_OUT_OF_MEMORY, 1), gpu=REAL_GPU)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.stage == "load"
    assert "cudaMalloc failed" in outcome.detail
    assert any("unable to allocate" in line for line in outcome.log_tail)


def test_a_server_that_dies_of_something_else_crashed(bench: Bench) -> None:
    outcome = bench.failure(bench.dying(observed.TRUNCATED_MODEL, 1))
    assert isinstance(outcome, Crashed)
    assert outcome.exit_code == 1
    assert "corrupted or incomplete" in outcome.detail


def test_a_program_that_prints_garbage_and_dies_crashed(bench: Bench) -> None:
    script = f"#!{sys.executable}\nimport os\nos.write(1, bytes(range(256)) * 20)\nos.abort()\n"
    outcome = bench.failure(bench.program(script))
    assert isinstance(outcome, Crashed)
    assert outcome.exit_code == -signal.SIGABRT


def test_a_program_that_cannot_be_run_crashed(bench: Bench) -> None:
    outcome = bench.failure(bench.folder / "absent")
    assert isinstance(outcome, Crashed)
    assert "could not be started" in outcome.detail


@pytest.mark.parametrize("never", ["answers 503", "is silent"])
def test_a_server_that_never_gets_healthy_times_out_and_is_gone(bench: Bench, never: str) -> None:
    if never == "answers 503":
        program = bench.healthy(observed.HOT[:400], ready_after=1e9)
    else:
        program = bench.program(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    began = time.monotonic()
    outcome = bench.failure(program, load_timeout_s=0.6)
    assert isinstance(outcome, TimedOut)
    assert (outcome.stage, outcome.limit_s) == ("load", 0.6)
    assert time.monotonic() - began < 5


def test_progress_tells_what_the_server_does_and_only_when_it_changes(bench: Bench) -> None:
    told: list[str] = []
    log = observed.HOT[: observed.HOT.index("0.00.605")]
    with bench.launch(bench.healthy(log, ready_after=0.5), gpu=VIRTUAL_GPU, on_progress=told.append):
        pass
    assert told[-1] == "allocating KV cache and buffers"
    assert len(told) == len(set(told))


def test_a_taken_port_is_an_error_before_anything_starts(bench: Bench) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(taken)), bench.launch(bench.healthy(""), port=taken):
            pytest.fail("the server came up")
    assert not bench.log_path.exists()


def test_a_port_lost_to_another_at_the_last_moment_is_the_same_error(bench: Bench) -> None:
    log = "0.00.003.937 E srv  start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18098"
    with pytest.raises(PortTakenError), bench.launch(bench.dying(log, 1)):
        pytest.fail("the server came up")


def test_a_free_asked_for_port_is_used(bench: Bench) -> None:
    port = free_port()
    with bench.launch(bench.healthy(""), port=port) as server:
        assert server.port == port


@pytest.mark.parametrize("one", [placement(hot_k=8), placement(hot_k=0)])
def test_a_hidden_device_library_is_never_measured(bench: Bench, one: Placement) -> None:
    bench.library.unlink()
    outcome = bench.failure(bench.healthy(observed.HOT), one, VIRTUAL_GPU)
    assert isinstance(outcome, NotEngaged)
    assert "libggml-hot.so" in outcome.detail


def test_a_real_gpu_without_a_cache_does_not_need_the_library(bench: Bench) -> None:
    bench.library.unlink()
    with bench.launch(bench.healthy(observed.CUDA_LOADED), gpu=REAL_GPU) as server:
        assert "GGML_BACKEND_PATH" not in server.env


def test_a_server_that_came_up_without_the_asked_for_device_is_not_engaged(bench: Bench) -> None:
    log = observed.HOT.replace("ggml_hot: device ready", "nothing")
    outcome = bench.failure(bench.healthy(log), placement(hot_k=8), VIRTUAL_GPU)
    assert isinstance(outcome, NotEngaged)
    assert "hot-expert device was not loaded" in outcome.detail
    assert outcome.log_tail


def test_a_request_that_killed_the_server_is_diagnosed_from_its_log(bench: Bench) -> None:
    with bench.launch(bench.healthy(observed.CUDA_LOADED), gpu=REAL_GPU) as server:
        with bench.log_path.open("a") as log:
            log.write(observed.CUDA_POOL_OUT_OF_MEMORY)
        os.kill(server.pid, signal.SIGABRT)
        outcome = server.failure("first_batch")
    assert isinstance(outcome, OutOfMemory)
    assert outcome.stage == "first_batch"


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_kill_9_of_the_whole_tool_takes_the_server_along(bench: Bench, tmp_path: Path) -> None:
    program = bench.healthy("")
    script = tmp_path / "tool.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from pathlib import Path
            from engine_builder import engine_build, model_file, placement
            from hottune.engine.launch import launch
            folder = Path({str(tmp_path)!r})
            build = engine_build(llama_server=Path({str(program)!r}))
            with launch(build, model_file(folder / "m.gguf"), placement(), gpu=None, ceiling_mib=0,
                        log_path=folder / "x.log", load_timeout_s=20) as server:
                print(server.pid, flush=True)
                time.sleep(600)
            """
        )
    )
    tool = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert tool.stdout is not None
        pid = int(tool.stdout.readline())
        assert not gone(pid)
        tool.kill()
        tool.wait()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and _runs(pid):
            time.sleep(0.02)
        assert not _runs(pid)
    finally:
        tool.kill()
        if tool.stdout is not None:
            tool.stdout.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_bigger_model_gets_more_time_to_load(bench: Bench) -> None:
    small = bench.model.model_copy(update={"size_bytes": 0})
    large = bench.model.model_copy(update={"size_bytes": 70 * 1024**3})
    assert launching._load_limit_s(small) == 120
    assert launching._load_limit_s(large) > 1500


# --- what the load log must prove -----------------------------------------------------------------------


READY = "\n0.00.001.000 I ggml_hot: device ready: K=8 interval=60 bypass=1 cache device=VGPU0\n"
FIT_HOT, FIT_ALL_HOT = observed.FIT_PARTLY + READY, observed.FIT_ALL + READY
FIT_ALL_OF_ANOTHER = observed.FIT_ALL.replace("offloaded 5/5", "offloaded 2/5")
SPECULATING = "\n0.00.220.974 I srv    load_model: speculative decoding context initialized\n"


@pytest.mark.parametrize(
    ("log", "one", "gpu"),
    [
        (observed.HOT, placement(hot_k=8), VIRTUAL_GPU),
        (observed.HOT, placement(), VIRTUAL_GPU),
        (observed.CUDA_LOADED, placement(), REAL_GPU),
        (observed.FIT_PARTLY, placement(fit=True), VIRTUAL_GPU),
        (observed.FIT_ALL, placement(fit=True), VIRTUAL_GPU),
        ("", placement(), None),
        (FIT_HOT, placement(fit=True, hot_k=8), VIRTUAL_GPU),
        (observed.HOT + SPECULATING, placement(spec_type="ngram-mod"), VIRTUAL_GPU),
    ],
)
def test_what_took_effect_is_engaged(log: str, one: Placement, gpu: Gpu | None) -> None:
    assert check_loaded(parse(log), one, gpu) is None


@pytest.mark.parametrize(
    ("log", "one", "gpu", "detail"),
    [
        (observed.LIBRARY_NOT_LOADED, placement(hot_k=8), VIRTUAL_GPU, "failed to load /nope.so"),
        ("", placement(), REAL_GPU, "found no GPU"),
        (observed.CUDA_LOADED, placement(), VIRTUAL_GPU, "CUDA0 is in use"),
        (observed.HOT, placement(), REAL_GPU, "VGPU0 is in use"),
        (observed.CUDA_LOADED, placement(hot_k=8), REAL_GPU, "device ready"),
        (observed.LIBRARY_NOT_LOADED, placement(hot_k=8), None, "failed to load /nope.so"),
        (observed.FIT_GAVE_UP, placement(fit=True), VIRTUAL_GPU, "already set by user"),
        (observed.HOT, placement(fit=True), VIRTUAL_GPU, "no line of fit"),
        (FIT_ALL_OF_ANOTHER, placement(fit=True), VIRTUAL_GPU, "2 of 5 layers"),
        (
            observed.FIT_TIGHT.replace("offloaded 1/5", "offloaded 0/5"),
            placement(fit=True),
            VIRTUAL_GPU,
            "no layer",
        ),
        (observed.FIT_PARTLY, placement(fit=True, hot_k=8), VIRTUAL_GPU, "device ready"),
        (FIT_ALL_HOT, placement(fit=True, hot_k=8), VIRTUAL_GPU, "nothing to cache"),
        (observed.HOT, placement(spec_type="ngram-mod"), VIRTUAL_GPU, "speculative decoding (ngram-mod)"),
    ],
)
def test_what_did_not_take_effect_is_named(log: str, one: Placement, gpu: Gpu | None, detail: str) -> None:
    refused = check_loaded(parse(log), one, gpu)
    assert refused is not None
    assert detail in refused.detail


def stats(**changes: int) -> HotStats:
    counters = {"slots": 8, "layers": 4, "hits": 5, "misses": 5, "uploads": 1}
    return HotStats(**(counters | {"uploaded_bytes": 1, "cache_bytes": 1} | changes))


def test_a_cache_that_counted_is_engaged_even_with_fewer_places_than_asked_for() -> None:
    assert check_engaged(placement(hot_k=8), stats(slots=3)) is None
    assert check_engaged(placement(hot_k=8), stats(hits=0)) is None, "no hit yet, but it was asked"


def test_a_cache_with_still_counters_no_places_or_no_statistics_is_not_engaged() -> None:
    for one in (stats(hits=0, misses=0), stats(slots=0), None):
        assert check_engaged(placement(hot_k=8), one) is not None


def test_an_arm_without_a_cache_needs_no_counters() -> None:
    assert check_engaged(placement(hot_k=0), None) is None
    assert check_engaged(placement(fit=True), None) is None


def test_a_cache_beside_fit_needs_its_counters_too() -> None:
    assert check_engaged(placement(hot_k=8, fit=True), stats()) is None
    for one in (stats(hits=0, misses=0), stats(slots=0), None):
        assert check_engaged(placement(hot_k=8, fit=True), one) is not None
