"""What the benchmark measures: every arm at every VRAM ceiling, as placements, in an interleaved order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.report.schema import ArmName
from hottune.units import mib

ARMS: tuple[ArmName, ...] = ("all-cpu", "layers", "fit", "probe", "hot", "hot+layers")
#: Layers whose experts the probe holds whole in VRAM while it works on a prompt (its source says so).
PROBE_LAYERS = 2
#: VRAM that our device takes beside slots and stream buffer, MiB: its streams, staging and scratch.
DEVICE_OVERHEAD_MIB = 64


@dataclass(frozen=True)
class Cell:
    """One arm under one ceiling at one ubatch."""

    percent: float  # of the expert bytes that may lie in VRAM beside what all-cpu takes
    arm: ArmName
    placement: Placement

    @property
    def key(self) -> str:
        """What tells it from every other cell of one model and machine."""
        p = self.placement
        words = [
            f"{self.percent:g}%",
            self.arm,
            f"ub{p.ubatch}",
            f"t{p.threads}",
            f"c{p.context}",
            p.kv_type_k,
        ]
        return " ".join([*words, *([p.spec_type] if p.spec_type != "none" else [])])


def whole_layers(shape: MoeShape, room_bytes: float) -> int:
    """Return the smallest `n_cpu_moe` that leaves no more than so many bytes of experts in VRAM."""
    for n_cpu_moe in range(shape.n_layers + 1):
        if sum(shape.layer_expert_bytes[n_cpu_moe:]) <= room_bytes:
            return n_cpu_moe
    return shape.n_layers


def slots(shape: MoeShape, n_cpu_moe: int, room_bytes: float) -> int:
    """Return how many experts of each of the first `n_cpu_moe` layers so many bytes hold."""
    one_of_each = sum(size // shape.n_experts for size in shape.layer_expert_bytes[:n_cpu_moe])
    return max(0, min(shape.n_experts, int(room_bytes / one_of_each))) if one_of_each else 0


def placement_of(
    shape: MoeShape, arm: ArmName, percent: float, base: Placement, overhead_mib: float
) -> Placement | None:
    """Return the arm's placement under a ceiling; None where it has none (no slot fits).

    Args:
        shape: the model's.
        arm: which.
        percent: of all expert bytes, what the arm may hold in VRAM.
        base: threads, ubatch, context and so on; its policy and `stream_from` are the cache's.
        overhead_mib: VRAM that the device takes beside slots and stream buffer.
    """
    total = sum(shape.layer_expert_bytes)
    room = total * percent / 100
    everything = shape.n_layers
    static = base.model_copy(update={"stream_from": 0})
    largest = max(shape.layer_expert_bytes)
    buffer = (largest if base.stream_from else 0) + overhead_mib * 2**20
    match arm:
        case "all-cpu":
            return static.model_copy(update={"n_cpu_moe": everything})
        case "layers":
            return static.model_copy(update={"n_cpu_moe": whole_layers(shape, room)})
        case "fit":
            return static.model_copy(update={"n_cpu_moe": everything, "fit": True})
        case "probe":
            k = slots(shape, everything, room - PROBE_LAYERS * largest)
            return static.model_copy(update={"n_cpu_moe": everything, "hot_k": k}) if k else None
        case "hot":
            k = slots(shape, everything, room - buffer)
            return base.model_copy(update={"n_cpu_moe": everything, "hot_k": k}) if k else None
        case "hot+layers":
            n_cpu_moe = whole_layers(shape, room / 2)
            k = slots(shape, n_cpu_moe, room - sum(shape.layer_expert_bytes[n_cpu_moe:]) - buffer)
            return base.model_copy(update={"n_cpu_moe": n_cpu_moe, "hot_k": k}) if k else None
    raise ValueError(arm)


def plan_cells(
    shape: MoeShape,
    arms: Sequence[ArmName],
    percents: Sequence[float],
    bases: Sequence[Placement],
    *,
    overhead_mib: float = DEVICE_OVERHEAD_MIB,
) -> list[Cell]:
    """Return all cells once: for each base (a ubatch) and ceiling all arms, one beside the other.

    The all-cpu arm is the same under every ceiling: it comes once for each base, first, with 0 per cent.
    """
    cells: list[Cell] = []
    for base in bases:
        for percent in (0.0, *percents):
            for arm in arms:
                if (arm == "all-cpu") != (percent == 0):
                    continue
                placement = placement_of(shape, arm, percent, base, overhead_mib)
                if placement is not None:
                    cells.append(Cell(percent, arm, placement))
    return cells


def ceiling_mib(shape: MoeShape, percent: float, all_cpu_peak_mib: float) -> float:
    """Return the VRAM ceiling of a cell, MiB: what all-cpu took, and the share of the experts."""
    return all_cpu_peak_mib + mib(sum(shape.layer_expert_bytes) * percent / 100)
