"""Recorded landscapes: what real servers measured, a file for each machine, model and ceiling (record.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bench.search.landscape import Truth
from hottune.models.memory import estimate
from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.search.space import Space, plan

FOLDER = Path(__file__).parent / "landscapes"


class Row(BaseModel):
    """One placement, measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    placement: Placement
    prefill_tok_s: float
    decode_tok_s: float
    vram_mib: float
    hit_rate: float | None = None


class Record(BaseModel):
    """A file in `landscapes/`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    command: str
    machine: str
    shape: MoeShape
    ceiling_mib: float
    overhead_mib: float
    prompt_tokens: int
    output_tokens: int
    requests: int
    load_s: float
    noise: float
    rows: list[Row]


@dataclass(frozen=True)
class Recorded:
    """A landscape that answers with the nearest placement that was measured."""

    record: Record
    space: Space

    @property
    def name(self) -> str:
        """The record's name."""
        return self.record.name

    @property
    def noise(self) -> float:
        """Coefficient of variation of a turn on that machine."""
        return self.record.noise

    @property
    def load_s(self) -> float:
        """Seconds that a server took to start there."""
        return self.record.load_s

    @property
    def requests(self) -> int:
        """Requests of a measurement."""
        return self.record.requests

    def truth(self, placement: Placement) -> Truth | None:
        """Return what the nearest measured placement of the same kind gave; None where it does not fit."""
        if placement.fit or self.space.predicted_mib(placement) > self.space.ceiling_mib:
            return None
        alike = [row for row in self.record.rows if (row.placement.hot_k > 0) == (placement.hot_k > 0)]
        row = min(alike, key=lambda one: _distance(one.placement, placement, self.record.shape))
        return Truth(
            prompt_tokens=self.record.prompt_tokens,
            output_tokens=self.record.output_tokens,
            prefill_s=self.record.prompt_tokens / row.prefill_tok_s,
            decode_s=(self.record.output_tokens - 1) / row.decode_tok_s,
            vram_mib=self.space.predicted_mib(placement),
            hit_rate=row.hit_rate,
        )

    def grid(self) -> list[Placement]:
        """Return everything that was measured, in the order in which it was."""
        return [row.placement for row in self.record.rows]


def _distance(one: Placement, other: Placement, shape: MoeShape) -> float:
    """Return how unlike two placements are: each setting by its own scale, policies as same or not."""
    return (
        4 * abs(one.n_cpu_moe - other.n_cpu_moe) / shape.n_layers
        + 2 * abs(one.hot_k - other.hot_k) / shape.n_experts
        + abs(math.log2(one.ubatch / other.ubatch))
        + abs(math.log2(one.threads / other.threads))
        + 0.1 * abs(math.log2(one.rebalance_interval / other.rebalance_interval))
        + (one.policy != other.policy)
        + (one.shared_budget != other.shared_budget)
    )


def recorded() -> list[Recorded]:
    """Return the landscapes that were recorded on real machines."""
    return [load(path) for path in sorted(FOLDER.glob("*.json"))]


def load(path: Path) -> Recorded:
    """Read one record and make its space."""
    record = Record.model_validate_json(path.read_text(encoding="utf-8"))
    placements = [row.placement for row in record.rows]

    def need_mib(placement: Placement) -> float:
        return estimate(record.shape, placement, overhead_mib=record.overhead_mib).vram_mib

    threads = tuple(sorted({one.threads for one in placements}, reverse=True))
    space = plan(
        record.shape,
        placements[0].model_copy(update={"threads": threads[0]}),
        record.ceiling_mib,
        ubatches=tuple(sorted({one.ubatch for one in placements})),
        threads=threads,
        need_mib=need_mib,
    )
    return Recorded(record, space)
