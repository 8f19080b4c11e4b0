"""The yardstick's counters, and how it is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from device_rows import SHAPE, frame, measured, options

from bench.device.probe import beside, build_probe, probe_env, read_counters
from hottune.errors import BuildFailedError
from hottune.machine.probe import virtual_gpu
from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.tasks import measure
from hottune.units import MIB

PLACEMENT = Placement(n_cpu_moe=10, hot_k=20, threads=8)
LOG = """\
0.01 I main: exiting
hot: prefill blocks 40 upload GB 3.2 host ms 12.5
hot: hit 0.660 swaps 300 calls 1000 per-call us: submit 20.0 cpu 90.5 wait 5.0 swap 1.5
"""


def test_what_it_prints_when_it_ends_is_the_proof_that_it_was_on() -> None:
    hot = read_counters(LOG, PLACEMENT, SHAPE)
    assert hot is not None
    assert hot.hit_rate == pytest.approx(0.66)
    assert (hot.slots, hot.uploads, hot.uploaded_bytes) == (20, 300, 300 * MIB)
    assert (hot.cache_bytes, hot.stream_buffer_bytes) == (200 * MIB, 200 * MIB)
    assert hot.time_us == {"submit": 20.0, "cold": 90.5, "wait": 5.0, "swap": 1.5}
    assert (hot.stream_blocks, hot.stream_bytes) == (40, 3_200_000_000)


@pytest.mark.parametrize("log", ["", "hot: hit 0.000 swaps 0 calls 0"])
def test_a_log_without_calls_proves_nothing(log: str) -> None:
    assert read_counters(log, PLACEMENT, SHAPE) is None


def test_a_short_line_is_enough() -> None:
    hot = read_counters("hot: hit 0.5 swaps 1 calls 10", PLACEMENT, SHAPE)
    assert hot is not None
    assert hot.time_us == {}


def test_it_is_loaded_in_the_devices_place_with_its_own_variables() -> None:
    env = probe_env(Path("/x/probe.so"), 20)
    assert env == {
        "GGML_BACKEND_PATH": "/x/probe.so",
        "HOT_K": "20",
        "HOT_INTERVAL": "60",
        "HOT_PP": "32",
    }


def test_a_folder_without_ggml_is_refused_before_compiling(tmp_path: Path) -> None:
    source = tmp_path / "probe.cpp"
    source.write_text("int x;")
    with pytest.raises(BuildFailedError, match="libggml"):
        build_probe(source, tmp_path, tmp_path, tmp_path / "out")


class FakeServer:
    """A server whose log ends with what the plug-in prints."""

    base_url, pid, load_s, virtual_peak_mib = "http://127.0.0.1:1", 1, 2.0, 700.0

    def __init__(self, printed: str) -> None:
        self.printed, self.stopped = printed, False

    def hot_stats(self) -> None:
        return None

    def glance(self) -> None:
        return None

    def stop(self) -> None:
        self.stopped = True

    def log_text(self) -> str:
        return self.printed if self.stopped else ""

    def log_tail(self) -> list[str]:
        return []

    def engagement(self) -> object:
        return measured(20).engagement


@pytest.mark.parametrize(("printed", "kind"), [(LOG, "measurement"), ("", "not_engaged")])
def test_a_server_is_measured_with_it_only_if_it_says_so(
    printed: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    @contextmanager
    def launch(engine: object, model: object, placement: Placement, **more: object) -> Iterator[FakeServer]:
        asked.update(more, hot_k=placement.hot_k)
        yield FakeServer(printed)

    monkeypatch.setattr(measure, "launch", launch)
    samples = [one.model_copy(update={"token_ms": [1.0]}) for one in measured(20).requests]
    monkeypatch.setattr(measure, "drive", lambda *_, **__: samples)
    monkeypatch.setattr(measure, "require_finite", lambda *_, **__: None)
    facts = frame(options(tmp_path))
    plain = measure.Bench(facts.engine, facts.model, virtual_gpu(9000), 800, facts.workload, tmp_path)
    outcome = beside(plain, Path("/x/probe.so")).measure(PLACEMENT)
    assert outcome.kind == kind
    assert asked["hot_k"] == 0, "our own device is not loaded"
    assert asked["extra_env"] == probe_env(Path("/x/probe.so"), 20)
    if isinstance(outcome, Measurement):
        assert outcome.hit_rate == pytest.approx(0.66)
