from __future__ import annotations

import sys
from typing import Any

import fake_nvml as fake
import pytest

from hottune.machine.clocks import gpu_state
from hottune.machine.probe import probe_gpus, probe_machine, virtual_gpu


def install(monkeypatch: pytest.MonkeyPatch, module: Any) -> Any:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_two_gpus_are_described_each_with_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    big = fake.FakeGpu("NVIDIA H200", total=140 * fake.GIB, used=0, link=(5, 16), capability=(9, 0))
    module = install(monkeypatch, fake.fake_nvml([fake.FakeGpu(), big]))

    gpus, notes = probe_gpus()

    assert notes == ()
    assert [gpu.index for gpu in gpus] == [0, 1]
    assert gpus[0].vram_total_mib == 24 * 1024
    assert gpus[0].vram_free_mib == 23 * 1024
    assert gpus[0].driver == "570.12"
    assert gpus[1].name == "NVIDIA H200"
    assert gpus[1].pcie == "gen5 x16"
    assert gpus[1].pcie_max == "gen4 x16"
    assert gpus[1].power_limit_w == 450
    assert gpus[1].compute_capability == "9.0"
    assert not gpus[1].virtual
    assert module.opened == 0, "NVML is closed again"


def test_what_a_gpu_cannot_tell_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake.fake_nvml([fake.FakeGpu(link=None, capability=None, link_max=None)]))
    ((gpu,), _) = probe_gpus()
    assert (gpu.pcie, gpu.pcie_max, gpu.compute_capability) == ("", "", "")
    assert gpu.vram_total_mib > 0


def test_a_gpu_without_memory_figures_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake.fake_nvml([fake.FakeGpu(memory_denied=True), fake.FakeGpu("good")]))
    gpus, notes = probe_gpus()
    assert [(gpu.index, gpu.name) for gpu in gpus] == [(1, "good")]
    assert "GPU 0 left out" in notes[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (fake.NVMLError_LibraryNotFound("NVML Shared Library Not Found"), "no NVIDIA driver library"),
        (fake.NVMLError_DriverNotLoaded("Driver Not Loaded"), "not loaded"),
        (fake.NVMLError("Unknown Error"), "Unknown Error"),
        (OSError("libnvidia-ml.so.1: wrong ELF class"), "wrong ELF class"),
    ],
)
def test_a_machine_without_a_working_driver_is_a_normal_answer(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    install(monkeypatch, fake.fake_nvml([], init_error=error))
    gpus, notes = probe_gpus()
    assert gpus == ()
    assert words in notes[0]


def test_a_missing_python_module_is_a_normal_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # import then raises ImportError
    machine = probe_machine()
    assert machine.gpus == ()
    assert "nvidia-ml-py is not installed" in machine.notes[0]
    assert machine.cpu.physical_cores >= 1
    assert 0 < machine.ram_available_mib <= machine.ram_total_mib


def test_a_driver_without_any_gpu_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake.fake_nvml([]))
    assert probe_gpus() == ((), ("the NVIDIA driver is loaded but shows no GPU",))


def test_the_virtual_gpu_has_exactly_the_memory_it_is_given() -> None:
    gpu = virtual_gpu(64)
    assert gpu.virtual
    assert gpu.vram_total_mib == gpu.vram_free_mib == 64


def test_a_hot_and_power_limited_gpu_says_why_it_is_slow_but_idle_is_no_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, fake.fake_nvml([fake.FakeGpu(throttle=0x1 | 0x4 | 0x40)]))
    ((gpu,), _) = probe_gpus()
    state = gpu_state(gpu)
    assert state.throttled_by == ("power limit", "too hot (hardware)")
    assert (state.temperature_c, state.sm_clock_mhz, state.sm_clock_max_mhz) == (55, 1200, 1980)
    assert state.vram_used_mib == 1024
    assert (state.power_w, state.utilisation_percent) == (70, 0)
    assert (state.pcie_generation, state.pcie_width) == (4, 16)


def test_the_state_of_a_virtual_gpu_is_unknown_not_an_error() -> None:
    assert gpu_state(virtual_gpu(64)).sm_clock_mhz is None
