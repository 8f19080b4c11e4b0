"""What fits under a ceiling: 10 layers of 100 experts of 1 MiB, beside 500 MiB of all-cpu."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_rows import BASE_MIB, SHAPE, answer, counters, measured, options, setting

from bench.device.cells import Cell
from bench.device.room import Learnt, Room, next_try
from hottune.outcomes import OutOfMemory, Rejected
from hottune.placement import Placement
from hottune.report.schema import ArmName


def room(percent: float) -> Room:
    return Room(SHAPE, BASE_MIB, percent)


def first(
    folder: Path, arm: ArmName, percent: float, *arguments: str, learnt: Learnt | None = None
) -> Placement:
    settings = setting(options(folder, *arguments), None).placements  # type: ignore[arg-type]
    found = settings.first(Cell(arm, percent, 2048, 8), room(percent), learnt or Learnt())
    assert isinstance(found, Placement), found
    return found


def test_the_ceiling_is_what_all_cpu_takes_and_a_share_of_the_experts() -> None:
    assert room(25).ceiling_mib == 750
    assert room(25).free_mib == 250


@pytest.mark.parametrize(("free_mib", "on_cpu"), [(0, 10), (99, 10), (100, 9), (250, 8), (1000, 0)])
def test_whole_layers_are_taken_from_the_last_one_on(free_mib: float, on_cpu: int) -> None:
    assert room(25).layers_on_cpu(free_mib) == on_cpu


def test_slots_are_what_is_left_beside_the_stream_buffer(tmp_path: Path) -> None:
    assert first(tmp_path, "hot", 25, "--stream", "0").hot_k == 25
    assert first(tmp_path, "hot", 25).hot_k == 15
    assert first(tmp_path, "hot", 25, "--stream-layers", "2").hot_k == 5
    assert first(tmp_path, "hot", 100, "--stream", "0").hot_k == 100


def test_hot_and_layers_share_the_ceiling(tmp_path: Path) -> None:
    both = first(tmp_path, "hot+layers", 50, "--stream", "0")
    assert (both.n_cpu_moe, both.hot_k) == (8, 37)


def test_a_batch_is_never_smaller_than_its_ubatch(tmp_path: Path) -> None:
    settings = setting(options(tmp_path), None).placements  # type: ignore[arg-type]
    found = settings.first(Cell("layers", 25, 3072, 8), room(25), Learnt())
    assert isinstance(found, Placement)
    assert (found.ubatch, found.batch) == (3072, 3072)


def test_the_yardstick_keeps_two_layers_for_prompts(tmp_path: Path) -> None:
    found = first(tmp_path, "probe", 50)
    assert (found.hot_k, found.policy, found.stream_from) == (30, "window", 32)


def test_an_arm_without_room_is_rejected_and_says_why(tmp_path: Path) -> None:
    settings = setting(options(tmp_path), None).placements  # type: ignore[arg-type]
    for arm, percent in (("layers", 5), ("hot", 10), ("hot+layers", 10)):
        found = settings.first(Cell(arm, percent, 2048, 8), room(percent), Learnt())  # type: ignore[arg-type]
        assert isinstance(found, Rejected)
        assert found.detail


def test_what_was_measured_corrects_the_next_cells(tmp_path: Path) -> None:
    learnt = Learnt()
    hot = counters(15, stream_mib=200)
    one = Placement(n_cpu_moe=10, hot_k=15, threads=8, ubatch=2048)
    learnt.learn(SHAPE, BASE_MIB, one, "hot", measured(30, vram=BASE_MIB + 150 + 200 - 20, hot=hot))
    found = first(tmp_path, "hot", 50, learnt=learnt)
    assert found.hot_k == (500 - 200 + 20) // 10, "two layers of stream, and 20 MiB less than all-cpu beside"


def test_too_much_is_answered_with_less_and_room_with_one_layer_more(tmp_path: Path) -> None:
    layers, hot = Cell("layers", 25, 2048, 8), Cell("hot", 25, 2048, 8)
    one = first(tmp_path, "layers", 25)
    assert one.n_cpu_moe == 8
    oom = OutOfMemory(stage="load", detail="")
    after = next_try(layers, room(25), one, oom)
    assert after is not None
    assert after.n_cpu_moe == 9
    assert next_try(layers, room(25), one, answer(one)) is None
    fuller = next_try(layers, room(25), one, measured(20, vram=BASE_MIB + 120))
    assert fuller is not None
    assert fuller.n_cpu_moe == 7
    cache = first(tmp_path, "hot", 25)
    fewer = next_try(hot, room(25), cache, Rejected(detail="", vram_peak_mib=775))
    assert fewer is not None
    assert fewer.hot_k == cache.hot_k - 3
    after_oom = next_try(hot, room(25), cache, oom)
    assert after_oom is not None
    assert after_oom.hot_k == cache.hot_k - 3
