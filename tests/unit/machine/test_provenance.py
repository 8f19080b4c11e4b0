"""Facts about a machine that reports carry, from laid-out system folders."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hottune.machine.confinement import confinement
from hottune.machine.cpu import probe_cpu, usable_cpus
from hottune.machine.modules import ram_speed


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def device(size: int = 16384, kind: int = 0x22, speed: int = 6400, configured: int | None = 5600) -> bytes:
    """One SMBIOS memory device with its strings, as firmware writes it."""
    length = 0x22 if configured is not None else 0x1B
    body = bytearray(length)
    body[0], body[1] = 17, length
    struct.pack_into("<H", body, 0x0C, size)
    body[0x12] = kind
    struct.pack_into("<H", body, 0x15, speed)
    if configured is not None:
        struct.pack_into("<H", body, 0x20, configured)
    return bytes(body) + b"DIMM 0\0Maker\0\0"


BIOS = bytes([0, 4, 0, 0]) + b"Vendor\0\0"
END = bytes([127, 4, 0, 0]) + b"\0\0"


def tables(root: Path, *structures: bytes) -> Path:
    path = root / "sys/firmware/dmi/tables/DMI"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(structures))
    return root


def test_memory_modules_are_told_with_the_speed_they_run_at(tmp_path: Path) -> None:
    root = tables(tmp_path, BIOS, device(), device(size=0), device(), END, device(kind=0x1A))
    assert ram_speed(root) == "2 x DDR5 at 5600 MT/s"


def test_an_old_firmware_tells_only_the_modules_own_speed(tmp_path: Path) -> None:
    assert ram_speed(tables(tmp_path, device(kind=0x1A, speed=3200, configured=None))) == (
        "1 x DDR4 at 3200 MT/s"
    )


@pytest.mark.parametrize(
    "structures",
    [(b"",), (b"\x11",), (bytes([17, 2, 0, 0]),), (device(speed=0, configured=0),), (device()[:20],)],
)
def test_tables_that_make_no_sense_are_no_answer(tmp_path: Path, structures: tuple[bytes, ...]) -> None:
    assert ram_speed(tables(tmp_path, *structures)) == ""


def test_tables_that_only_root_may_read_are_no_answer(tmp_path: Path) -> None:
    assert ram_speed(tmp_path) == ""


def test_the_governor_is_that_of_the_cpus_in_use(tmp_path: Path) -> None:
    usable = sorted(usable_cpus())
    for cpu in usable:
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave\n")
    write(tmp_path / "sys/devices/system/cpu/cpu9999/cpufreq/scaling_governor", "ondemand\n")
    for node in (0, 1):
        write(tmp_path / f"sys/devices/system/node/node{node}/cpulist", "0\n")
    cpu = probe_cpu(tmp_path)
    assert (cpu.governor, cpu.numa_nodes) == ("powersave", 2)
    first = tmp_path / f"sys/devices/system/cpu/cpu{usable[0]}/cpufreq/scaling_governor"
    write(first, "performance\n")
    wanted = "performance, powersave" if len(usable) > 1 else "performance"
    assert probe_cpu(tmp_path).governor == wanted


def test_a_machine_without_these_files_tells_neither(tmp_path: Path) -> None:
    cpu = probe_cpu(tmp_path)
    assert (cpu.governor, cpu.numa_nodes) == ("", None)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, ""),
        ({"proc/cpuinfo": "flags : fpu sse2\n"}, ""),
        ({"proc/cpuinfo": "flags : fpu hypervisor\n"}, "virtual machine"),
        ({".dockerenv": ""}, "container"),
        (
            {"proc/1/cgroup": "0::/kubepods/x\n", "proc/cpuinfo": "flags : hypervisor\n"},
            "container, virtual machine",
        ),
        (
            {
                "proc/sys/kernel/osrelease": "5.15.0-microsoft-standard-WSL2\n",
                "proc/cpuinfo": "flags : hypervisor\n",
            },
            "WSL",
        ),
    ],
)
def test_what_the_machine_is_inside_of_shows_in_its_files(
    tmp_path: Path, files: dict[str, str], wanted: str
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    assert confinement(tmp_path) == wanted
