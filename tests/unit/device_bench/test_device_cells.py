"""Which cells a benchmark has, and in which order they are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_rows import options

from bench.device.cells import Cell, in_order, middle_ceiling, planned
from bench.device.options import parse


def names(cells: list[Cell]) -> list[str]:
    return [str(cell) for cell in cells]


def test_all_cpu_comes_first_for_it_settles_the_ceilings(tmp_path: Path) -> None:
    assert names(planned(options(tmp_path, "--arms", "hot"), [8]))[:3] == [
        "all-cpu ub 512 t 8",
        "all-cpu ub 2048 t 8",
        "hot 25 % ub 512 t 8",
    ]


def test_what_does_not_depend_on_the_ubatch_is_measured_at_the_largest_alone(tmp_path: Path) -> None:
    cells = planned(options(tmp_path), [8])
    assert {cell.ubatch for cell in cells if cell.arm in ("fit", "hot+layers")} == {2048}
    assert {cell.ubatch for cell in cells if cell.arm in ("layers", "hot")} == {512, 2048}
    every = planned(options(tmp_path, "--all-ubatches"), [8])
    assert {cell.ubatch for cell in every if cell.arm == "fit"} == {512, 2048}


def test_the_yardstick_is_left_out_when_there_is_no_file_of_it(tmp_path: Path) -> None:
    assert "probe" not in {cell.arm for cell in planned(options(tmp_path), [8])}
    source = tmp_path / "probe.cpp"
    source.touch()
    assert "probe" in {cell.arm for cell in planned(options(tmp_path, "--probe", str(source)), [8])}


def test_other_numbers_of_threads_get_two_arms_at_the_middle_ceiling(tmp_path: Path) -> None:
    cells = planned(options(tmp_path), [8, 16])
    assert names([cell for cell in cells if cell.threads == 16]) == [
        "layers 25 % ub 2048 t 16",
        "hot 25 % ub 2048 t 16",
    ]
    assert middle_ceiling([10, 17, 25, 35, 50]) == 25


def test_every_other_round_goes_backward(tmp_path: Path) -> None:
    cells = planned(options(tmp_path), [8])
    order = [(number, cell) for number, group in in_order(cells, 2, reuse=False) for cell in group]
    assert order == [(0, cell) for cell in cells] + [(1, cell) for cell in reversed(cells)]


def test_with_reuse_the_hot_cells_of_a_ubatch_stand_together_small_ceilings_first(tmp_path: Path) -> None:
    cells = planned(options(tmp_path), [8])
    groups = [group for _, group in in_order(cells, 1, reuse=True)]
    assert [names(group) for group in groups if len(group) > 1] == [
        ["hot 25 % ub 512 t 8", "hot 50 % ub 512 t 8"],
        ["hot 25 % ub 2048 t 8", "hot 50 % ub 2048 t 8"],
    ]
    assert sorted(map(str, cells)) == sorted(str(cell) for group in groups for cell in group)


@pytest.mark.parametrize(
    "wrong",
    [["--ceilings", "0"], ["--ceilings", "120"], ["--arms", "warm"], ["--rounds", "0"], ["--split", "1"]],
)
def test_options_without_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["demo", *wrong])
