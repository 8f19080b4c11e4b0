"""`hottune machine`: what this machine is, and how fast it moves bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.cli import common, options
from hottune.errors import BadSettingError
from hottune.machine.bandwidth import EXPERT_MIB, MachineBandwidths, bandwidths, known_bandwidths
from hottune.machine.facts import Gpu, Machine
from hottune.machine.probe import probe_machine
from hottune.units import MIB, format_bytes

_LARGEST_EXPERT_MIB = 256.0
_LEAST_EXPERT_MIB = 1 / 16


class MachineReport(BaseModel):
    """What `machine --json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    bandwidths: MachineBandwidths | None = Field(description="None: not measured yet")


def machine(
    bandwidth: Annotated[
        bool, typer.Option("--bandwidth", help="Measure bandwidths if that was not done yet (10 s).")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Measure bandwidths even if they are known.")
    ] = False,
    expert_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of the random CPU reads. Default: 2MiB.")
    ] = None,
    gpu: options.Gpu = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show this machine and its bandwidths: CPU reads, PCIe, GPU memory, and CPU and PCIe at once."""
    with common.handled(json_output):
        size_mib = EXPERT_MIB if expert_size is None else options.size_mib(expert_size, "--expert-size")
        if not _LEAST_EXPERT_MIB <= size_mib <= _LARGEST_EXPERT_MIB:
            raise BadSettingError(
                f"--expert-size: {expert_size} is no size of an expert.", "", "Give 64KiB to 256MiB."
            )
        here = probe_machine()
        chosen = _gpu(here, gpu)
        cache = common.cache_dir()
        if bandwidth or again:
            progress = common.make_progress(quiet)
            try:
                found: MachineBandwidths | None = bandwidths(
                    here, cache, gpu=chosen, expert_mib=size_mib, again=again, progress=progress
                )
            finally:
                common.close(progress)
        else:
            found = known_bandwidths(here, cache, gpu=chosen, expert_mib=size_mib)
        if json_output:
            common.emit_json(MachineReport(machine=here, bandwidths=found))
        else:
            _show(here, found, Console(highlight=False))


def _gpu(here: Machine, index: int | None) -> Gpu | None:
    if index is None:
        return None
    for one in here.gpus:
        if one.index == index:
            return one
    listed = ", ".join(str(one.index) for one in here.gpus) or "none"
    raise BadSettingError(f"There is no GPU {index}.", next_step=f"GPUs here: {listed}.")


def _show(here: Machine, found: MachineBandwidths | None, out: Console) -> None:
    for name, text in _facts(here):
        out.print(Text.assemble((f"{name:<12}", "bold"), text), soft_wrap=True)
    if found is None:
        out.print(Text("Bandwidths are not measured yet: hottune machine --bandwidth", style="dim"))
        return
    table = Table(box=None, title=f"CPU reads of {format_bytes(found.area_mib * MIB)}, GB/s")
    table.add_column("Threads", justify="right")
    table.add_column("in order", justify="right")
    table.add_column(f"experts of {format_bytes(found.expert_mib * MIB)} at random", justify="right")
    for row in found.cpu:
        table.add_row(str(row.threads), f"{row.streaming_gb_per_s:.1f}", f"{row.expert_reads_gb_per_s:.1f}")
    out.print(table)
    for name, text in _copies(found):
        out.print(Text.assemble((f"{name:<34}", "bold"), text), soft_wrap=True)
    for note in found.notes:
        out.print(Text(f"Note: {note}"), soft_wrap=True)
    out.print(Text(f"Measured {found.measured_at} in {found.seconds:.1f} s.", style="dim"))


def _facts(here: Machine) -> Iterator[tuple[str, str]]:
    yield "system", here.system
    yield "processor", f"{here.cpu.name}, {here.cpu.physical_cores} cores"
    total, free = format_bytes(here.ram_total_mib * MIB), format_bytes(here.ram_available_mib * MIB)
    yield "memory", f"{total}, {free} available"
    for gpu in here.gpus:
        facts = (gpu.name, format_bytes(gpu.vram_total_mib * MIB), gpu.pcie)
        yield f"GPU {gpu.index}", ", ".join(fact for fact in facts if fact)
    if not here.gpus:
        yield "GPU", "none found"


def _copies(found: MachineBandwidths) -> Iterator[tuple[str, str]]:
    gpu = found.gpu
    if gpu is None:
        yield "GPU copies", f"not measured: {found.gpu_reason}"
        return
    yield "PCIe to the GPU, pinned", f"{gpu.pcie_h2d_gb_per_s:.1f} GB/s"
    yield "PCIe to the GPU, unpinned", f"{gpu.pcie_h2d_unpinned_gb_per_s:.1f} GB/s"
    yield "GPU memory, copying (read + write)", f" {gpu.hbm_gb_per_s:.0f} GB/s"
    both = f"CPU {gpu.cpu_overlapped_gb_per_s:.1f} GB/s, PCIe {gpu.pcie_overlapped_gb_per_s:.1f} GB/s"
    yield f"Both at once ({gpu.overlap_threads} CPU threads)", both
