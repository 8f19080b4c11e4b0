"""What a GPU's clocks and temperature are right now: a throttled card makes slow numbers look true."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hottune.machine.facts import Gpu
from hottune.machine.nvml import NvmlUnavailable, ask, nvml
from hottune.units import mib

#: The reason that makes a measurement worthless (see tasks/measure.py).
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
    power_w: float | None = None
    utilisation_percent: float | None = Field(default=None, description="time with work, of the last moments")
    pcie_generation: int | None = Field(default=None, description="of the link now; it idles slower")
    pcie_width: int | None = Field(default=None, description="lanes of the link now")
    vram_used_mib: float | None = Field(default=None, description="by all processes together")
    throttled_by: tuple[str, ...] = Field(default=(), description="why the clocks are held down, if they are")


def gpu_state(gpu: Gpu) -> GpuState:
    """Return the GPU's clocks, temperature, memory use and throttle reasons; all None for a virtual one."""
    if gpu.virtual:
        return GpuState()
    try:
        with nvml() as module:
            return ask_state(module, gpu.index)
    except NvmlUnavailable:
        return GpuState()


def ask_state(module: Any, index: int) -> GpuState:
    """Return the state of GPU `index`, asked through an NVML that is already open (`nvml.nvml`)."""
    handle = ask(module, lambda: module.nvmlDeviceGetHandleByIndex(index), None)
    if handle is None:
        return GpuState()

    def number(name: str, *more: Any) -> Any:
        return ask(module, lambda: getattr(module, name)(handle, *more), None)

    reasons = number("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:  # the name before driver 535
        reasons = number("nvmlDeviceGetCurrentClocksThrottleReasons")
    memory, rates = number("nvmlDeviceGetMemoryInfo"), number("nvmlDeviceGetUtilizationRates")
    milliwatts = number("nvmlDeviceGetPowerUsage")
    return GpuState(
        temperature_c=number("nvmlDeviceGetTemperature", module.NVML_TEMPERATURE_GPU),
        sm_clock_mhz=number("nvmlDeviceGetClockInfo", module.NVML_CLOCK_SM),
        sm_clock_max_mhz=number("nvmlDeviceGetMaxClockInfo", module.NVML_CLOCK_SM),
        power_w=None if milliwatts is None else milliwatts / 1000,
        utilisation_percent=None if rates is None else rates.gpu,
        pcie_generation=number("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_width=number("nvmlDeviceGetCurrPcieLinkWidth"),
        vram_used_mib=None if memory is None else mib(memory.used),
        throttled_by=_reasons(module, int(reasons or 0)),
    )


def _reasons(module: Any, bits: int) -> tuple[str, ...]:
    found: list[str] = []
    for name, words in _THROTTLE_REASONS.items():
        mask = getattr(module, f"nvmlClocksThrottleReason{name}", 0)
        if mask and bits & mask:
            found.append(words)
    return tuple(found)
