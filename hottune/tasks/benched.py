"""One placement, as it was asked for, measured in fresh servers, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hottune import workflow
from hottune.errors import BadSettingError, HottuneError
from hottune.outcomes import Measurement, Outcome
from hottune.placement import LARGEST_BYPASS, Placement, Policy, SpecType
from hottune.progress import Progress
from hottune.report.schema import WarningNote
from hottune.tasks import prepare
from hottune.tasks.ballasted import ballasted
from hottune.tasks.conditions import condition_notes
from hottune.tasks.endings import fatal
from hottune.tasks.others import engine_files
from hottune.tasks.prepare import Plan
from hottune.tasks.settings import RunConfig
from hottune.tasks.show import Meter
from hottune.tasks.surroundings import surroundings


@dataclass(frozen=True)
class Asked:
    """What the user says of a placement, by the names of its fields; None = as the model needs it."""

    hot_k: int
    fit: bool
    policy: Policy
    rebalance_interval: int
    shared_budget: bool
    upload_mib: int
    stream_from: int
    hot_profile: Path | None
    ubatch: int
    n_cpu_moe: int | None = None
    prefill_bypass: int | None = None
    engine: str = ""

    def require_sense(self, spec_type: SpecType, spec_ngram: int | None, save_profile: Path | None) -> None:
        """Return if each option does something.

        Raises:
            BadSettingError: one would do nothing.
        """
        for option, value in (("--profile", self.hot_profile), ("--save-profile", save_profile)):
            if value is not None and self.hot_k == 0:
                raise BadSettingError(
                    f"{option} without a cache does nothing.", next_step="Add --hot-k, say --hot-k 16."
                )
        if self.hot_profile is not None and not self.hot_profile.is_file():
            raise BadSettingError(
                f"--profile: there is no file {self.hot_profile}.",
                next_step="--save-profile FILE writes one.",
            )
        if spec_ngram is not None and spec_type in ("none", "ngram-cache"):
            raise BadSettingError(
                f"--spec-ngram does nothing with --spec-type {spec_type}.",
                next_step="Use another --spec-type, for example ngram-simple.",
            )

    def in_engine(self, config: RunConfig, save_profile: Path | None) -> Asked:
        """Return the same in the other engine that is asked for, if one is.

        Raises:
            BadSettingError: several are asked for, or what only hottune's device does.
        """
        files = engine_files(config)
        if not files:
            return self
        if len(files) > 1:
            raise BadSettingError(
                "bench measures one placement in one engine.",
                next_step="Give --engine once, or use hottune run.",
            )
        if save_profile is not None:
            raise BadSettingError(
                "--save-profile with --engine does nothing.", next_step="Leave one of them away."
            )
        bypass = files[0].placement.prefill_bypass
        return replace(self, engine=files[0].name, stream_from=0, policy="window", prefill_bypass=bypass)

    def placement(self, base: Placement, n_layers: int, n_experts: int) -> Placement:
        """Return the placement, with the defaults that depend on the model.

        Args:
            base: what is the same in all placements of the plan.
            n_layers, n_experts: of the model; experts a layer.

        Raises:
            BadSettingError: more layers or experts than the model has.
        """
        if self.hot_k > n_experts:
            raise BadSettingError(f"--hot-k {self.hot_k}: a layer has {n_experts} experts.")
        if (self.n_cpu_moe or 0) > n_layers:
            raise BadSettingError(f"--n-cpu-moe {self.n_cpu_moe}: the model has {n_layers} layers.")
        # What is decoded at once is to go through the cache: a token of every slot, with its draft.
        defaults = {"n_cpu_moe": n_layers, "prefill_bypass": min(LARGEST_BYPASS, base.decode_batch)}
        said = {name: value for name, value in vars(self).items() if value is not None}
        return base.model_copy(update=defaults | said)


@dataclass(frozen=True)
class Benched:
    """A placement with what its fresh servers ended as."""

    plan: Plan
    placement: Placement
    outcomes: list[Outcome]
    warnings: list[WarningNote]

    @property
    def error(self) -> HottuneError | None:
        """The error of the first server that is no measurement."""
        bad = next((one for one in self.outcomes if not isinstance(one, Measurement)), None)
        if bad is None:
            return None
        next_step = "`hottune doctor` checks engine and device; less VRAM: lower --hot-k, higher --n-cpu-moe."
        return fatal(bad, "This placement was not measured", next_step)


def bench(
    config: RunConfig, asked: Asked, replicates: int, ui: Progress, *, save_profile: Path | None = None
) -> Benched:
    """Measure one placement.

    Args:
        config: of the run.
        asked: what is to be measured.
        replicates: fresh servers, one after another.
        ui: where progress goes.
        save_profile: file for how often each expert was used.

    Raises:
        HottuneError: what a user must know or decide. What a server ended as is an outcome.
    """
    plan = prepare.prepare(config, ui)
    shape = plan.model.shape
    placement = asked.placement(plan.space.base, shape.n_layers, shape.n_experts)
    warnings = surroundings()
    if plan.gpu.virtual:
        ui.say(prepare.VIRTUAL_LINE)
    if line := prepare.load_mode_line(plan):
        ui.say(line)
    with ballasted(plan, ui) as plan:
        meter = Meter(ui)
        measure = workflow.real_servers(plan, meter)
        measure.bench.profile_to = save_profile
        meter.stage("Bench", replicates)
        outcomes: list[Outcome] = []
        for _ in range(replicates):
            outcomes.append(measure(placement))
            meter.ended(placement.label(), outcomes[-1])
        meter.finish()
    found = condition_notes(plan, [one for one in outcomes if isinstance(one, Measurement)])
    warnings += [WarningNote(code=code, text=text) for code, text in found]
    for one in warnings:
        ui.say(f"Warning: {one.text}")
    return Benched(plan, placement, outcomes, warnings)


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return means over the replicates, and the proof that what was asked for took effect."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Measurement)]
    if not found:
        return {"outcome": outcomes[-1].kind}

    def mean(name: str) -> float:
        return float(sum(getattr(one, name) for one in found) / len(found))

    hits = [one.hit_rate for one in found if one.hit_rate is not None]
    return {
        "outcome": "measurement",
        "prefill_tok_s": mean("prefill_tok_s"),
        "decode_tok_s": mean("decode_tok_s"),
        "ttft_ms": mean("ttft_ms"),
        "turn_s": mean("turn_s"),
        "vram_peak_mib": max(one.vram_peak_mib for one in found),
        "hit_rate": sum(hits) / len(hits) if hits else None,
        "hot_engaged": bool(hits),
        "multi": multi(found),
        "drafts": {
            "drafted": sum(sample.drafted for one in found for sample in one.requests),
            "accepted": sum(sample.draft_accepted for one in found for sample in one.requests),
        },
        "text_sha256": [sample.text_sha256 for sample in found[0].requests],
    }


def multi(found: Sequence[Measurement]) -> dict[str, int | float] | None:
    """Return the cache's counters in batches of several tokens, all replicates together; None without any."""
    counted = [one.engagement.hot for one in found if one.engagement.hot is not None]
    hits, misses = sum(hot.multi_hits for hot in counted), sum(hot.multi_misses for hot in counted)
    if hits + misses == 0:
        return None
    blocks, tokens = sum(hot.multi_blocks for hot in counted), sum(hot.multi_tokens for hot in counted)
    rate = hits / (hits + misses)
    return {"blocks": blocks, "tokens": tokens, "hits": hits, "misses": misses, "hit_rate": rate}
