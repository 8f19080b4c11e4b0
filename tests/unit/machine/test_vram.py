from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import fake_nvml as fake
import pytest

from hottune.machine.facts import Gpu
from hottune.machine.probe import virtual_gpu
from hottune.machine.vram import VramSampler

MIB = 1024**2
GPU = Gpu(index=0, name="NVIDIA Test 24G", vram_total_mib=24 * 1024, vram_free_mib=23 * 1024)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake.FakeGpu:
    gpu = fake.FakeGpu()
    monkeypatch.setitem(sys.modules, "pynvml", fake.fake_nvml([gpu]))
    return gpu


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert true()


def sampled(sampler: VramSampler) -> None:
    """Let at least one whole sample pass from here."""
    now = sampler.samples
    wait_until(lambda: sampler.samples >= now + 2)


def test_the_peak_is_the_processs_highest_use_not_its_last(card: fake.FakeGpu) -> None:
    with VramSampler(GPU, interval_s=0.002) as sampler:
        sampler.watch(os.getpid())
        for used in (100, 700, 300):
            card.processes = [(1, 9000 * MIB), (os.getpid(), used * MIB)]
            sampled(sampler)
    assert sampler.peak_mib == 700
    assert sampler.last_mib == 300
    assert sampler.source == "process"


def test_before_a_sample_nothing_is_known_of_its_use() -> None:
    assert VramSampler(GPU).last_mib is None


@pytest.mark.parametrize("hidden", [False, True])
def test_a_server_that_goes_on_is_sampled_anew_from_the_same_baseline(
    card: fake.FakeGpu, hidden: bool
) -> None:
    with VramSampler(GPU, interval_s=0.002) as sampler:
        sampler.watch(os.getpid())
        for used in (700, 300):
            card.processes = [] if hidden else [(os.getpid(), used * MIB)]
            card.used = (1024 + used) * MIB
            sampled(sampler)
            if used == 700:
                assert sampler.peak_mib == 700
        assert sampler.last_mib == 300, "for whoever watches: not the peak, and without what was there before"
        sampler.begin_again()
        sampled(sampler)
        assert sampler.peak_mib == 300
        assert sampler.source == ("device-change" if hidden else "process")


def test_children_of_the_server_count_with_it(card: fake.FakeGpu) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        card.processes = [(os.getpid(), 100 * MIB), (child.pid, 50 * MIB)]
        with VramSampler(GPU, os.getpid(), interval_s=0.002) as sampler:
            sampled(sampler)
        assert sampler.peak_mib == 150
    finally:
        child.communicate(b"\n")


@pytest.mark.parametrize("hidden", [[], [(1, 500 * MIB)], "use-unknown"])
def test_where_the_process_is_hidden_the_cards_change_stands_in(card: fake.FakeGpu, hidden: Any) -> None:
    card.processes = [(os.getpid(), None)] if hidden == "use-unknown" else hidden
    with VramSampler(GPU, interval_s=0.002) as sampler:  # before the server starts: 1 GiB is in use already
        sampler.watch(os.getpid())
        card.used += 600 * MIB
        sampled(sampler)
        card.used -= 200 * MIB
        sampled(sampler)
    assert sampler.source == "device-change"
    assert sampler.peak_mib == 600
    assert sampler.last_mib == 400


def test_a_sampler_samples_at_least_ten_times_a_second(card: fake.FakeGpu) -> None:
    with VramSampler(GPU, os.getpid()) as sampler:
        time.sleep(0.5)
    assert sampler.samples >= 5


def test_without_nvml_there_is_a_note_and_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake.fake_nvml([], init_error=fake.NVMLError_LibraryNotFound("not found"))
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with VramSampler(GPU) as sampler:
        pass
    assert sampler.peak_mib == 0
    assert sampler.last_mib is None
    assert "no NVIDIA driver library" in sampler.note


def test_a_failing_driver_ends_the_sampling_but_not_the_run(
    card: fake.FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: object) -> None:
        raise RuntimeError("driver gone")

    with VramSampler(GPU, os.getpid(), interval_s=0.002) as sampler:
        sampled(sampler)
        monkeypatch.setattr(sys.modules["pynvml"], "nvmlDeviceGetMemoryInfo", broken)
        wait_until(lambda: sampler.note != "")
    assert "driver gone" in sampler.note


def test_the_virtual_gpus_peak_is_the_one_it_counted_itself() -> None:
    with VramSampler(virtual_gpu(64)) as sampler:
        assert sampler.peak_mib == 0
        sampler.note_virtual(41.5)
        sampler.note_virtual(40)
        assert sampler.source == "virtual"
        assert sampler.peak_mib == 41.5
        sampler.begin_again()
        sampler.note_virtual(7)
    assert sampler.peak_mib == 7
