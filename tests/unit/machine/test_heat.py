"""A hardware thermal slowdown is seen while it lasts and after it; a driver's own restraint is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import fake_nvml as fake
import pytest

from hottune.machine.clocks import HARDWARE_HEAT, GpuState
from hottune.machine.facts import Gpu
from hottune.machine.heat import COOL_LIMIT_S, HeatWatch, heat_counter, wait_until_cooler
from hottune.machine.probe import virtual_gpu

HARDWARE, DRIVER = 0x40, 0x20
GPU = Gpu(index=0, name="GPU", vram_total_mib=24000, vram_free_mib=20000)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> fake.FakeGpu:
    card = fake.FakeGpu()
    module = fake.fake_nvml([card])
    module.nvmlClocksThrottleReasonSwThermalSlowdown = DRIVER
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return card


def test_a_cool_card_did_not_slow_down(card: fake.FakeGpu) -> None:
    watch = HeatWatch(GPU)
    card.throttle = DRIVER
    watch.look()
    assert not watch.slowed_down()


def test_a_slowdown_that_is_over_is_remembered(card: fake.FakeGpu) -> None:
    watch = HeatWatch(GPU)
    card.throttle = HARDWARE
    watch.look()
    card.throttle = 0
    assert watch.slowed_down()


def test_a_slowdown_between_two_looks_is_counted_by_the_driver(card: fake.FakeGpu) -> None:
    card.heat_ns = 5_000
    watch = HeatWatch(GPU)
    assert not watch.slowed_down(), "what was before is not ours"
    card.heat_ns = 6_000
    assert watch.slowed_down()


def test_a_driver_that_does_not_count_leaves_the_looks(card: fake.FakeGpu) -> None:
    card.heat_ns = None
    watch = HeatWatch(GPU)
    assert not watch.slowed_down()
    card.throttle = HARDWARE
    assert watch.slowed_down()


def test_a_virtual_gpu_is_never_hot() -> None:
    assert heat_counter(virtual_gpu(64)) is None
    assert not HeatWatch(virtual_gpu(64)).slowed_down()


def states(*found: tuple[float | None, tuple[str, ...]]) -> Iterator[GpuState]:
    for temperature, reasons in found:
        yield GpuState(temperature_c=temperature, throttled_by=reasons)
    while True:
        yield GpuState(temperature_c=found[-1][0], throttled_by=found[-1][1])


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        ([(95, ()), (95, ()), (90, ()), (85, ())], 2),
        ([(95, ()), (84, (HARDWARE_HEAT,)), (80, ())], 1),
        ([(None, ()), (None, ())], 0),
        ([(95, ())], COOL_LIMIT_S),
    ],
)
def test_it_waits_until_the_card_is_cooler_but_not_for_ever(
    found: list[tuple[float | None, tuple[str, ...]]], seconds: float
) -> None:
    told, paused = states(*found), []
    wait_until_cooler(GPU, state=lambda gpu: next(told), pause=paused.append)
    assert sum(paused) == seconds
