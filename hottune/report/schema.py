"""The result file: one schema, versioned, that every renderer reads and every run writes.

`schema_version` grows by one with every change that an older reader would misread; once a version is
released, that includes a new field, because readers refuse fields that they do not know. Older files are
brought here by hottune/report/migrations.py.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hottune.engine.facts import ENGINE_NAME, EngineBuild, OtherEngine
from hottune.machine.ballast import Ballast
from hottune.machine.facts import Machine
from hottune.models.shape import ModelFile
from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths
from hottune.workload.facts import Workload

SCHEMA_VERSION = 2

#: `hot` is the best placement of the search, `hot-2` and `hot-3` the next best that were measured again.
#: `probe` and `hot+layers` are arms of the device's benchmark (bench/device) alone. Any other name is that of
#: another engine (docs/engines.md).
ArmName = (
    Literal["all-cpu", "layers", "fit", "hot", "hot-2", "hot-3", "probe", "hot+layers"]
    | Annotated[str, Field(pattern=ENGINE_NAME)]
)
Metric = Literal["decode", "prefill", "turn"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Replicate(_Model):
    """One fresh server of an arm in the confirm stage (or a baseline's single one, in a trial)."""

    position: int = Field(description="place in the interleaved order of the whole stage, from 0")
    started: datetime
    outcome: Outcome
    worker: str = Field(default="", description="process that measured it, where several share the study")


class Trial(_Model):
    """One placement tried in the search, with what it ended as."""

    number: int
    arm: ArmName | None = Field(default=None, description="set when the trial is a baseline")
    origin: Literal["baseline", "grid", "sampler"] = "sampler"
    placement: Placement
    outcome: Outcome
    started: datetime
    seconds: float
    worker: str = Field(default="", description="process that measured it, where several share the study")

    @property
    def in_reused_server(self) -> bool:
        """Whether it was measured in the server of the trial before."""
        return isinstance(self.outcome, Measurement) and self.outcome.reused_server


class Change(_Model):
    """A relative change with its interval: 1.12 (1.08 to 1.16).

    `low` and `high` are None when there are too few replicates for an interval; an infinite bound given to
    the constructor becomes None, because JSON has no infinity.
    """

    ratio: float
    low: float | None
    high: float | None
    verdict: Literal["faster", "slower", "can't tell"]
    method: str = Field(description="how the interval was made, for example 't on paired log-ratios, n=3'")
    p_value: float | None = Field(default=None, description="two-sided; None when there is no test")

    @field_validator("low", "high")
    @classmethod
    def _no_infinity(cls, bound: float | None) -> float | None:
        return bound if bound is not None and math.isfinite(bound) else None


class Against(_Model):
    """A speed as a multiple of another row's."""

    arm: ArmName
    ubatch: int = Field(description="of that row")
    change: Change


class Cell(_Model):
    """What a row of the device's benchmark (bench/device) adds: there each row has a ceiling of its own.

    "Best static" is the fastest of all-cpu, layers and fit under the same ceiling, over all ubatches.
    """

    ceiling_percent: float | None = Field(
        description="of the model's expert bytes may lie in VRAM beside what all-cpu takes; None for all-cpu"
    )
    ceiling_mib: float
    decode: Against | None = Field(default=None, description="against the best static row's decode speed")
    prefill: Against | None = Field(default=None, description="against the best static row's prefill speed")
    prefill_same_ubatch: Against | None = Field(
        default=None, description="against the best static row's with this row's ubatch"
    )
    bound_decode_tok_s: float | None = Field(
        default=None, description="most that memory and links allow at the measured hit rate"
    )
    bound_share: float | None = Field(default=None, description="share of that bound reached, 0 to 1")


class Arm(_Model):
    """One row of the report: an arrangement, measured again in fresh, interleaved replicates.

    Means are over the replicates that are measurements; None where there is none. `versus` compares decode
    speed, prefill speed and turn wall-clock (as speed: above 1 is faster) with the baseline arm named
    `versus_arm`: the best baseline by the objective.
    """

    name: ArmName
    placement: Placement
    argv: list[str]
    env: dict[str, str] = Field(description="variables that hottune set for llama-server")
    outcome: str = Field(description="'measurement', or the kind of the outcome that ended the arm")
    detail: str = Field(default="", description="why, when the outcome is no measurement")
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    ttft_ms: float | None = None
    turn_s: float | None = None
    vram_peak_mib: float | None = None
    vram_source: str | None = None
    hit_rate: float | None = None
    search_decode_tok_s: float | None = Field(default=None, description="what the search had measured")
    search_turn_s: float | None = None
    versus_arm: ArmName | None = None
    versus_decode: Change | None = None
    versus_prefill: Change | None = None
    versus_turn: Change | None = None
    ratios: dict[ArmName, dict[Metric, Change]] = Field(
        default_factory=dict,
        description="the same three changes against every measured baseline, by its name",
    )
    versus_winner: dict[Metric, Change] = Field(
        default_factory=dict,
        description="of another engine: the same three changes against the recommended arm; verdicts by Holm "
        "over all other engines",
    )
    text_equal: bool | None = Field(
        default=None, description="text equal to the all-cpu arm's in every request"
    )
    kld_to_all_cpu: float | None = Field(
        default=None,
        description="KL divergence of the next-token distribution from the all-cpu arm's, nats a position, "
        "mean; a lower bound, from the most probable tokens of both. Of all-cpu itself: its second replicate "
        "against its first",
    )
    same_top_token: float | None = Field(
        default=None, description="share of those positions with the same most probable token, 0 to 1"
    )
    scored_positions: int | None = Field(default=None, description="positions that both are means over")
    cold_turn_s: float | None = Field(
        default=None, description="wall-clock of the first (warm-up) request to a fresh server"
    )
    cold_decode_tok_s: float | None = Field(default=None, description="decode speed in that request")
    cold_first_100_tok_s: float | None = Field(
        default=None, description="speed over its first 100 tokens after the first, client timing"
    )
    cold_later_tok_s: float | None = Field(default=None, description="speed over all tokens after those")
    bound_decode_tok_s: float | None = Field(
        default=None, description="most that memory and links allow at the measured hit rate"
    )
    bound_share: float | None = Field(default=None, description="share of that bound reached, 0 to 1")
    replicates: list[Replicate] = Field(default_factory=list)
    cell: Cell | None = Field(default=None, description="in results of the device's benchmark alone")


class Roofline(_Model):
    """The bandwidths behind every arm's bound, as measured on this machine."""

    bandwidths: Bandwidths | None = None
    reason: str = Field(default="", description="why there are none")


class SearchAccount(_Model):
    """What the search took, and how right it was about memory."""

    servers: int = Field(description="started for trials; replicates not counted")
    reused: int = Field(description="trials that a server served after another trial")
    seconds: float = Field(description="of all trials together")
    vram_error: float | None = Field(
        description="largest relative error of predicted peak VRAM, from the fourth placement on"
    )
    vram_judged: int = Field(description="placements by which that was judged")
    front: list[int] = Field(
        default_factory=list,
        description="objective pareto: trials that no other beats in both prefill and decode speed",
    )


class WarningNote(_Model):
    """Something that makes the numbers weaker, and what to do about it."""

    code: str = Field(description="from a closed list: virtual-gpu, inflated-model, few-replicates, ...")
    text: str


class Winner(_Model):
    """The recommendation, made on confirmed replicates alone."""

    arm: ArmName
    reason: str = Field(description="one sentence that a person can read")
    faster_engines: list[ArmName] = Field(
        default_factory=list,
        description="other engines that were faster by the objective; hottune does not serve them",
    )
    command: str = Field(description="a shell command that serves this arm")


class Confirmation(_Model):
    """How the stage went that measured the best again."""

    rounds: int = Field(description="rounds that were measured, the last one perhaps not to its end")
    level: float = Field(description="confidence level of intervals and verdicts, 0 to 1")
    ended: Literal["fixed", "precise", "most", "time", "interrupted"] = Field(
        description="fixed: so many rounds were asked for; precise: every deciding interval was within ±3 %; "
        "most: it was not, after the most rounds; time: the time budget ended; interrupted: it goes on when "
        "the study is resumed"
    )


class Report(_Model):
    """Everything a run found out: provenance, arms, winner, trials, raw samples."""

    schema_version: int = SCHEMA_VERSION
    hottune_version: str
    created: datetime
    command: str = Field(description="the hottune command line that made this")
    study: str = Field(description="name of the study")
    objective: str = Field(description="what the search minimised, for example 'turn_s (document)'")
    ceiling_mib: float = Field(description="VRAM ceiling that every arm had")
    ballast: Ballast | None = Field(
        default=None, description="what held the VRAM above the ceiling; None = nothing did"
    )
    model: ModelFile
    machine: Machine
    engine: EngineBuild
    other_engines: list[OtherEngine] = Field(
        default_factory=list, description="engines that have an arm of their own beside the baselines"
    )
    workload: Workload
    arms: list[Arm]
    winner: Winner | None
    confirmation: Confirmation | None = None
    trials: list[Trial]
    account: SearchAccount | None = None
    warnings: list[WarningNote] = Field(default_factory=list)
    roofline: Roofline | None = Field(default=None, description="None: not asked for (bench/device)")
    min_prefill_tok_s: float | None = Field(
        default=None, description="least prefill speed of what may be recommended; None = any"
    )
    keep_free_mib: float = Field(
        default=0.0, description="VRAM below the ceiling that every arm had to leave free at its peak"
    )
    began_with: list[str] = Field(
        default_factory=list,
        description="what told the search where to begin: a trace, an earlier study; empty = nothing",
    )
    seconds: float = Field(description="wall-clock of the whole study, all sessions, build excluded")
