from __future__ import annotations

from pathlib import Path

import pytest

from hottune.machine import cpu as cpu_module
from hottune.machine import memory
from hottune.machine.cpu import instruction_sets, probe_cpu

CPUINFO = """processor\t: 0
model name\t: Test CPU 9000
flags\t\t: fpu sse2 sse4_2 avx avx2 bmi2 fma f16c avx512f avx512cd avx512vl avx512dq {more}
"""


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(cores: list[tuple[int, int]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for cpu, (package, core) in enumerate(cores):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{folder}/physical_package_id"] = f"{package}\n"
        files[f"{folder}/core_id"] = f"{core}\n"
    return files


def use_cpus(monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> None:
    monkeypatch.setattr(cpu_module, "usable_cpus", lambda: numbers)


def test_instruction_sets_carry_ggmls_names_and_are_off_when_absent(tmp_path: Path) -> None:
    sets = instruction_sets(lay_out(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="avx512bw avx512_vnni")}))
    assert sets["GGML_AVX2"]
    assert sets["GGML_AVX512"]
    assert sets["GGML_AVX512_VNNI"]
    assert not sets["GGML_AVX512_BF16"]
    assert not sets["GGML_AMX_INT8"]


def test_avx512_needs_all_five_of_its_extensions(tmp_path: Path) -> None:
    sets = instruction_sets(lay_out(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="")}))  # no avx512bw
    assert not sets["GGML_AVX512"]


def test_where_flags_cannot_be_read_no_instruction_set_is_claimed(tmp_path: Path) -> None:
    assert instruction_sets(tmp_path) == {}


def test_hyper_threads_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_cpus(monkeypatch, {0, 1, 2, 3})
    root = lay_out(
        tmp_path,
        topology([(0, 0), (0, 1), (0, 0), (0, 1)]) | {"proc/cpuinfo": CPUINFO.format(more="")},
    )
    found = probe_cpu(root)
    assert (found.physical_cores, found.logical_cores) == (2, 4)
    assert found.name == "Test CPU 9000"
    assert "avx2" in found.features


def test_equal_core_numbers_on_two_sockets_are_two_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_cpus(monkeypatch, {0, 1})
    assert probe_cpu(lay_out(tmp_path, topology([(0, 0), (1, 0)]))).physical_cores == 2


def test_only_cpus_of_this_process_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_cpus(monkeypatch, {0, 2})
    root = lay_out(tmp_path, topology([(0, 0), (0, 1), (0, 2), (0, 3)]))
    found = probe_cpu(root)
    assert (found.physical_cores, found.logical_cores) == (2, 2)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_a_containers_cpu_quota_limits_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    use_cpus(monkeypatch, {0, 1, 2, 3})
    root = lay_out(tmp_path, topology([(0, 0), (0, 1), (0, 2), (0, 3)]) | files)
    assert probe_cpu(root).physical_cores == cores


def test_a_containers_memory_limit_counts_and_its_file_cache_is_free(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box/job\n",
            "sys/fs/cgroup/box/memory.max": str(512 * 1024**2),  # set on the parent
            "sys/fs/cgroup/box/memory.current": str(300 * 1024**2),
            "sys/fs/cgroup/box/memory.stat": f"anon 5\ninactive_file {200 * 1024**2}\n",
            "sys/fs/cgroup/box/job/memory.max": "max\n",
        },
    )
    assert memory.host_memory_mib(root) == (512, 412)


def test_the_older_cgroups_are_understood_too(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n",
            "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(256 * 1024**2),
            "sys/fs/cgroup/memory/x/memory.usage_in_bytes": str(56 * 1024**2),
        },
    )
    assert memory.host_memory_mib(root) == (256, 200)


def test_without_cgroups_the_machines_memory_is_the_answer(tmp_path: Path) -> None:
    total, available = memory.host_memory_mib(tmp_path)
    assert 0 < available <= total
