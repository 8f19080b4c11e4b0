"""Cells: what is measured, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.device.options import Options
from hottune.report.schema import ArmName


@dataclass(frozen=True)
class Cell:
    """One arm under one ceiling with one ubatch: a row of the table, and each round a fresh server."""

    arm: ArmName
    percent: float | None  #: ceiling, % of the expert bytes; None for all-cpu, which is the same under all
    ubatch: int
    threads: int

    def __str__(self) -> str:
        """Return a short name for progress lines."""
        ceiling = "" if self.percent is None else f" {self.percent:g} %"
        return f"{self.arm}{ceiling} ub {self.ubatch} t {self.threads}"


def planned(options: Options, threads: Sequence[int]) -> list[Cell]:
    """Return all cells of a benchmark, those first that others need: all-cpu settles the ceilings.

    Args:
        options: which arms, ceilings and ubatches.
        threads: the first is used for everything; each other one adds `layers` and `hot` at the middle
            ceiling and the largest ubatch.
    """
    largest, first = options.ubatches[-1], threads[0]
    cells = [Cell("all-cpu", None, ubatch, first) for ubatch in options.ubatches]
    for percent in options.ceilings:
        for ubatch in options.ubatches:
            cells += [
                Cell(arm, percent, ubatch, first)
                for arm in options.arms
                if arm != "all-cpu"
                and (arm != "probe" or options.probe is not None)
                and (arm in options.every_ubatch or ubatch == largest)
            ]
    middle = middle_ceiling(options.ceilings)
    for count in threads[1:]:
        cells += [Cell(arm, middle, largest, count) for arm in ("layers", "hot") if arm in options.arms]
    return cells


def middle_ceiling(ceilings: Sequence[float]) -> float:
    """Return the middle one (the lower of two) of ascending ceilings."""
    return ceilings[(len(ceilings) - 1) // 2]


def in_order(cells: Sequence[Cell], rounds: int, *, reuse: bool) -> Iterator[tuple[int, list[Cell]]]:
    """Yield (round, cells that one server may serve) in the order of measuring.

    Forward and backward in turn, so that a drift of the machine touches all alike. Without `reuse` every
    group is one cell. With it, the hot cells of a ubatch stand together, small ceilings first: VRAM that is
    taken for a larger cache must not count in a smaller one's peak.
    """
    sequence = list(cells)
    if reuse:
        first = {_group(cell): sequence.index(cell) for cell in reversed(sequence)}
        sequence.sort(key=lambda cell: first[_group(cell)])  # stable: ceilings stay ascending
    groups = [list(group) for _, group in groupby(sequence, _group if reuse else None)]
    for number in range(rounds):
        for group in groups if number % 2 == 0 else reversed(groups):
            yield number, group


def _group(cell: Cell) -> object:
    return (cell.arm, cell.ubatch, cell.threads) if cell.arm == "hot" else cell
