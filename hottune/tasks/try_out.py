"""`hottune plan --try`: the small trained demo inflated to a model's shape, and placements measured on it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hottune import workflow
from hottune.engine.facts import Backend
from hottune.errors import BadSettingError
from hottune.models.base_model import BaseModel as SmallModel
from hottune.models.glance import Glance
from hottune.models.inflate import inflate
from hottune.models.inflation import Inflation, caveats
from hottune.models.memory import estimate
from hottune.models.resolve import load_model
from hottune.models.shape import ModelFile, MoeShape
from hottune.models.target import Target, target_like, with_layers
from hottune.outcomes import Measurement, Outcome, too_large
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.routing.bound import Bandwidths
from hottune.tasks import prepare
from hottune.tasks.plan import PlannedPlacement, plan_ceiling
from hottune.tasks.settings import RunConfig
from hottune.tasks.show import Meter

_ATTEMPTS = 3  # of an arm that the memory model took for smaller than it is
_SLACK, _SLACK_MIB = 1.02, 8.0  # what a ceiling of our own choice leaves to that


class Tried(BaseModel):
    """One placement of the inflated model: what was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    placement: Placement
    outcome: str = Field(description="measurement, or what it ended as")
    detail: str = ""
    decode_tok_s: float | None = None
    prefill_tok_s: float | None = None
    vram_peak_mib: float | None = None
    hit_rate: float | None = None
    predicted_decode_tok_s: float | None = Field(
        default=None, description="predicted for this placement at this depth"
    )


