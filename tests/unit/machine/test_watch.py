"""What a watch sees around a server, with NVML's stand-in and real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import fake_nvml as fake
import psutil
import pytest

from hottune.machine import watch as watching
from hottune.machine.facts import Gpu
from hottune.machine.probe import virtual_gpu
from hottune.machine.watch import MachineWatch

MIB = 1024**2
GPU = Gpu(index=0, name="card", vram_total_mib=24 * 1024, vram_free_mib=23 * 1024)
POWER, HOT = 0x4, 0x40


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake.FakeGpu:
    gpu = fake.FakeGpu()
    monkeypatch.setitem(sys.modules, "pynvml", fake.fake_nvml([gpu]))
    return gpu


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert true()


def look(watch: MachineWatch, times: int = 3) -> None:
    now = watch.seen().samples
    until(lambda: watch.seen().samples >= now + times)


def test_throttling_during_the_run_is_seen_with_its_share(card: fake.FakeGpu) -> None:
    with MachineWatch(GPU, interval_s=0.002) as watch:
        watch.begin(os.getpid())
        look(watch)
        assert watch.seen().throttled == {}
        card.throttle = POWER | HOT
        look(watch)
        card.throttle = 0
        look(watch)
    shares = watch.seen().throttled
    assert set(shares) == {"power limit", "too hot (hardware)"}
    assert 0 < shares["power limit"] < 1


def test_the_link_is_the_best_and_the_temperature_the_highest_that_were_seen(card: fake.FakeGpu) -> None:
    with MachineWatch(GPU, interval_s=0.002) as watch:
        watch.begin(os.getpid())
        for link, celsius in (((1, 8), 40), ((4, 8), 71), ((1, 8), 50)):
            card.link, card.temperature = link, celsius
            look(watch)
    seen = watch.seen()
    assert (seen.pcie_generation, seen.pcie_width, seen.temperature_max_c) == (4, 8, 71)
    assert seen.power_w == 70
    assert seen.sm_clock_mhz == 1200


def test_vram_that_others_take_meanwhile_is_told_from_the_servers(card: fake.FakeGpu) -> None:
    me = os.getpid()
    card.processes = [(me, 100 * MIB), (1, 300 * MIB)]
    with MachineWatch(GPU, interval_s=0.002) as watch:
        watch.begin(me)
        look(watch)
        card.processes = [(me, 9000 * MIB), (1, 300 * MIB)]
        look(watch)
        assert watch.seen().other_vram_growth_mib == 0
        card.processes = [(me, 9000 * MIB), (1, 300 * MIB), (2, 700 * MIB)]
        look(watch)
        card.processes = [(me, 9000 * MIB)]
        look(watch)
    assert watch.seen().other_vram_growth_mib == 700


def test_where_the_driver_hides_the_server_nothing_is_said_about_others(card: fake.FakeGpu) -> None:
    card.processes = [(1, 300 * MIB)]
    with MachineWatch(GPU, interval_s=0.002) as watch:
        watch.begin(os.getpid())
        look(watch)
    assert watch.seen().other_vram_growth_mib is None


def test_a_new_begin_forgets_what_was_before(card: fake.FakeGpu) -> None:
    card.throttle = POWER
    with MachineWatch(GPU, interval_s=0.002) as watch:
        watch.begin(os.getpid())
        look(watch)
        assert watch.seen().throttled
        card.throttle = 0
        watch.begin(os.getpid())
        look(watch)
    assert watch.seen().throttled == {}


def test_a_look_that_was_under_way_at_a_new_begin_does_not_count(
    card: fake.FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = MachineWatch(GPU)
    watch.begin(os.getpid())
    slow = watching.ask_state

    def asked(module: object, index: int) -> object:
        state = slow(module, index)
        watch.begin(os.getpid())
        return state

    monkeypatch.setattr(watching, "ask_state", asked)
    watch._look(sys.modules["pynvml"])
    assert watch.seen().samples == 0


def test_a_driver_that_breaks_ends_the_samples_not_the_run(
    card: fake.FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(index: int) -> object:
        raise RuntimeError("driver gone")

    with MachineWatch(GPU, interval_s=0.002) as watch:
        watch.begin(os.getpid())
        look(watch)
        monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetHandleByIndex", broken)
        until(lambda: watch._thread is not None and not watch._thread.is_alive())
    assert watch.seen().samples >= 3


class Clock:
    """A processor of four cores and the times that are counted on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.busy = self.server = self.own = self.swap = 0.0
        monkeypatch.setattr(watching.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watching, "_busy_s", lambda: self.busy)
        monkeypatch.setattr(watching, "_ours_s", lambda pid: self.server + self.own)
        fakes = {
            "cpu_count": lambda: 4,
            "swap_memory": lambda: SimpleNamespace(used=self.swap * MIB),
        }
        monkeypatch.setattr(watching, "psutil", SimpleNamespace(**fakes))


def test_cpu_time_of_others_is_what_is_left_of_the_busy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.busy, clock.server, clock.swap = 1000.0, 50.0, 300.0
    watch = MachineWatch(virtual_gpu(64))
    watch.begin(7)
    clock.now, clock.busy, clock.server, clock.own, clock.swap = 10.0, 1036.0, 79.0, 1.0, 340.0
    seen = watch.seen()
    assert seen.other_cpu_percent == pytest.approx(100 * 6 / 40)  # 36 s busy, 30 ours, of 4 x 10 s
    assert seen.swap_growth_mib == 40


def test_a_system_that_counts_no_busy_time_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = MachineWatch(virtual_gpu(64))
    watch.begin(7)
    clock.now, clock.server = 10.0, 30.0
    assert watch.seen().other_cpu_percent is None


def test_the_servers_own_cpu_time_counts_as_ours_and_as_busy() -> None:
    loop = "while True: pass"
    busy_before = watching._busy_s()
    with subprocess.Popen([sys.executable, "-c", loop]) as worker:
        try:
            until(lambda: sum(psutil.Process(worker.pid).cpu_times()[:2]) > 0.3)
            without = sum(os.times()[:2])
            assert watching._ours_s(worker.pid) >= without + 0.3
            busy = watching._busy_s() - busy_before
        finally:
            worker.kill()
    assert watching._ours_s(worker.pid) < without + 0.3, "a server that is gone counts no more"
    if watching._busy_s() > 0:  # some sandboxes count nothing
        assert busy > 0.2
