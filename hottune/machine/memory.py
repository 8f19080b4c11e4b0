"""Host memory that this process may use: the machine's, or less inside a container."""

from __future__ import annotations

from pathlib import Path

import psutil

from hottune.machine.cpu import read_text
from hottune.units import mib

_ROOT = Path("/")


def host_memory_mib(root: Path = _ROOT) -> tuple[float, float]:
    """Return (total, available) host memory in MiB, the tightest cgroup limit respected."""
    machine = psutil.virtual_memory()
    total, available = float(machine.total), float(machine.available)
    for folder in _cgroup_folders(root):
        limit, free = _limit_of(folder)
        if limit is not None and limit < total:
            total = limit
        if free is not None:
            available = min(available, free)
    return mib(total), mib(min(available, total))


def _cgroup_folders(root: Path) -> list[Path]:
    """Return this process's memory cgroup and all its parents (a limit may sit on any of them)."""
    folders: list[Path] = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        folder = top / path.lstrip("/")
        folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]
    return folders


def _limit_of(folder: Path) -> tuple[float | None, float | None]:
    """Return (limit, free below it) of one cgroup in bytes; cache that can be dropped counts as free."""
    for limit_name, usage_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(read_text(folder / limit_name))
        if limit is None:
            continue
        usage = _number(read_text(folder / usage_name))
        if usage is None:
            return limit, None
        cache = 0.0
        for line in (read_text(folder / "memory.stat") or "").splitlines():
            key, _, value = line.partition(" ")
            if key == cache_name:
                cache = _number(value) or 0.0
        return limit, max(0.0, limit - max(0.0, usage - cache))
    return None, None


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").strip())
    except ValueError:  # "max": no limit
        return None
