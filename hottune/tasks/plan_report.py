"""PlanReport: everything that `hottune plan` found out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from hottune.machine.bandwidth import MachineBandwidths
from hottune.machine.facts import Machine
from hottune.models.inflation import Inflation
from hottune.models.shape import MoeShape
from hottune.routing.bound import Bandwidths
from hottune.tasks.foresight import GpuGiven
from hottune.tasks.plan import CeilingPlan
from hottune.tasks.try_out import TryReport


class PlanReport(BaseModel):
    """What `plan --json` prints. Speeds are predicted; only `tried` is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    name: str
    size_bytes: int
    bytes_read: int | None = Field(description="over the network, for this; None for a local file")
    synthetic: bool
    inflated: Inflation | None
    shape: MoeShape
    machine: Machine
    bandwidths: MachineBandwidths
    gpu_given: GpuGiven | None
    used: Bandwidths | None = Field(description="bandwidths that speeds are predicted with; None: no speeds")
    ceilings: tuple[CeilingPlan, ...]
    assumptions: tuple[str, ...]
    tried: TryReport | None = None
