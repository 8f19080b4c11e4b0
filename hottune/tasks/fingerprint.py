"""What two machines must have in common for their measurements to stand in one study."""

from __future__ import annotations

from collections.abc import Mapping

from hottune.machine.facts import Gpu, Machine

#: Equal machines report sizes of memory that differ by what their firmware and kernel keep.
RAM_TOLERANCE = 0.05


def fingerprint(machine: Machine, gpu: Gpu) -> dict[str, str]:
    """Return what makes a machine's speed, without what may differ between equal ones.

    Left out: the kernel's version, host names, serial numbers, the driver's minor version, and memory, which
    `ram_differs` compares.
    """
    cpu = machine.cpu
    size = "" if gpu.virtual else f", {gpu.vram_total_mib:.0f} MiB"
    return {
        "system": machine.system.split(" ")[0],
        "processor": f"{cpu.name}, {cpu.physical_cores} cores, {cpu.logical_cores} threads",
        "GPU": f"{gpu.name}{size}",
        "driver": gpu.driver.split(".")[0],
    }


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Say of each part that differs what it is here and what it is in the study."""
    return [
        f"{name}: {here.get(name) or 'none'} here, {there.get(name) or 'none'} in the study"
        for name in dict.fromkeys([*there, *here])
        if here.get(name) != there.get(name)
    ]


def ram_differs(here_mib: float, there_mib: float) -> list[str]:
    """Say that the sizes of memory differ by more than equal machines' do."""
    if abs(here_mib - there_mib) <= RAM_TOLERANCE * max(here_mib, there_mib):
        return []
    return [f"memory: {here_mib / 1024:.0f} GiB here, {there_mib / 1024:.0f} GiB in the study"]
