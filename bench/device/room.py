"""What fits under a ceiling: whole layers, slots of a cache, or both; corrected by what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.device import probe
from bench.device.cells import Cell
from hottune.models.shape import MoeShape
from hottune.outcomes import Measurement, Outcome, OutOfMemory, Rejected
from hottune.placement import Placement
from hottune.report.schema import ArmName
from hottune.units import mib

#: VRAM, MiB, that a plug-in takes beside slots and stream (streams, row buffers, kernels), until measured.
OVERHEAD_MIB = 64.0
#: Share of the slots that is given up after running out of memory, which does not say by how much.
OOM_SHARE = 0.15
#: Placements of a cell that are tried until one keeps to the ceiling, or fills it.
ATTEMPTS = 3


@dataclass
class Learnt:
    """What servers with a cache really took, by (is it the yardstick, ubatch); the largest seen, MiB."""

    overhead_mib: dict[tuple[bool, int], float] = field(default_factory=dict)
    stream_mib: dict[tuple[bool, int], float] = field(default_factory=dict)

    def learn(
        self, shape: MoeShape, base_mib: float, placement: Placement, arm: ArmName, one: Measurement
    ) -> None:
        """Read off a measurement what was neither all-cpu's, nor layers, slots or stream buffers.

        It can be negative: what llama.cpp keeps to bring experts to the GPU for large batches is in all-cpu's
        peak, and a device that does this itself does without.
        """
        hot = one.engagement.hot
        if hot is None:
            return
        key = (arm == "probe", placement.ubatch)
        whole = sum(shape.layer_expert_bytes[placement.n_cpu_moe :])
        known_mib = base_mib + mib(whole + hot.cache_bytes + hot.stream_buffer_bytes)
        found_mib = one.vram_peak_mib - known_mib
        self.overhead_mib[key] = max(found_mib, self.overhead_mib.get(key, found_mib))
        if hot.stream_buffer_bytes:
            self.stream_mib[key] = mib(hot.stream_buffer_bytes)


@dataclass(frozen=True)
class Room:
    """A ceiling, and what there is to put under it.

    Args:
        shape: of the model.
        base_mib: peak VRAM of all-cpu at the same ubatch.
        percent: of the expert bytes that may lie in VRAM beside that; None = all-cpu itself.
    """

    shape: MoeShape
    base_mib: float
    percent: float | None

    @property
    def ceiling_mib(self) -> float:
        """The ceiling, whole MiB."""
        share = (self.percent or 0) / 100
        return float(math.floor(self.base_mib + share * mib(self.shape.expert_bytes)))

    @property
    def free_mib(self) -> float:
        """What is left for experts."""
        return self.ceiling_mib - self.base_mib

    def layers_on_cpu(self, free_mib: float) -> int:
        """Return the smallest `n_cpu_moe` whose other layers' experts take no more than `free_mib`."""
        n_layers = self.shape.n_layers
        taken = 0.0
        for n_cpu_moe in range(n_layers, 0, -1):
            taken += mib(self.shape.layer_expert_bytes[n_cpu_moe - 1])
            if taken > free_mib:
                return n_cpu_moe
        return 0

    def slot_mib(self, n_cpu_moe: int) -> float:
        """Return what one more expert of each layer on the CPU takes."""
        on_cpu = self.shape.layer_expert_bytes[:n_cpu_moe]
        return mib(sum(layer // self.shape.n_experts for layer in on_cpu))

    def slots(self, n_cpu_moe: int, beside_mib: float) -> int:
        """Return how many experts of each layer on the CPU fit beside whole layers and `beside_mib`."""
        whole_mib = mib(sum(self.shape.layer_expert_bytes[n_cpu_moe:]))
        each_mib = self.slot_mib(n_cpu_moe)
        left_mib = self.free_mib - whole_mib - beside_mib
        return min(self.shape.n_experts, max(0, math.floor(left_mib / each_mib))) if each_mib else 0


@dataclass(frozen=True)
class Settings:
    """What all placements of a benchmark share, and how those with a cache are made."""

    base: Placement
    hot: Mapping[str, object]  #: fields of a placement with a cache
    stream_layers: int
    overhead_mib: float
    split: float

    def first(self, cell: Cell, room: Room, learnt: Learnt) -> Placement | Rejected:
        """Return the placement that should fill the ceiling, or why there is none."""
        shape = room.shape
        plain = self.base.model_copy(
            update={
                "n_cpu_moe": shape.n_layers,
                "ubatch": cell.ubatch,
                "batch": max(self.base.batch, cell.ubatch),
                "threads": cell.threads,
            }
        )
        n_cpu_moe = shape.n_layers
        match cell.arm:
            case "all-cpu":
                return plain
            case "fit":
                return plain.model_copy(update={"fit": True})
            case "layers":
                n_cpu_moe = room.layers_on_cpu(room.free_mib)
                if n_cpu_moe == shape.n_layers:
                    return Rejected(detail="not one layer's experts fit under the ceiling")
                return plain.model_copy(update={"n_cpu_moe": n_cpu_moe})
            case "hot+layers":
                n_cpu_moe = room.layers_on_cpu(self.split * room.free_mib)
                if n_cpu_moe in (0, shape.n_layers):
                    return Rejected(detail="its share of the ceiling holds no layer's experts, or all")
        beside_mib = self._stream_mib(cell, shape, n_cpu_moe, learnt)
        beside_mib += learnt.overhead_mib.get((cell.arm == "probe", cell.ubatch), self.overhead_mib)
        hot_k = room.slots(n_cpu_moe, beside_mib)
        if hot_k == 0:
            return Rejected(detail=f"no slot fits beside {beside_mib:.0f} MiB of the plug-in's own")
        hot = probe.PLACEMENT if cell.arm == "probe" else self.hot
        return plain.model_copy(update={**hot, "n_cpu_moe": n_cpu_moe, "hot_k": hot_k})

    def _stream_mib(self, cell: Cell, shape: MoeShape, n_cpu_moe: int, learnt: Learnt) -> float:
        if cell.arm == "probe":
            return probe.STREAM_LAYERS * mib(max(shape.layer_expert_bytes))
        stream_from = self.hot.get("stream_from")
        if not isinstance(stream_from, int) or not 0 < stream_from <= cell.ubatch:
            return 0.0
        planned = self.stream_layers * mib(max(shape.layer_expert_bytes[:n_cpu_moe]))
        return learnt.stream_mib.get((False, cell.ubatch), planned)


def next_try(cell: Cell, room: Room, placement: Placement, outcome: Outcome) -> Placement | None:
    """Return what to try after an outcome: less when it was too much, one layer more when one fits."""
    if cell.arm in ("all-cpu", "fit"):
        return None
    if isinstance(outcome, OutOfMemory | Rejected):
        if cell.arm == "layers":
            emptier = placement.n_cpu_moe + 1
            return (
                placement.model_copy(update={"n_cpu_moe": emptier}) if emptier < room.shape.n_layers else None
            )
        peak_mib = outcome.vram_peak_mib if isinstance(outcome, Rejected) else None
        if peak_mib is None:
            fewer = math.ceil(placement.hot_k * OOM_SHARE)
        else:
            fewer = math.ceil((peak_mib - room.ceiling_mib) / room.slot_mib(placement.n_cpu_moe))
        hot_k = placement.hot_k - max(1, fewer)
        return placement.model_copy(update={"hot_k": hot_k}) if hot_k > 0 else None
    if cell.arm == "layers" and isinstance(outcome, Measurement) and placement.n_cpu_moe > 0:
        layer_mib = mib(room.shape.layer_expert_bytes[placement.n_cpu_moe - 1])
        if outcome.vram_peak_mib + layer_mib <= room.ceiling_mib:
            return placement.model_copy(update={"n_cpu_moe": placement.n_cpu_moe - 1})
    return None