class TryReport(BaseModel):
    """What was inflated, and what was measured on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inflated: Inflation
    notes: tuple[str, ...] = Field(description="what weakens conclusions from it")
    layers: int
    layers_of_the_model: int
    file_bytes: int
    kept: Path | None = Field(description="where the inflated model lies; None: it was deleted")
    gpu: str
    virtual: bool = Field(description="measured on the virtual GPU: shows the tool, not a speed")
    ceiling_mib: float
    workload: str
    tried: tuple[Tried, ...]


def wanted_target(seen: Glance, layers: int | None) -> Target:
    """Return the shape to inflate to.

    Raises:
        BadSettingError: more layers than the model has, or a shape that cannot be met.
    """
    target = target_like(seen.name, seen.headers)
    if layers is None:
        return target
    if layers > target.n_layers:
        raise BadSettingError(f"--layers {layers}: {seen.name} has {target.n_layers} with experts.")
    return with_layers(target, layers)


@contextmanager
def inflated_to(
    target: Target, base: ModelFile, folder: Path, *, keep: bool, progress: Progress
) -> Iterator[ModelFile]:
    """Write the small model in the target's shape, and delete it at the end unless `keep`.

    One that an earlier call kept is used as it is: equal wishes give equal files.

    Raises:
        BadSettingError, NoSpaceError: as `inflate`.
    """
    digest = hashlib.sha256(f"{base.fingerprint} {target!r}".encode()).hexdigest()[:12]
    path = folder / f"try-{digest}.gguf"
    was_there = path.is_file()
    try:
        if not was_there:
            folder.mkdir(parents=True, exist_ok=True)
            inflate(path, SmallModel(base.path), target, base_name=base.name, progress=progress)
        yield load_model(path, str(path), name=f"{base.name} as {target.name}")
    finally:
        if not keep and not was_there:
            path.unlink(missing_ok=True)


def measured(
    config: RunConfig,
    seen: Glance,
    *,
    share: float,
    machine: Bandwidths | None,
    kept: bool,
    progress: Progress,
) -> TryReport:
    """Measure all-CPU, layer offload and the cache on the inflated model that `config` names.

    Args:
        config: the model's file, and everything a bench asks for. Without a ceiling, it gets one under which
            `share` of the layers lies whole in VRAM.
        seen: the model that it is like.
        share: of the layers, 0 to 1.
        machine: bandwidths to predict the same placements with; None = do not.
        kept: whether the file stays.
        progress: told about each server.

    Raises:
        HottuneError: what `prepare` raises. What a placement does wrong is told in the report.
    """
    model = load_model(Path(config.model), config.model)
    if model.inflated is None:
        raise BadSettingError(f"{model.path} is not an inflated model.")
    ubatch = config.ubatches[0]
    if config.vram_mib is None:
        virtual = prepare.build(config, progress).backend is Backend.CPU
        overhead_mib = 0.0 if virtual else prepare.CONTEXT_OVERHEAD_MIB
        ceiling_mib = _ceiling_mib(model.shape, config, share, overhead_mib)
        config = config.model_copy(update={"vram_mib": ceiling_mib})
    plan = prepare.prepare(config, progress)
    candidates = plan_ceiling(
        model.shape,
        plan.space.base.model_copy(update={"ubatch": ubatch}),
        plan.ceiling_mib,
        overhead_mib=0.0 if plan.gpu.virtual else prepare.CONTEXT_OVERHEAD_MIB,
        machine=None if plan.gpu.virtual else machine,
    )
    if plan.gpu.virtual:
        progress.say(prepare.VIRTUAL_LINE)
    meter = Meter(progress)
    measure = workflow.real_servers(plan, meter)
    meter.stage("Trying", len(candidates.placements))
    tried = []
    for one in candidates.placements:
        placement: Placement | None = one.placement
        for _ in range(_ATTEMPTS):
            assert placement is not None
            outcome = measure(placement)
            meter.ended(f"{one.arm}: {placement.label()}", outcome)
            tried.append(_tried(one, placement, outcome))
            placement = _smaller(placement, model.shape)
            if placement is None or not too_large(outcome):
                break
    meter.finish()
    return TryReport(
        inflated=model.inflated,
        notes=tuple(caveats(model.inflated)),
        layers=model.shape.n_layers,
        layers_of_the_model=seen.shape.n_layers,
        file_bytes=model.size_bytes,
        kept=model.path if kept else None,
        gpu=plan.gpu.name,
        virtual=plan.gpu.virtual,
        ceiling_mib=plan.ceiling_mib,
        workload=plan.workload.name,
        tried=tuple(tried),
    )


def _tried(one: PlannedPlacement, placement: Placement, outcome: Outcome) -> Tried:
    numbers: dict[str, float | None] = {}
    if isinstance(outcome, Measurement):
        names = ("decode_tok_s", "prefill_tok_s", "vram_peak_mib", "hit_rate")
        numbers = {name: getattr(outcome, name) for name in names}
    same = one.speed if placement == one.placement else None
    return Tried(
        arm=one.arm,
        placement=placement,
        outcome=outcome.kind,
        detail="" if isinstance(outcome, Measurement) else outcome.detail,
        predicted_decode_tok_s=same.decode_tok_s if same else None,
        **numbers,
    )


def _smaller(placement: Placement, shape: MoeShape) -> Placement | None:
    """Return the next one to try when this one did not fit; None when there is none of its kind."""
    if placement.hot_k:
        hot_k = placement.hot_k * 7 // 8
        return placement.model_copy(update={"hot_k": hot_k}) if hot_k else None
    if placement.n_cpu_moe + 1 >= shape.n_layers:
        return None
    return placement.model_copy(update={"n_cpu_moe": placement.n_cpu_moe + 1})


def _ceiling_mib(shape: MoeShape, config: RunConfig, share: float, overhead_mib: float) -> float:
    """Return a ceiling under which `share` of the layers lies whole in VRAM, one at least and not all."""
    on_cpu = min(shape.n_layers - 1, max(1, round(shape.n_layers * (1 - share))))
    placement = Placement(
        n_cpu_moe=on_cpu,
        threads=1,
        context=config.context or prepare.LEAST_CONTEXT,
        ubatch=config.ubatches[0],
    )
    return estimate(shape, placement, overhead_mib=overhead_mib).vram_mib * _SLACK + _SLACK_MIB
