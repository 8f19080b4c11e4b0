"""A stand-in for the module `pynvml`: as many GPUs as a test lays out, and the errors it asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

GIB = 1024**3


@dataclass
class FakeGpu:
    name: str = "NVIDIA Test 24G"
    total: int = 24 * GIB
    used: int = 1 * GIB
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    drawing: list[tuple[int, int | None]] = field(default_factory=list)
    #: The driver's own share, which only the newer memory question (v2) tells from use.
    reserved: int | None = None
    link: tuple[int, int] | None = (4, 16)
    capability: tuple[int, int] | None = (8, 9)
    memory_denied: bool = False
    throttle: int = 0
    temperature: int = 55
    clock: int = 1200
    power_mw: int | None = 70_000
    utilisation: int | None = 0
    link_max: tuple[int, int] | None = (4, 16)


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


def fake_nvml(gpus: list[FakeGpu], *, init_error: Exception | None = None) -> Any:
    """Return a module to put into `sys.modules["pynvml"]`; `opened` counts open sessions."""
    module: Any = ModuleType("pynvml")
    module.opened = 0
    module.NVMLError = NVMLError
    module.NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    module.NVMLError_DriverNotLoaded = NVMLError_DriverNotLoaded
    module.NVML_TEMPERATURE_GPU = 0
    module.NVML_CLOCK_SM = 1
    module.nvmlClocksThrottleReasonSwPowerCap = 0x4
    module.nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
    module.nvmlClocksThrottleReasonGpuIdle = 0x1

    def init() -> None:
        if init_error is not None:
            raise init_error
        module.opened += 1

    def shutdown() -> None:
        module.opened -= 1

    def known(value: Any) -> Any:
        if value is None:
            raise NVMLError_NotSupported("Not Supported")
        return value

    def memory(gpu: FakeGpu, version: int | None = None) -> Any:
        if gpu.memory_denied:
            raise NVMLError("Insufficient Permissions")
        if version is not None:
            used = gpu.used - known(gpu.reserved)
            return SimpleNamespace(
                total=gpu.total, used=used, free=gpu.total - gpu.used, reserved=gpu.reserved
            )
        return SimpleNamespace(total=gpu.total, used=gpu.used, free=gpu.total - gpu.used)

    module.nvmlInit = init
    module.nvmlShutdown = shutdown
    module.nvmlDeviceGetCount = lambda: len(gpus)
    module.nvmlSystemGetDriverVersion = lambda: b"570.12"  # older modules answer in bytes
    module.nvmlDeviceGetHandleByIndex = lambda index: gpus[index]
    module.nvmlDeviceGetMemoryInfo = memory
    module.nvmlDeviceGetName = lambda gpu: gpu.name
    module.nvmlDeviceGetUUID = lambda gpu: f"GPU-{gpus.index(gpu)}"
    module.nvmlDeviceGetCurrPcieLinkGeneration = lambda gpu: known(gpu.link)[0]
    module.nvmlDeviceGetCurrPcieLinkWidth = lambda gpu: known(gpu.link)[1]
    module.nvmlDeviceGetCudaComputeCapability = lambda gpu: known(gpu.capability)
    module.nvmlDeviceGetMaxPcieLinkGeneration = lambda gpu: known(gpu.link_max)[0]
    module.nvmlDeviceGetMaxPcieLinkWidth = lambda gpu: known(gpu.link_max)[1]
    module.nvmlDeviceGetPowerUsage = lambda gpu: known(gpu.power_mw)
    module.nvmlDeviceGetEnforcedPowerLimit = lambda gpu: 450_000
    module.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=known(gpu.utilisation))
    module.nvmlDeviceGetTemperature = lambda gpu, sensor: gpu.temperature
    module.nvmlDeviceGetClockInfo = lambda gpu, clock: gpu.clock
    module.nvmlDeviceGetMaxClockInfo = lambda gpu, clock: 1980
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda gpu: gpu.throttle
    module.nvmlMemory_v2 = 2
    module.nvmlDeviceGetComputeRunningProcesses = lambda gpu: [
        SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.processes
    ]
    module.nvmlDeviceGetGraphicsRunningProcesses = lambda gpu: [
        SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.drawing
    ]
    return module
