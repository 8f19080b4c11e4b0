"""From replicates to rows, from rows to a result file, and from an earlier file back to replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from bench.device.cells import Cell
from bench.device.compare import compared
from bench.device.options import ARMS
from hottune.errors import BadSettingError
from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.report.schema import Arm, Replicate, Report
from hottune.report.schema import Cell as CellFacts
from hottune.routing.bound import Bandwidths
from hottune.tasks.roofline import decode_bound
from hottune.workload.summary import same_text

#: What must be equal for rows of an earlier sitting to stand beside new ones.
_SHARED = ("kv_type_k", "kv_type_v", "context", "load_mode", "spec_type", "parallel")
_CACHED = ("policy", "stream_from", "rebalance_interval", "prefill_bypass")


@dataclass
class Measured:
    """A cell's placement and what its servers ended as so far."""

    placement: Placement
    ceiling_mib: float
    replicates: list[Replicate] = field(default_factory=list)
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> list[Measurement]:
        """The outcomes that are measurements."""
        return [one.outcome for one in self.replicates if isinstance(one.outcome, Measurement)]

    def done(self, rounds: int) -> bool:
        """Tell whether no server is missing; what failed once is not tried in every round."""
        return len(self.replicates) >= rounds or len(self.found) < len(self.replicates)


def rows(measured: Mapping[Cell, Measured], model: Report, bandwidths: Bandwidths | None) -> list[Arm]:
    """Return the table's rows, compared with the best static ones, in the order of `measured`."""
    all_cpu = [one.found[0] for cell, one in measured.items() if cell.arm == "all-cpu" and one.found]
    first = all_cpu[0] if all_cpu else None
    plain = [_row(cell, one, model, bandwidths, first) for cell, one in measured.items() if one.replicates]
    return compared(plain)


def _row(
    cell: Cell, one: Measured, report: Report, bandwidths: Bandwidths | None, all_cpu: Measurement | None
) -> Arm:
    facts = CellFacts(ceiling_percent=cell.percent, ceiling_mib=one.ceiling_mib)
    arm = Arm(
        name=cell.arm,
        placement=one.placement,
        argv=one.argv,
        env=one.env,
        outcome="measurement",
        replicates=one.replicates,
        cell=facts,
    )
    found = one.found
    if not found:
        ended: Outcome = one.replicates[-1].outcome
        return arm.model_copy(update={"outcome": ended.kind, "detail": getattr(ended, "detail", "")})
    hits = [each.hit_rate for each in found if each.hit_rate is not None]
    decode_tok_s = fmean(each.decode_tok_s for each in found)
    known = None if cell.arm == "probe" else bandwidths  # where its hits are, the probe does not tell
    bound = decode_bound(report.model.shape, one.placement, found, report.workload, known)
    if bound is not None:
        update = {"bound_decode_tok_s": bound, "bound_share": decode_tok_s / bound}
        facts = facts.model_copy(update=update)
    return arm.model_copy(
        update={
            "decode_tok_s": decode_tok_s,
            "prefill_tok_s": fmean(each.prefill_tok_s for each in found),
            "ttft_ms": fmean(each.ttft_ms for each in found),
            "turn_s": fmean(each.turn_s for each in found),
            "vram_peak_mib": max(each.vram_peak_mib for each in found),
            "vram_source": found[0].vram_source,
            "hit_rate": fmean(hits) if hits else None,
            "text_equal": all_cpu and all(same_text(each.requests, all_cpu.requests) for each in found),
            "cell": facts,
        }
    )


def cell_of(arm: Arm) -> Cell:
    """Return the cell that a row of an earlier result belongs to."""
    assert arm.cell is not None
    return Cell(arm.name, arm.cell.ceiling_percent, arm.placement.ubatch, arm.placement.threads)


def taken_over(
    earlier: Report, now: Report, base: Placement, hot: Mapping[str, object]
) -> dict[Cell, Measured]:
    """Return the measured cells of an earlier sitting; those that failed are left out, to be tried again.

    Raises:
        BadSettingError: it is of another model, machine, llama.cpp or workload, or its rows have other
            settings.
    """
    facts = {
        "model": (earlier.model.fingerprint, now.model.fingerprint),
        "processor": (earlier.machine.cpu.name, now.machine.cpu.name),
        "GPU": (_gpu(earlier), _gpu(now)),
        "llama.cpp": (_build(earlier), _build(now)),
        "workload": (earlier.workload.sha256, now.workload.sha256),
    }
    differ = [name for name, (one, other) in facts.items() if one != other]
    kept: dict[Cell, Measured] = {}
    for arm in earlier.arms:
        if arm.cell is None:
            raise BadSettingError("--add: that is no result of this benchmark.")
        if arm.outcome != "measurement":
            continue
        mine = arm.placement.model_dump(include=set(_SHARED + _CACHED))
        wanted = base.model_copy(update=dict(hot)).model_dump(include=set(_SHARED + _CACHED))
        names = _SHARED + (_CACHED if arm.name in ("hot", "hot+layers") else ())
        differ += [f"{name} of {arm.name}" for name in names if mine[name] != wanted[name]]
        cell = cell_of(arm)
        kept[cell] = Measured(arm.placement, arm.cell.ceiling_mib, list(arm.replicates), arm.argv, arm.env)
    if differ:
        raise BadSettingError(
            f"--add: the earlier result differs in {', '.join(dict.fromkeys(differ))}.",
            "Numbers of different settings do not belong into one table.",
            "Give the options of the earlier sitting (they stand in the file), or begin a new file.",
        )
    return kept


def _gpu(report: Report) -> list[str]:
    return [gpu.name for gpu in report.machine.gpus]


def _build(report: Report) -> tuple[str, str]:
    return report.engine.llama_build, report.engine.backend.value


def write(text: str, path: Path) -> None:
    """Write a file so that it is, at any moment, the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def sorted_cells(measured: Mapping[Cell, Measured], threads: Sequence[int]) -> dict[Cell, Measured]:
    """Return what was measured in the order of the table: first number of threads first, then by ceiling."""

    def place(cell: Cell) -> tuple[object, ...]:
        rank = threads.index(cell.threads) if cell.threads in threads else len(threads)
        return rank, cell.threads, cell.percent or 0.0, cell.ubatch, ARMS.index(cell.arm)

    return {cell: measured[cell] for cell in sorted(measured, key=place)}
