"""Measured bandwidths of this machine: CPU reads, PCIe, GPU memory, and CPU and PCIe at the same time.

GB are 10^9 bytes. Measuring takes about ten seconds; the result is kept in the cache folder, under a
fingerprint of the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hottune.machine.cpu import read_text
from hottune.machine.cpu_reads import (
    Words,
    expert_reads_gb_per_s,
    new_area,
    reading,
    streaming_gb_per_s,
)
from hottune.machine.cuda_driver import Cuda, CudaUnavailable, opened
from hottune.machine.facts import Gpu, Machine
from hottune.machine.gpu_copies import h2d_unpinned_gb_per_s, hbm_copy_gb_per_s, median, pinned_copies
from hottune.progress import NoProgress, Progress
from hottune.units import MIB, mib, parse_size

#: Raise it when what is measured changes: results of another revision are measured again.
REVISION = 1
#: Bytes of an expert when nobody says otherwise; Qwen3-30B-A3B's have 2.5 MiB in Q4_K.
EXPERT_MIB = 2.0

_ROOT = Path("/")
_SECONDS = 0.12  # of one run; the median of three counts
_AREA_MIB = 2048.0  # large enough for any usual cache, small enough to be filled in a second or two
_CACHE_TIMES = 8  # how much larger than the last-level cache the area should be
_RAM_SHARE = 0.25  # of what is available, at most
_PINNED_MIB = 512.0
_HBM_MIB = 512.0
_PIECE_BYTES = 8 << 20
_BUSY_SHARE = 0.3  # of the cores, from which on a note says so


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CpuReads(_Frozen):
    """What a number of threads reads from memory, all together."""

    threads: int
    streaming_gb_per_s: float = Field(description="in order, each thread a part of its own")
    expert_reads_gb_per_s: float = Field(description="expert-sized pieces in random order")


class GpuCopies(_Frozen):
    """What one GPU gets."""

    gpu: str = Field(description="its name")
    pcie_h2d_gb_per_s: float = Field(description="from pinned host memory, alone")
    pcie_h2d_unpinned_gb_per_s: float = Field(description="from ordinary host memory, alone")
    hbm_gb_per_s: float = Field(description="GPU memory copying within itself, read and write both counted")
    overlap_threads: int = Field(description="CPU threads that read during the next two")
    pcie_overlapped_gb_per_s: float = Field(description="from pinned host memory while the CPU reads experts")
    cpu_overlapped_gb_per_s: float = Field(description="CPU expert reads while PCIe is busy")


class MachineBandwidths(_Frozen):
    """Everything that was measured, and what it holds for."""

    revision: int
    fingerprint: str
    measured_at: str = Field(description="ISO 8601, UTC")
    seconds: float = Field(description="what measuring took")
    expert_mib: float = Field(description="size of the pieces that stand for experts")
    area_mib: float = Field(description="memory that was read from")
    last_level_cache_mib: float | None = Field(description="None where the system does not say")
    cpu: tuple[CpuReads, ...] = Field(description="by number of threads, ascending")
    gpu: GpuCopies | None = Field(description="None without a GPU; `gpu_reason` says why")
    gpu_reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def cpu_gb_per_s(self) -> float:
        """The best expert reads of any number of threads."""
        return max(one.expert_reads_gb_per_s for one in self.cpu)


def bandwidths(
    machine: Machine,
    cache_dir: Path,
    *,
    gpu: Gpu | None = None,
    expert_mib: float = EXPERT_MIB,
    again: bool = False,
    progress: Progress | None = None,
) -> MachineBandwidths:
    """Return this machine's bandwidths: from the cache folder, else measured now and kept there.

    Args:
        machine: that hottune runs on.
        cache_dir: hottune's cache folder.
        gpu: to measure; None = the machine's first real one.
        expert_mib: size of the random reads, MiB.
        again: measure even when the cache has them.
        progress: told about each step.
    """
    if not again and (known := known_bandwidths(machine, cache_dir, gpu=gpu, expert_mib=expert_mib)):
        return known
    found = measure(machine, gpu=gpu, expert_mib=expert_mib, progress=progress)
    path = _path(machine, cache_dir, gpu, expert_mib)
    with suppress(OSError):  # a full disk does not spoil what was measured
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(found.model_dump_json(indent=2), encoding="utf-8")
        unfinished.replace(path)
    return found


def known_bandwidths(
    machine: Machine, cache_dir: Path, *, gpu: Gpu | None = None, expert_mib: float = EXPERT_MIB
) -> MachineBandwidths | None:
    """Return what the cache folder has for this machine; None when it was never measured or is unreadable."""
    try:
        text = _path(machine, cache_dir, gpu, expert_mib).read_text(encoding="utf-8")
        known = MachineBandwidths.model_validate_json(text)
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    return known if known.fingerprint == fingerprint(machine, gpu, expert_mib) and known.cpu else None


def fingerprint(machine: Machine, gpu: Gpu | None = None, expert_mib: float = EXPERT_MIB) -> str:
    """Return a short hash of all that a measurement holds for.

    Without what changes by the hour: free memory, and the PCIe link, which idles at a lower generation.
    """
    chosen = _real(machine, gpu)
    facts = {
        "revision": REVISION,
        "cpu": [machine.cpu.name, machine.cpu.physical_cores, machine.cpu.logical_cores],
        "ram_gib": round(machine.ram_total_mib / 1024),
        "gpu": [chosen.name, chosen.uuid, chosen.driver] if chosen else None,
        "expert_mib": expert_mib,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def measure(
    machine: Machine,
    *,
    gpu: Gpu | None = None,
    expert_mib: float = EXPERT_MIB,
    progress: Progress | None = None,
    seconds: float = _SECONDS,
    area_mib: float | None = None,
    cuda_library: Any = None,
) -> MachineBandwidths:
    """Measure now; see `bandwidths`.

    Args:
        machine: that hottune runs on.
        gpu: to measure; None = the machine's first real one.
        expert_mib: size of the random reads, MiB.
        progress: told about each step.
        seconds: of one run; each number is the median of three.
        area_mib: memory to read from; None = by the caches and what is free.
        cuda_library: stands in for the CUDA driver in tests.
    """
    progress = progress or NoProgress()
    start = time.perf_counter()
    cache_mib = last_level_cache_mib()
    wanted_mib = max(_AREA_MIB, _CACHE_TIMES * (cache_mib or 0.0))
    allowed_mib = min(wanted_mib, _RAM_SHARE * machine.ram_available_mib)
    size_mib = max(area_mib or allowed_mib, 2 * expert_mib)
    notes = []
    if cache_mib and size_mib < 4 * cache_mib:
        notes.append(f"only {size_mib:.0f} MiB could be read from, {cache_mib:.0f} MiB of which fit a cache")
    cores = machine.cpu.physical_cores
    if (busy := _load()) > _BUSY_SHARE * cores:
        notes.append(f"other programs were busy meanwhile (load {busy:.1f}): --again, when they are not")
    counts = thread_counts(cores)
    steps = 2 * len(counts) + 4
    progress.start("Measuring bandwidths", steps, "steps")
    area = new_area(int(size_mib * MIB), cores)
    reads = []
    for done, threads in enumerate(counts):
        progress.update(2 * done, note=f"CPU, {threads} threads, in order")
        streamed = streaming_gb_per_s(area, threads, seconds)
        progress.update(2 * done + 1, note=f"CPU, {threads} threads, experts")
        random = expert_reads_gb_per_s(area, threads, int(expert_mib * MIB), seconds)
        reads.append(CpuReads(threads=threads, streaming_gb_per_s=streamed, expert_reads_gb_per_s=random))
    progress.update(2 * len(counts), note="GPU")
    copies, reason = _gpu_copies(machine, gpu, area, reads, expert_mib, seconds, cuda_library)
    took = time.perf_counter() - start
    progress.finish()
    return MachineBandwidths(
        revision=REVISION,
        fingerprint=fingerprint(machine, gpu, expert_mib),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=took,
        expert_mib=expert_mib,
        area_mib=mib(area.nbytes),
        last_level_cache_mib=cache_mib,
        cpu=tuple(reads),
        gpu=copies,
        gpu_reason=reason,
        notes=tuple(notes),
    )


def thread_counts(cores: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of physical cores."""
    counts = [1]
    while counts[-1] * 2 < cores:
        counts.append(counts[-1] * 2)
    return counts if cores <= 1 else [*counts, cores]


