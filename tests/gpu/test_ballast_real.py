"""The ballast on a real card: `pytest tests/gpu/test_ballast_real.py -s` prints what it saw.

On a machine with a GPU that nobody else uses, from the checkout.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from hottune.machine.ballast import LEAST_MIB, held, why_not
from hottune.machine.ballast_holder import CLOSE_MIB
from hottune.machine.clocks import gpu_state
from hottune.machine.facts import Gpu
from hottune.machine.probe import probe_gpus

GPUS, NOTES = probe_gpus()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason=f"needs a real GPU: {'; '.join(NOTES) or 'none listed'}"),
    pytest.mark.skipif(
        bool(GPUS) and bool(why_not(GPUS[0], GPUS[0].vram_free_mib / 2)),
        reason=f"needs {2 * LEAST_MIB:.0f} MiB of free VRAM and the CUDA driver (libcuda.so.1)",
    ),
]

#: What a new process sees: VRAM that CUDA calls free, and whether so many MiB can really be had.
LOOK = """
import ctypes, sys
from hottune.machine.cuda_driver import CudaUnavailable, opened
with opened({uuid!r}) as cuda:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    def can(mib):
        try:
            with cuda.device_memory(int(mib * 2**20)):
                return 1
        except CudaUnavailable:
            return 0
    print(free.value // 2**20, can(free.value / 2**20 * 0.9), can({ceiling_mib}))
"""

PARENT = """
import time
from hottune.machine.ballast import held
from hottune.machine.facts import Gpu
with held(Gpu.model_validate_json({gpu!r}), {ceiling_mib}) as it:
    print(it.pid, flush=True)
    time.sleep(600)
"""


def free_mib() -> float:
    (gpu, *_), _ = probe_gpus()
    return gpu.vram_free_mib


def wait_for_free(wanted_mib: float, limit_s: float) -> float:
    """Wait until so much is free again; return the seconds that it took."""
    began = time.monotonic()
    while free_mib() < wanted_mib - 64 and time.monotonic() - began < limit_s:
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture
def gpu() -> Gpu:
    return GPUS[0]


@pytest.fixture
def ceiling_mib(gpu: Gpu) -> float:
    return float(int(min(24 * 1024, gpu.vram_free_mib / 2)))


def test_the_driver_and_new_processes_see_a_card_with_only_the_ceiling_free(
    gpu: Gpu, ceiling_mib: float
) -> None:
    before_mib, began = free_mib(), time.monotonic()
    with held(gpu, ceiling_mib) as it:
        took_s = time.monotonic() - began
        now_mib = free_mib()
        print(f"\nfree before {before_mib:.0f} MiB; held {it.facts.held_mib:.0f} MiB in {took_s:.1f} s")
        print(f"free now {now_mib:.1f} MiB, asked for {ceiling_mib:.0f}; state {gpu_state(gpu)}")
        assert abs(now_mib - ceiling_mib) <= CLOSE_MIB
        assert it.facts.held_mib == pytest.approx(before_mib - ceiling_mib, abs=64)
        look = LOOK.format(uuid=gpu.uuid, ceiling_mib=ceiling_mib)
        seen = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=120)
        assert seen.returncode == 0, seen.stderr
        seen_free, most_fits, all_fits = (int(word) for word in seen.stdout.split())
        print(
            f"a new CUDA process sees {seen_free} MiB free: its context takes {ceiling_mib - seen_free:.0f}"
        )
        assert 0 < seen_free < ceiling_mib
        assert (most_fits, all_fits) == (1, 0), "its own context counts against the ceiling, too"
    back_s = wait_for_free(before_mib, 15)
    print(f"given back {back_s:.1f} s after the end")
    assert free_mib() == pytest.approx(before_mib, abs=64)


def test_kill_9_gives_the_memory_back(gpu: Gpu, ceiling_mib: float) -> None:
    before_mib = free_mib()
    code = PARENT.format(gpu=gpu.model_dump_json(), ceiling_mib=ceiling_mib)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0
        assert free_mib() < before_mib - LEAST_MIB
        parent.send_signal(signal.SIGKILL)
        back_s = wait_for_free(before_mib, 15)
        print(f"\nfree again {back_s:.2f} s after kill -9")
        assert free_mib() == pytest.approx(before_mib, abs=64)
    finally:
        parent.kill()
        parent.communicate()
