"""`hottune plan`: the placements that a VRAM ceiling allows, with their memory and predicted speed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hottune.models.memory import MemoryNeed, estimate, max_hot_k, min_n_cpu_moe
from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths
from hottune.routing.published import HitCurve, published_hit_rate
from hottune.tasks.foresight import Speed, expert_bytes_from_ram, hit_rate, speed

Arm = Literal["all-cpu", "layers", "hot", "hot+layers", "all-vram"]


class PlannedPlacement(BaseModel):
    """One placement under a ceiling. Everything is predicted, nothing measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: Arm
    placement: Placement
    need: MemoryNeed
    vram_mib: float = Field(description="of `need`, all together")
    hit_rate: float | None = Field(description="assumed, in the layers with a cache; None without one")
    ram_gb_per_token: float = Field(description="expert weights that a token reads from host memory, GB")
    speed: Speed | None = Field(description="None without a GPU's bandwidths")


class CeilingPlan(BaseModel):
    """What fits under one VRAM ceiling."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ceiling_mib: float
    placements: tuple[PlannedPlacement, ...] = Field(description="empty when the ceiling is too small")
    least_mib: float = Field(description="VRAM with all experts in host memory and no cache")


def plan_ceiling(
    shape: MoeShape,
    base: Placement,
    ceiling_mib: float,
    *,
    overhead_mib: float,
    machine: Bandwidths | None,
    curve: HitCurve = published_hit_rate,
) -> CeilingPlan:
    """Return the candidates under a ceiling: all-CPU, best layer offload, cache, and the best mix of both.

    Args:
        shape: of the model.
        base: every setting that they share.
        ceiling_mib: none needs more VRAM, by the memory model.
        overhead_mib: VRAM that the driver's context takes.
        machine: bandwidths to predict speeds with; None = only memory.
        curve: hit rate by share of a layer's experts in the cache.
    """

    def placed(n_cpu_moe: int, hot_k: int = 0) -> Placement:
        changes = {"n_cpu_moe": n_cpu_moe, "hot_k": hot_k} | ({"policy": "lru"} if hot_k else {})
        return base.model_copy(update=changes)

    def room(n_cpu_moe: int) -> int:
        return max_hot_k(shape, placed(n_cpu_moe), ceiling_mib, overhead_mib=overhead_mib)

    def planned(arm: Arm, placement: Placement) -> PlannedPlacement:
        need = estimate(shape, placement, overhead_mib=overhead_mib)
        return PlannedPlacement(
            arm=arm,
            placement=placement,
            need=need,
            vram_mib=need.vram_mib,
            hit_rate=hit_rate(shape, placement, curve),
            ram_gb_per_token=expert_bytes_from_ram(shape, placement, curve) / 1e9,
            speed=None if machine is None else speed(shape, placement, machine, curve),
        )

    full = shape.n_layers
    least_mib = estimate(shape, placed(full), overhead_mib=overhead_mib).vram_mib
    fewest = min_n_cpu_moe(shape, placed(full), ceiling_mib, overhead_mib=overhead_mib)
    if fewest is None:
        return CeilingPlan(ceiling_mib=ceiling_mib, placements=(), least_mib=least_mib)
    found = []
    if least_mib <= ceiling_mib:
        found.append(planned("all-cpu", placed(full)))
    if not any(shape.layer_expert_bytes[:fewest]):
        found.append(planned("all-vram", placed(fewest)))
        return CeilingPlan(ceiling_mib=ceiling_mib, placements=tuple(found), least_mib=least_mib)
    if any(shape.layer_expert_bytes[fewest:]):
        found.append(planned("layers", placed(fewest)))
    if hot_k := room(full):
        found.append(planned("hot", placed(full, hot_k)))
    mixed = [placed(n, k) for n in range(fewest, full) if _moves(shape, n) and (k := room(n))]
    if mixed:
        best = min(mixed, key=lambda one: expert_bytes_from_ram(shape, one, curve))
        found.append(planned("hot+layers", best))
    return CeilingPlan(ceiling_mib=ceiling_mib, placements=tuple(found), least_mib=least_mib)


def _moves(shape: MoeShape, n_cpu_moe: int) -> bool:
    """Tell whether experts lie on both sides of the border."""
    sizes = shape.layer_expert_bytes
    return any(sizes[:n_cpu_moe]) and any(sizes[n_cpu_moe:])