def last_level_cache_mib(root: Path = _ROOT) -> float | None:
    """Return all last-level caches of the machine together, MiB; None where the system does not say."""
    largest: dict[str, tuple[int, float]] = {}
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"):
        level, size = read_text(folder / "level"), read_text(folder / "size")
        shared = (read_text(folder / "shared_cpu_list") or "").strip()
        with suppress(ValueError):
            found = int(level or ""), mib(parse_size((size or "").strip()))
            largest[shared] = max(largest.get(shared, found), found)
    if not largest:
        return None
    top = max(level for level, _ in largest.values())
    return sum(size for level, size in largest.values() if level == top)


def _gpu_copies(
    machine: Machine,
    gpu: Gpu | None,
    area: Words,
    reads: list[CpuReads],
    expert_mib: float,
    seconds: float,
    library: Any,
) -> tuple[GpuCopies | None, str]:
    chosen = _real(machine, gpu)
    if chosen is None:
        return None, " ".join(machine.notes) or "no GPU"
    best = max(reads, key=lambda one: one.expert_reads_gb_per_s)
    try:
        with opened(chosen.uuid, library) as cuda:
            return _copies(cuda, chosen, area, best.threads, int(expert_mib * MIB), seconds), ""
    except CudaUnavailable as error:
        return None, str(error)


