"""Find out what this computer has. No GPU, no driver and no NVML are normal answers, told in a note."""

from __future__ import annotations

import platform
from typing import Any

from hottune.machine.confinement import confinement
from hottune.machine.cpu import probe_cpu
from hottune.machine.facts import Gpu, Machine
from hottune.machine.memory import host_memory_mib
from hottune.machine.modules import ram_speed
from hottune.machine.nvml import NvmlUnavailable, ask, nvml, text
from hottune.units import mib

VIRTUAL_GPU_NAME = "virtual GPU (computes on the CPU)"


def probe_machine() -> Machine:
    """Return GPUs, processor, memory and system of this computer, as this process may use them."""
    gpus, notes = probe_gpus()
    total_mib, available_mib = host_memory_mib()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu=probe_cpu(),
        ram_total_mib=total_mib,
        ram_available_mib=available_mib,
        ram_speed=ram_speed(),
        confinement=confinement(),
        gpus=gpus,
        notes=notes,
    )


def virtual_gpu(total_mib: float) -> Gpu:
    """Return the virtual GPU with `total_mib` of memory: the device library enforces that cap."""
    return Gpu(
        index=0, name=VIRTUAL_GPU_NAME, vram_total_mib=total_mib, vram_free_mib=total_mib, virtual=True
    )


def probe_gpus() -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """Return every NVIDIA GPU that NVML shows, and notes on what could not be found out."""
    try:
        with nvml() as module:
            return _ask_all(module)
    except NvmlUnavailable as error:
        return (), (f"no NVIDIA GPU found: {error}",)


def _ask_all(module: Any) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    gpus: list[Gpu] = []
    notes: list[str] = []
    try:
        count = module.nvmlDeviceGetCount()
    except module.NVMLError as error:
        return (), (f"the NVIDIA driver does not list its GPUs: {error}",)
    if count == 0:
        notes.append("the NVIDIA driver is loaded but shows no GPU")
    driver = text(ask(module, module.nvmlSystemGetDriverVersion, ""))
    for index in range(count):
        try:
            gpus.append(_ask_one(module, index, driver))
        except module.NVMLError as error:
            notes.append(f"GPU {index} left out: NVML does not tell its memory ({error})")
    return tuple(gpus), tuple(notes)


def _ask_one(module: Any, index: int, driver: str) -> Gpu:
    """Describe one GPU. Only a missing handle or memory size is fatal to it (raises NVMLError)."""
    handle = module.nvmlDeviceGetHandleByIndex(index)
    memory = module.nvmlDeviceGetMemoryInfo(handle)
    generation = ask(module, lambda: module.nvmlDeviceGetCurrPcieLinkGeneration(handle), 0)
    width = ask(module, lambda: module.nvmlDeviceGetCurrPcieLinkWidth(handle), 0)
    best = (
        ask(module, lambda: module.nvmlDeviceGetMaxPcieLinkGeneration(handle), 0),
        ask(module, lambda: module.nvmlDeviceGetMaxPcieLinkWidth(handle), 0),
    )
    milliwatts = ask(module, lambda: module.nvmlDeviceGetEnforcedPowerLimit(handle), None)
    capability = ask(module, lambda: module.nvmlDeviceGetCudaComputeCapability(handle), None)
    return Gpu(
        index=index,
        name=text(ask(module, lambda: module.nvmlDeviceGetName(handle), "NVIDIA GPU")),
        uuid=text(ask(module, lambda: module.nvmlDeviceGetUUID(handle), "")),
        vram_total_mib=mib(memory.total),
        vram_free_mib=mib(memory.free),
        driver=driver,
        pcie=link(generation, width),
        pcie_max=link(*best),
        power_limit_w=None if milliwatts is None else milliwatts / 1000,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
    )


def link(generation: int | None, width: int | None) -> str:
    """Return a PCIe link in words, 'gen5 x16'; "" when either is not known."""
    return f"gen{generation} x{width}" if generation and width else ""
