"""Bandwidths: really measured on this CPU, on a made-up CUDA driver, and kept in the cache folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_cuda import UUID, FakeCuda
from typer.testing import CliRunner

from hottune.cli.app import app
from hottune.machine import bandwidth
from hottune.machine.bandwidth import (
    MachineBandwidths,
    bandwidths,
    fingerprint,
    known_bandwidths,
    last_level_cache_mib,
    measure,
    thread_counts,
)
from hottune.machine.cuda_driver import CudaUnavailable, opened
from hottune.machine.facts import Cpu, Gpu, Machine
from hottune.machine.probe import virtual_gpu

GPU = Gpu(index=0, name="NVIDIA Test", uuid=UUID, vram_total_mib=24576, vram_free_mib=64, driver="570.12")
RELEASED_BY = (
    "cuMemAlloc_v2",
    "cuMemHostAlloc",
    "cuStreamCreate",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuStreamSynchronize",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2",
)


def a_machine(*gpus: Gpu, cores: int = 2, free_mib: float = 4096) -> Machine:
    cpu = Cpu(name="Test CPU", physical_cores=cores, logical_cores=cores, features=())
    return Machine(
        system="Linux", cpu=cpu, ram_total_mib=8192, ram_available_mib=free_mib, gpus=gpus, notes=()
    )


def quickly(machine: Machine, library: FakeCuda | None = None, area_mib: float = 64) -> MachineBandwidths:
    return measure(machine, seconds=0.02, area_mib=area_mib, expert_mib=1, cuda_library=library)


def test_this_machines_memory_is_read_at_a_believable_speed() -> None:
    found = measure(a_machine(), seconds=0.05, area_mib=256)
    assert [row.threads for row in found.cpu] == [1, 2]
    for row in found.cpu:
        assert 0.5 < row.streaming_gb_per_s < 5000
        assert 0.5 < row.expert_reads_gb_per_s < 5000
    assert found.cpu_gb_per_s == max(row.expert_reads_gb_per_s for row in found.cpu)
    assert found.area_mib == 256


def test_a_machine_without_a_gpu_says_why_there_are_no_copies() -> None:
    found = quickly(a_machine().model_copy(update={"notes": ("no NVIDIA GPU found: none",)}))
    assert found.gpu is None
    assert "no NVIDIA GPU found" in found.gpu_reason


def test_a_virtual_gpu_has_no_bandwidth() -> None:
    assert quickly(a_machine(virtual_gpu(64)), FakeCuda()).gpu is None


def test_copies_are_timed_and_everything_is_released() -> None:
    driver = FakeCuda()
    found = quickly(a_machine(GPU), driver).gpu
    assert found is not None
    assert driver.held == []
    assert set(driver.copied) == {"pinned", "unpinned", "hbm"}
    assert found.gpu == "NVIDIA Test"
    assert min(found.pcie_h2d_gb_per_s, found.pcie_h2d_unpinned_gb_per_s, found.hbm_gb_per_s) > 0
    assert found.cpu_overlapped_gb_per_s > 0.1  # the readers really ran meanwhile
    assert found.pcie_overlapped_gb_per_s > 0


@pytest.mark.parametrize("name", RELEASED_BY)
def test_a_function_that_fails_is_named_and_leaves_nothing_held(name: str) -> None:
    driver = FakeCuda(fails=name)
    found = quickly(a_machine(GPU), driver)
    assert found.gpu is None
    assert name in found.gpu_reason
    assert "made to fail (2)" in found.gpu_reason
    assert driver.held == []
    assert found.cpu, "what the CPU reads is known all the same"


@pytest.mark.parametrize("name", ["cuMemFree_v2", "cuStreamDestroy_v2", "cuMemFreeHost"])
def test_a_release_that_fails_is_an_error_too(name: str) -> None:
    assert name in quickly(a_machine(GPU), FakeCuda(fails=name)).gpu_reason


def test_a_driver_that_is_too_old_is_said_so() -> None:
    assert "too old" in quickly(a_machine(GPU), FakeCuda(lacks="cuMemHostAlloc")).gpu_reason


def test_a_context_in_use_keeps_its_flags_and_is_measured_all_the_same() -> None:
    assert quickly(a_machine(GPU), FakeCuda(fails="cuDevicePrimaryCtxSetFlags_v2", code=708)).gpu


def test_the_gpu_is_found_by_its_uuid_and_a_hidden_one_is_an_error() -> None:
    with opened(UUID, FakeCuda()) as cuda:
        cuda.call("cuStreamSynchronize", None)
    with pytest.raises(CudaUnavailable, match="GPU-ffff"), opened("GPU-ffff", FakeCuda()):
        pass
    with pytest.raises(CudaUnavailable, match="no GPU"), opened("", FakeCuda(gpus=0)):
        pass


def test_no_driver_library_is_a_normal_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hottune.machine.cuda_driver._LIBRARY", "libcuda-that-is-not-here.so.1")
    assert "no CUDA driver library" in quickly(a_machine(GPU)).gpu_reason


def test_measured_once_then_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(machine: Machine, **options: object) -> MachineBandwidths:
        calls.append(options)
        return measure(machine, seconds=0.01, area_mib=16)

    monkeypatch.setattr(bandwidth, "measure", counted)
    here = a_machine()
    assert known_bandwidths(here, tmp_path) is None
    first = bandwidths(here, tmp_path)
    assert bandwidths(here, tmp_path) == first == known_bandwidths(here, tmp_path)
    assert len(calls) == 1
    assert bandwidths(here, tmp_path, again=True).measured_at >= first.measured_at
    assert len(calls) == 2
    (kept,) = (tmp_path / "machine").iterdir()
    for damage in ("", "{", '{"cpu": []}', "\udcff"):
        kept.write_text(damage, encoding="utf-8", errors="surrogateescape")
        assert known_bandwidths(here, tmp_path) is None


def test_another_machine_has_another_fingerprint_but_free_memory_and_link_do_not_matter() -> None:
    here = a_machine(GPU)
    same = a_machine(GPU.model_copy(update={"pcie": "gen1 x16", "vram_free_mib": 3}), free_mib=10)
    assert fingerprint(here) == fingerprint(same)
    others = [
        a_machine(),
        a_machine(GPU, cores=4),
        a_machine(GPU.model_copy(update={"driver": "580"})),
    ]
    assert len({fingerprint(one) for one in (here, *others)}) == 4
    assert fingerprint(here) != fingerprint(here, expert_mib=0.5)


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_threads_double_up_to_the_cores(cores: int, counts: list[int]) -> None:
    assert thread_counts(cores) == counts


def test_last_level_caches_are_added_up_once_each(tmp_path: Path) -> None:
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        for index, (level, size, of) in enumerate(((1, "32K", str(cpu)), (3, "32768K", shared))):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{of}\n")
    assert last_level_cache_mib(tmp_path) == 64
    assert last_level_cache_mib(tmp_path / "nothing") is None


def test_a_small_memory_is_not_filled_and_the_note_says_what_that_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bandwidth, "last_level_cache_mib", lambda: 32.0)
    found = measure(a_machine(free_mib=256), seconds=0.01)
    assert found.area_mib == 64
    assert "32 MiB of which fit a cache" in found.notes[0]


@pytest.mark.parametrize(("load", "said"), [(1.5, True), (0.1, False)])
def test_a_busy_machine_is_noted(load: float, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    notes = quickly(a_machine()).notes
    assert any("load 1.5" in note for note in notes) is said


class TestCommand:
    @pytest.fixture(autouse=True)
    def quick(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path))
        monkeypatch.setattr(
            bandwidth, "measure", lambda machine, **options: measure(machine, seconds=0.01, area_mib=16)
        )

    def call(self, *arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["machine", *arguments])
        assert result.exit_code == code, result.output
        return result.stdout

    def test_it_measures_only_when_asked(self) -> None:
        assert json.loads(self.call("--json"))["bandwidths"] is None
        assert "hottune machine --bandwidth" in self.call()
        measured = json.loads(self.call("--bandwidth", "--json"))["bandwidths"]
        assert measured["cpu"][0]["streaming_gb_per_s"] > 0.5
        assert json.loads(self.call("--json"))["bandwidths"] == measured

    def test_people_see_a_table(self) -> None:
        shown = self.call("--bandwidth")
        assert "Threads" in shown
        assert "GPU copies" in shown or "PCIe to the GPU" in shown

    @pytest.mark.parametrize(
        "arguments", [["--expert-size", "2GiB"], ["--expert-size", "x"], ["--gpu", "99"]]
    )
    def test_senseless_options_are_bad_settings(self, arguments: list[str]) -> None:
        assert json.loads(self.call(*arguments, "--json", code=42))["error"]["type"] == "BadSettingError"
