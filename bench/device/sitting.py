"""One sitting of a benchmark: cell after cell until all is measured or the time is up, written after each."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bench.device.cells import Cell, in_order, planned
from bench.device.results import Measured, rows, sorted_cells, taken_over, write
from bench.device.room import ATTEMPTS, Learnt, Room, next_try
from bench.device.setting import Setting
from bench.device.table import markdown
from hottune.outcomes import Measurement, Outcome, Rejected
from hottune.placement import Placement
from hottune.report.json_file import JsonRenderer, load
from hottune.report.schema import Replicate, Report, Trial
from hottune.tasks.measure import under_ceiling
from hottune.tasks.show import outcome_line
from hottune.units import format_seconds

#: How much longer than the longest server of its kind one may take.
_SLACK = 1.15
#: What ending a server takes, for cells of an earlier sitting, whose time was not kept.
_STOPPING_S = 5.0


@dataclass
class Pace:
    """How long cells take, to end in time."""

    budget_s: float | None
    started_s: float = field(default_factory=lambda: time.monotonic())
    seen_s: dict[Cell, float] = field(default_factory=dict)

    def elapsed_s(self) -> float:
        """Return seconds since the benchmark was started."""
        return time.monotonic() - self.started_s

    def estimate_s(self, cell: Cell) -> float:
        """Return the longest time of the cells most like this one: same arm and ubatch, same arm, any."""
        alike = [
            [s for one, s in self.seen_s.items() if (one.arm, one.ubatch) == (cell.arm, cell.ubatch)],
            [s for one, s in self.seen_s.items() if one.arm == cell.arm],
            list(self.seen_s.values()),
        ]
        return _SLACK * max(next((times for times in alike if times), [0.0]))

    def allows(self, cell: Cell) -> bool:
        """Tell whether one more server for this cell can end in time."""
        return self.budget_s is None or self.elapsed_s() + self.estimate_s(cell) <= self.budget_s


class OutOfTime(Exception):
    """The next server could not end in time."""


class Sitting:
    """Measures what is missing.

    Args:
        setting: what stays the same.
        pace: the time there is.
        say: shows one line.
    """

    def __init__(self, setting: Setting, pace: Pace, say: Callable[[str], None]) -> None:
        self.setting = setting
        self.pace = pace
        self.say = say
        options = setting.options
        self.cells = planned(options, setting.threads)
        self.measured: dict[Cell, Measured] = {}
        self.trials: list[Trial] = []
        self.before_s = 0.0
        self.learnt = Learnt()
        if options.add is not None:
            earlier = load(options.add)
            shared = setting.placements
            self.measured = taken_over(earlier, setting.frame, shared.base, shared.hot)
            self.trials, self.before_s = list(earlier.trials), earlier.seconds
            for cell, one in self.measured.items():
                for found in one.found:
                    self._learn(cell, one.placement, found)
                    turns_s = sum(request.turn_s for request in found.requests)
                    self.pace.seen_s[cell] = found.load_s + turns_s + _STOPPING_S

    def run(self) -> Report:
        """Measure until all is done or the time is up; return the result, which is written by then."""
        options = self.setting.options
        try:
            for number, group in in_order(self.cells, options.rounds, reuse=options.reuse):
                missing = [cell for cell in group if not self._done(cell, number)]
                kept = self.setting.bench.keeping() if len(missing) > 1 else nullcontext()
                with kept:
                    for cell in missing:
                        self._visit(cell, self._launch_ceiling_mib(missing))
        except OutOfTime as late:
            self.say(f"stopped: {late}")
        return self.save()

    def save(self) -> Report:
        """Write the result and its table, and return it."""
        ordered = sorted_cells(self.measured, self.setting.threads)
        found = rows(ordered, self.setting.frame, self.setting.bandwidths)
        report = self.setting.frame.model_copy(
            update={
                "arms": found,
                "trials": self.trials,
                "ceiling_mib": max(
                    (one.ceiling_mib for cell, one in ordered.items() if cell.percent), default=0.0
                ),
                "seconds": self.before_s + self.pace.elapsed_s(),
            }
        )
        write(JsonRenderer().render(report), self.setting.options.out)
        write(markdown(report), self.setting.options.out.with_suffix(".md"))
        return report

    # --- one cell ---

    def _done(self, cell: Cell, number: int) -> bool:
        return cell in self.measured and self.measured[cell].done(number + 1)

    def _visit(self, cell: Cell, launch_mib: float | None) -> None:
        """Measure one more replicate of a cell, with the placement it has or one that is found now."""
        started = time.monotonic()
        known = self.measured.get(cell)
        room = self._room(cell)
        if known is not None:
            placement, outcome = known.placement, self._measure(cell, room, known.placement, launch_mib)
        else:
            placement, outcome = self._settle(cell, room, launch_mib)
            argv, env = self.setting.as_run(cell.arm, placement, launch_mib or self._ceiling_mib(cell, room))
            known = Measured(placement, self._ceiling_mib(cell, room), argv=argv, env=env)
            self.measured[cell] = known
        if isinstance(outcome, Measurement):
            self._learn(cell, placement, outcome)
        position = sum(len(one.replicates) for one in self.measured.values())
        known.replicates.append(Replicate(position=position, started=datetime.now(UTC), outcome=outcome))
        self.save()
        seconds = time.monotonic() - started
        left = f"{format_seconds(self._left_s())} left"
        self.say(f"{cell}: {outcome_line(outcome)} ({format_seconds(seconds)}; {left})")

    def _left_s(self) -> float:
        """Return about how long what is missing will take, as long as the cells so far."""
        rounds = range(self.setting.options.rounds)
        missing = [cell for number in rounds for cell in self.cells if not self._done(cell, number)]
        return sum(self.pace.estimate_s(cell) for cell in missing)

    def _settle(self, cell: Cell, room: Room, launch_mib: float | None) -> tuple[Placement, Outcome]:
        """Find the placement that fills the ceiling without breaking it; return it with its outcome."""
        if cell.arm != "all-cpu" and room.base_mib == 0:
            first: Placement | Rejected = Rejected(detail="all-cpu was not measured: there is no ceiling")
        else:
            first = self.setting.placements.first(cell, room, self.learnt)
        if isinstance(first, Rejected):
            return self.setting.placements.base.model_copy(update=_of(cell)), first
        placement, outcome = first, self._measure(cell, room, first, launch_mib)
        for _ in range(ATTEMPTS - 1):
            other = next_try(cell, room, placement, outcome)
            if other is None or (isinstance(outcome, Measurement) and not self.pace.allows(cell)):
                break
            then = self._measure(cell, room, other, launch_mib)
            if isinstance(outcome, Measurement) and not isinstance(then, Measurement):
                self._note(cell, other, then)
                break  # the fuller one was too much
            self._note(cell, placement, outcome)
            placement, outcome = other, then
        return placement, outcome

    def _measure(self, cell: Cell, room: Room, placement: Placement, launch_mib: float | None) -> Outcome:
        if not self.pace.allows(cell):
            raise OutOfTime(f"{cell} may take {self.pace.estimate_s(cell):.0f} s")
        bench = self.setting.measures(cell.arm)
        if bench is None:
            return Rejected(detail="the yardstick needs a real GPU, for the virtual one is the device's")
        started = time.monotonic()
        ceiling_mib = self._ceiling_mib(cell, room)
        bench.ceiling_mib = launch_mib or ceiling_mib
        outcome = bench.measure(placement)
        self.pace.seen_s[cell] = time.monotonic() - started
        # A server that serves larger caches, too, was started under their ceiling.
        return under_ceiling(outcome, ceiling_mib)

    def _note(self, cell: Cell, placement: Placement, outcome: Outcome) -> None:
        """Keep what was tried on the way to a cell's placement."""
        self.trials.append(
            Trial(
                number=len(self.trials),
                arm=cell.arm,
                origin="grid",
                placement=placement,
                outcome=outcome,
                started=datetime.now(UTC),
                seconds=self.pace.seen_s.get(cell, 0.0),
            )
        )

    # --- ceilings ---

    def _all_cpu(self, ubatch: int) -> Measured | None:
        return self.measured.get(Cell("all-cpu", None, ubatch, self.setting.threads[0]))

    def _room(self, cell: Cell) -> Room:
        """Return the cell's room; all-cpu, measured first, says what is taken anyway."""
        one = self._all_cpu(cell.ubatch)
        base_mib = one.found[0].vram_peak_mib if one and one.found else 0.0
        return Room(self.setting.frame.model.shape, base_mib, cell.percent)

    def _ceiling_mib(self, cell: Cell, room: Room) -> float:
        return self.setting.gpu.vram_free_mib if cell.arm == "all-cpu" else room.ceiling_mib

    def _launch_ceiling_mib(self, group: list[Cell]) -> float | None:
        """Return the ceiling to start a server under that serves several cells: the largest of theirs."""
        return max(self._room(cell).ceiling_mib for cell in group) if len(group) > 1 else None

    def _learn(self, cell: Cell, placement: Placement, found: Measurement) -> None:
        room = self._room(cell)
        self.learnt.learn(room.shape, room.base_mib, placement, cell.arm, found)


def _of(cell: Cell) -> dict[str, object]:
    return {"ubatch": cell.ubatch, "threads": cell.threads}
