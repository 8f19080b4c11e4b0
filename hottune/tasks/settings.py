"""RunConfig: everything a run was asked for. It is kept in the study, so that a study can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hottune.engine.build import BuildOptions
from hottune.placement import KvType, LoadMode, SpecType
from hottune.search.objective import Limits, Objective
from hottune.search.rounds import MOST_ROUNDS, Rounds

DEMO = "demo"


class RunConfig(BaseModel):
    """What `hottune run` was asked for. None means: hottune decides (see `tasks.prepare`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="a path, owner/repo[:quant], or demo")
    cache_dir: Path
    studies_dir: Path
    reports_dir: Path
    engine: BuildOptions = BuildOptions()
    engines: tuple[str, ...] = Field(
        default=(), description="other engines with an arm of their own: names, or paths of engine files"
    )
    engine_bins: dict[str, Path] = Field(
        default_factory=dict, description="other engines that are built already: name -> program or folder"
    )
    vram_mib: float | None = Field(default=None, gt=0, description="VRAM ceiling of every arm, MiB")
    headroom_mib: float = Field(default=512, ge=0, description="left free when there is no vram_mib")
    ballast: bool = Field(default=True, description="hold what a larger card has above vram_mib")
    gpu: int | None = Field(default=None, ge=0, description="NVML index; None = the one with most room")
    trials: int | None = Field(default=None, ge=0, description="placements to measure after the baselines")
    replicates: int | None = Field(
        default=None,
        ge=1,
        description="fresh servers of each arm at the end; None = until intervals are narrow",
    )
    confirm_top: int | None = Field(
        default=None, ge=1, le=3, description="placements of the search that are measured again"
    )
    workload: str = "chat"
    parallel: int = Field(default=1, ge=1, le=64, description="requests in flight at once")
    spec_type: SpecType = Field(default="none", description="speculative decoding without a draft model")
    spec_ngram: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="tokens that must repeat for a draft; None = llama.cpp's own",
    )
    scale: float | None = Field(default=None, gt=0, le=1, description="shrinks the workload's lengths")
    context: int | None = Field(default=None, ge=1, description="tokens")
    load_mode: LoadMode | Literal["auto"] = Field(
        default="auto", description="auto: none where the model fits into free memory, else mmap"
    )
    kv_type: KvType = Field(default=KvType.F16, description="element type of the KV cache, keys and values")
    ubatches: tuple[int, ...] = Field(default=(), description="physical batch sizes to try, tokens")
    threads: int | None = Field(default=None, ge=1)
    objective: Objective = Objective.TURN
    min_prefill_tok_s: float | None = Field(
        default=None, gt=0, description="least prefill speed of what is recommended, tok/s"
    )
    keep_free_mib: float = Field(
        default=0.0, ge=0, description="VRAM below the ceiling that must stay free at the peak, MiB"
    )
    trace: Path | None = Field(default=None, description="recorded routing that says where to begin")
    warm_start: bool = Field(default=True, description="begin where earlier studies found the best")
    study: str | None = Field(default=None, description="name; None = made from what is measured on what")
    storage: str | None = Field(default=None, description="Optuna URL; None = <studies_dir>/<name>.db")
    worker: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="name among the processes that share the study; None = by host and GPU",
    )
    quick: bool = False
    time_budget_s: float | None = Field(default=None, gt=0)
    port: int | None = Field(default=None, ge=1, le=65535)
    seed: int = 0
    command: str = Field(default="", description="the command line, for the report")

    @property
    def is_demo(self) -> bool:
        """Whether the model is the one that comes with hottune."""
        return self.model == DEMO

    @property
    def trials_wanted(self) -> int:
        """Placements to measure after the baselines."""
        if self.trials is not None:
            return self.trials
        return 5 if self.quick else 14 if self.is_demo else 28

    @property
    def rounds(self) -> Rounds:
        """Fresh servers of each arm in the confirm stage; without a number, until intervals are narrow.

        The demo shows the tool and stops after 3 rounds, `quick` after 2.
        """
        if self.replicates is not None:
            return Rounds(self.replicates)
        return Rounds(2) if self.quick else Rounds(3) if self.is_demo else Rounds(MOST_ROUNDS, precise=True)

    @property
    def top_wanted(self) -> int:
        """Placements of the search that are measured again."""
        return self.confirm_top if self.confirm_top is not None else 1 if self.quick else 2

    @property
    def budget_s(self) -> float | None:
        """Time for all servers together; None = no limit."""
        return self.time_budget_s if self.time_budget_s is not None else 240.0 if self.quick else None

    def limits(self, ceiling_mib: float) -> Limits:
        """Return what a placement must keep to be recommended under a ceiling."""
        return Limits(self.min_prefill_tok_s, ceiling_mib, self.keep_free_mib)
