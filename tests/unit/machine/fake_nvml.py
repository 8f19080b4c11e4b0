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
    link: tuple[int, int] | None = (4, 16)
    capability: tuple[int, int] | None = (8, 9)
    memory_denied: bool = False
    throttle: int = 0
    heat_ns: int | None = 0  # None: the driver does not count it


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

    def memory(gpu: FakeGpu) -> Any:
        if gpu.memory_denied:
            raise NVMLError("Insufficient Permissions")
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
    module.nvmlDeviceGetTemperature = lambda gpu, sensor: 55
    module.nvmlDeviceGetClockInfo = lambda gpu, clock: 1200
    module.nvmlDeviceGetMaxClockInfo = lambda gpu, clock: 1980
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda gpu: gpu.throttle
    module.NVML_SUCCESS = 0
    module.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN = 270
    module.nvmlDeviceGetFieldValues = lambda gpu, fields: [
        SimpleNamespace(
            nvmlReturn=3 if gpu.heat_ns is None else 0, value=SimpleNamespace(ullVal=gpu.heat_ns or 0)
        )
        for _ in fields
    ]
    module.nvmlDeviceGetComputeRunningProcesses = lambda gpu: [
        SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu.processes
    ]
    module.nvmlDeviceGetGraphicsRunningProcesses = lambda gpu: []
    return module