def _copies(cuda: Cuda, gpu: Gpu, area: Words, threads: int, expert_bytes: int, seconds: float) -> GpuCopies:
    pinned_bytes = int(min(_PINNED_MIB * MIB, area.nbytes))
    # Large pieces: Python must not be what limits the copies while the readers want its lock, too.
    piece_bytes = min(max(expert_bytes, _PIECE_BYTES), pinned_bytes)
    hbm_bytes = int(min(_HBM_MIB, max(1.0, gpu.vram_free_mib / 8)) * MIB)
    unpinned = h2d_unpinned_gb_per_s(cuda, pinned_bytes, piece_bytes, seconds)
    hbm = hbm_copy_gb_per_s(cuda, hbm_bytes, seconds)
    with pinned_copies(cuda, pinned_bytes, piece_bytes) as copy:
        alone = median(lambda: copy(seconds))
        with reading(area, threads, expert_bytes) as rate:
            copy(seconds)
            rate()  # from here on both are at it
            pcie = median(lambda: copy(seconds))
            cpu = rate()
    return GpuCopies(
        gpu=gpu.name,
        pcie_h2d_gb_per_s=alone,
        pcie_h2d_unpinned_gb_per_s=unpinned,
        hbm_gb_per_s=hbm,
        overlap_threads=threads,
        pcie_overlapped_gb_per_s=pcie,
        cpu_overlapped_gb_per_s=cpu,
    )


def _load() -> float:
    """Return how many threads wanted to run, mean of the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def _real(machine: Machine, gpu: Gpu | None) -> Gpu | None:
    if gpu is not None:
        return None if gpu.virtual else gpu
    return next((one for one in machine.gpus if not one.virtual), None)


def _path(machine: Machine, cache_dir: Path, gpu: Gpu | None, expert_mib: float) -> Path:
    return cache_dir / "machine" / f"bandwidth-{fingerprint(machine, gpu, expert_mib)}.json"
