"""The processor: name, cores this process may use, and instruction sets in ggml's own words.

Everything is read from `/proc` and `/sys` below a `root` folder, so that tests can lay out another machine.
Where those files do not exist (other systems) the answers get coarser, never an exception.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from hottune.machine.facts import Cpu

#: ggml's CMake option for each instruction set, and the Linux CPU flags that must all be there for it.
#: (ggml's AVX512 switches on five extensions at once.)
_GGML_OPTIONS: dict[str, tuple[str, ...]] = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX2": ("avx2",),
    "GGML_BMI2": ("bmi2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
    "GGML_AMX_TILE": ("amx_tile",),
    "GGML_AMX_INT8": ("amx_int8",),
    "GGML_AMX_BF16": ("amx_bf16",),
}
_X86_FEATURES = tuple(flag for flags in _GGML_OPTIONS.values() for flag in flags)
_ARM_FEATURES = ("asimd", "asimdhp", "asimddp", "i8mm", "sve", "sve2", "bf16", "sme")
_ROOT = Path("/")


def instruction_sets(root: Path = _ROOT) -> dict[str, bool]:
    """Return ggml's CMake options for this x86 processor: `{"GGML_AVX2": True, "GGML_AMX_INT8": False, ...}`.

    Empty where the flags cannot be read or the processor is not x86: then only ggml's own native detection
    (`GGML_NATIVE=ON`) can choose.
    """
    flags = _flags(root)
    if "sse2" not in flags:
        return {}
    return {option: all(flag in flags for flag in needed) for option, needed in _GGML_OPTIONS.items()}


def probe_cpu(root: Path = _ROOT) -> Cpu:
    """Return the processor's name, usable cores and features."""
    usable = usable_cpus()
    flags = _flags(root)
    return Cpu(
        name=_name(root),
        physical_cores=_physical_cores(usable, root),
        logical_cores=len(usable),
        features=tuple(name for name in _X86_FEATURES + _ARM_FEATURES if name in flags),
        governor=_governor(usable, root),
        numa_nodes=len(list(root.glob("sys/devices/system/node/node[0-9]*"))) or None,
    )


def _governor(usable: set[int], root: Path) -> str:
    """Return the frequency governor of the usable CPUs, or several, sorted; "" where none is told."""
    folder = root / "sys/devices/system/cpu"
    found = {(read_text(folder / f"cpu{cpu}/cpufreq/scaling_governor") or "").strip() for cpu in usable}
    return ", ".join(sorted(found - {""}))


def usable_cpus() -> set[int]:
    """Return the numbers of the logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(usable: set[int], root: Path) -> int:
    """Count the cores behind the usable logical CPUs, within a container's CPU quota."""
    cores = {_core_of(cpu, root) for cpu in usable}
    if None in cores:  # no topology files: believe psutil, which knows other systems
        counted = min(psutil.cpu_count(logical=False) or len(usable), len(usable))
    else:
        counted = len(cores)
    quota = _cpu_quota(root)
    return max(1, counted if quota is None else min(counted, int(quota)))


def _core_of(cpu: int, root: Path) -> tuple[str, str] | None:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    package, core = read_text(topology / "physical_package_id"), read_text(topology / "core_id")
    return None if package is None or core is None else (package.strip(), core.strip())


def _cpu_quota(root: Path) -> float | None:
    """Return the cgroup's CPU quota in CPUs, or None when there is none."""
    unified = read_text(root / "sys/fs/cgroup/cpu.max")
    if unified is not None:
        limit, _, period = unified.strip().partition(" ")
    else:
        limit = (read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "").strip()
        period = (read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us") or "").strip()
    try:
        quota = float(limit) / float(period)
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None
    return quota if quota > 0 else None


def _name(root: Path) -> str:
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _flags(root: Path) -> frozenset[str]:
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def read_text(path: Path) -> str | None:
    """Return a small system file's text, or None when it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
