"""What this machine is inside of: numbers from a container, WSL or a guest are told apart in reports."""

from __future__ import annotations

from pathlib import Path

from hottune.machine.cpu import read_text

_ROOT = Path("/")
_CGROUP_WORDS = ("docker", "kubepods", "containerd", "libpod", "lxc")


def confinement(root: Path = _ROOT) -> str:
    """Return 'WSL', 'container', 'virtual machine', or several of them; "" when nothing shows.

    Signs, not proof: the kernel's name (WSL), files that container engines leave (`/.dockerenv`,
    `/run/.containerenv`), the first process's cgroup, and the processor's `hypervisor` flag.
    """
    found = []
    release = read_text(root / "proc/sys/kernel/osrelease") or ""
    if "microsoft" in release.lower():
        found.append("WSL")
    cgroup = read_text(root / "proc/1/cgroup") or ""
    marked = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    if marked or any(word in cgroup for word in _CGROUP_WORDS):
        found.append("container")
    if "WSL" not in found and _is_guest(root):
        found.append("virtual machine")
    return ", ".join(found)


def _is_guest(root: Path) -> bool:
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return "hypervisor" in value.split()
    return False
