"""What a GPU's clocks and temperature are right now: a throttled card makes slow numbers look true."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hottune.machine.facts import Gpu
from hottune.machine.nvml import NvmlUnavailable, ask, nvml

#: The reason that makes a measurement worthless (see `heat`).
HARDWARE_HEAT = "too hot (hardware)"

#: NVML's reasons that slow a busy card down, in our words. "Idle" and user-set clocks are no throttling.
_THROTTLE_REASONS = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": HARDWARE_HEAT,
    "SwThermalSlowdown": "too hot (driver)",
    "HwPowerBrakeSlowdown": "power brake",
}


class GpuState(BaseModel):
    """A GPU at one moment; None where the driver does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    sm_clock_max_mhz: float | None = None
    vram_used_mib: float | None = Field(default=None, description="by all processes together")
    throttled_by: tuple[str, ...] = Field(default=(), description="why the clocks are held down, if they are")


def gpu_state(gpu: Gpu) -> GpuState:
    """Return the GPU's clocks, temperature, memory use and throttle reasons; all None for a virtual one."""
    if gpu.virtual:
        return GpuState()
    try:
        with nvml() as module:
            return _ask_state(module, gpu.index)
    except NvmlUnavailable:
        return GpuState()


def _ask_state(module: Any, index: int) -> GpuState:
    handle = ask(module, lambda: module.nvmlDeviceGetHandleByIndex(index), None)
    if handle is None:
        return GpuState()
    memory = ask(module, lambda: module.nvmlDeviceGetMemoryInfo(handle), None)
    reasons = ask(module, lambda: module.nvmlDeviceGetCurrentClocksEventReasons(handle), None)
    if reasons is None:  # the name before driver 535
        reasons = ask(module, lambda: module.nvmlDeviceGetCurrentClocksThrottleReasons(handle), 0)
    return GpuState(
        temperature_c=ask(
            module, lambda: module.nvmlDeviceGetTemperature(handle, module.NVML_TEMPERATURE_GPU), None
        ),
        sm_clock_mhz=ask(module, lambda: module.nvmlDeviceGetClockInfo(handle, module.NVML_CLOCK_SM), None),
        sm_clock_max_mhz=ask(
            module, lambda: module.nvmlDeviceGetMaxClockInfo(handle, module.NVML_CLOCK_SM), None
        ),
        vram_used_mib=None if memory is None else memory.used / (1024 * 1024),
        throttled_by=_reasons(module, int(reasons or 0)),
    )


def _reasons(module: Any, bits: int) -> tuple[str, ...]:
    found: list[str] = []
    for name, words in _THROTTLE_REASONS.items():
        mask = getattr(module, f"nvmlClocksThrottleReason{name}", 0)
        if mask and bits & mask:
            found.append(words)
    return tuple(found)
