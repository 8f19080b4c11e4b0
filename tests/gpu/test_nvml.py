"""The machine room against a real NVIDIA driver."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

from hottune.machine.clocks import ask_state, gpu_state
from hottune.machine.facts import Gpu
from hottune.machine.nvml import nvml
from hottune.machine.probe import probe_gpus
from hottune.machine.vram import VramSampler
from hottune.machine.watch import MachineWatch

GPUS, NOTES = probe_gpus()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason=f"needs a real GPU: {'; '.join(NOTES) or 'none listed'}"),
]


def test_a_real_gpu_tells_its_name_memory_driver_and_link() -> None:
    gpu = GPUS[0]
    assert gpu.name
    assert gpu.driver
    assert gpu.uuid.startswith(("GPU-", "MIG-"))
    assert 0 < gpu.vram_free_mib <= gpu.vram_total_mib
    assert gpu.pcie.startswith("gen")
    assert float(gpu.compute_capability) >= 5


def test_a_real_gpu_tells_its_clocks_and_temperature() -> None:
    state = gpu_state(GPUS[0])
    assert state.temperature_c is not None
    assert 0 < state.temperature_c < 120
    assert state.sm_clock_mhz is not None
    assert state.sm_clock_max_mhz is not None
    assert state.sm_clock_mhz <= state.sm_clock_max_mhz


def test_watching_costs_nearly_nothing_and_sees_the_link_and_power() -> None:
    with nvml() as module:
        ask_state(module, GPUS[0].index)
        began = time.perf_counter()
        for _ in range(20):
            state = ask_state(module, GPUS[0].index)
        each_ms = (time.perf_counter() - began) / 20 * 1e3
    print(f"\none look takes {each_ms:.2f} ms; {state}; best link {GPUS[0].pcie_max}")
    assert each_ms < 25, "twice a second: at most 5 % of one core"
    assert state.pcie_generation
    assert state.pcie_width
    assert GPUS[0].pcie_max.startswith("gen")
    assert GPUS[0].power_limit_w
    with MachineWatch(GPUS[0], interval_s=0.05) as watch:
        watch.begin(os.getpid())
        time.sleep(0.5)
        assert watch.seen().samples >= 3
        assert watch.seen().power_w is not None


def allocate(driver: ctypes.CDLL, n_bytes: int) -> ctypes.c_uint64:
    address = ctypes.c_uint64()
    assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(n_bytes)) == 0
    return address


def test_the_sampler_sees_a_real_allocation_come_and_remembers_it_when_gone() -> None:
    """512 MiB through the driver itself, in this process: no toolkit is needed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("NVML is there but libcuda.so.1 is not")
    gpu: Gpu = GPUS[0]
    with VramSampler(gpu, os.getpid()) as sampler:
        device, context = ctypes.c_int(), ctypes.c_void_p()
        assert driver.cuInit(0) == 0
        assert driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        assert driver.cuCtxSetCurrent(context) == 0
        try:
            time.sleep(0.5)
            before = sampler.peak_mib
            address = allocate(driver, 512 * 1024**2)
            time.sleep(0.5)
            assert driver.cuMemFree_v2(address) == 0
            time.sleep(0.3)
        finally:
            driver.cuDevicePrimaryCtxRelease(device)
    assert sampler.note == ""
    assert sampler.source in ("process", "device-change")
    assert 512 <= sampler.peak_mib - before < 512 + 128
