"""What a study found, ready to be served: which arm, and model, engine and GPU as they are here and now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hottune.engine.build import BuildOptions
from hottune.engine.facts import Backend, EngineBuild
from hottune.errors import BackendUnavailableError, BadSettingError, ModelNotFoundError, NothingMeasuredError
from hottune.machine.facts import Gpu, Machine
from hottune.machine.probe import virtual_gpu
from hottune.models.demo import DEMO
from hottune.models.resolve import load_model, resolve_model
from hottune.models.shape import ModelFile
from hottune.placement import Placement
from hottune.report.schema import Report
from hottune.search.confirm import HOT_ARMS, candidates
from hottune.search.journal import Journal
from hottune.search.objective import Limits
from hottune.search.study import ranked
from hottune.tasks.prepare import numbered_gpu

#: Variables that say which GPU a server of the study saw.
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Found:
    """An arm of a study, as it was measured."""

    study: str
    arm: str
    placement: Placement
    model: ModelFile
    engine: EngineBuild
    #: VRAM that every arm was planned for, MiB.
    usable_mib: float
    #: The GPU of the study; None when it is not known which of several it was.
    gpu: Gpu | None
    #: Whether the study confirmed it; else it is what its search measured so far.
    confirmed: bool = True
    #: Which llama.cpp the study was run with, by the study itself; None where only a result file tells of it.
    asked: BuildOptions | None = None


def of_report(report: Report, wanted: str | None) -> Found:
    """Return the winner of a report, or the arm of that name.

    Raises:
        NothingMeasuredError: the report recommends nothing.
        BadSettingError: there is no such arm.
    """
    name = wanted or (report.winner.arm if report.winner else None)
    if name is None:
        raise NothingMeasuredError(
            f"The report of '{report.study}' recommends no arm.",
            next_step=f"Name one with --arm: {', '.join(arm.name for arm in report.arms)}.",
        )
    arm = next((one for one in report.arms if one.name == name), None)
    if arm is None:
        raise _no_arm(name, report.study, [one.name for one in report.arms])
    _require_own(arm.placement, shlex.join(arm.argv))
    return Found(
        study=report.study,
        arm=arm.name,
        placement=arm.placement,
        model=report.model,
        engine=report.engine,
        usable_mib=report.ceiling_mib - report.keep_free_mib,
        gpu=_gpu_of(report.machine, _seen(arm.env)),
    )


def of_journal(journal: Journal, wanted: str | None) -> Found:
    """Return what a study that is not finished measured as best in its search, or the arm of that name.

    Raises:
        NothingMeasuredError: no placement was measured yet.
        BadSettingError: there is no such arm.
    """
    config = journal.noted("config")
    ceiling_mib, keep_free_mib = float(journal.noted("ceiling_mib")), float(config.get("keep_free_mib") or 0)
    limits = Limits(config.get("min_prefill_tok_s"), ceiling_mib, keep_free_mib)
    trials = journal.trials()
    best = ranked((one for one in trials if not one.placement.engine), journal.objective, limits)
    if not best:
        raise NothingMeasuredError(
            f"The study '{journal.name}' has measured nothing yet that could be served.",
            next_step=f"Go on with it: hottune studies resume {journal.name}",
        )
    arms = {
        str(arm): trial for arm, trial in candidates(trials, journal.objective, len(HOT_ARMS), limits).items()
    }
    name = wanted or next(
        (arm for arm, trial in arms.items() if trial is best[0]), str(best[0].arm or HOT_ARMS[0])
    )
    if wanted is not None and wanted not in arms:
        raise _no_arm(wanted, journal.name, list(arms))
    if wanted is not None:
        _require_own(arms[wanted].placement)
    machine = Machine.model_validate(journal.noted("machine"))
    return Found(
        study=journal.name,
        arm=name,
        placement=(arms[wanted] if wanted else best[0]).placement,
        model=ModelFile.model_validate(journal.noted("model")),
        engine=EngineBuild.model_validate(journal.noted("engine")),
        usable_mib=ceiling_mib - keep_free_mib,
        gpu=_gpu_of(machine, config.get("gpu")),
        confirmed=False,
        asked=asked_in(journal),
    )


def model_here(found: Found, given: Path | None, *, cache_dir: Path) -> ModelFile:
    """Return the study's model as it lies on this machine.

    Args:
        found: what is to be served.
        given: the model file, where it is not at the study's place.
        cache_dir: hottune's cache folder.

    Raises:
        ModelNotFoundError: the file is not there.
        BadSettingError: it is another model than the one that was measured.
        ModelCorruptError, NotMoeError: it can not be read as a model.
    """
    measured = found.model
    if given is not None:
        model = load_model(given, str(given))
    elif measured.argument == DEMO:
        model = resolve_model(DEMO, cache_dir=cache_dir)
    elif measured.path.is_file():
        model = load_model(measured.path, measured.argument, name=measured.name)
    else:
        raise ModelNotFoundError(
            f"The model of the study, {measured.path}, is not there.",
            "It was moved or deleted, or the study is of another machine.",
            f"Say where {measured.name} lies with --model FILE, or download it with hottune models pull.",
        )
    if model.fingerprint != measured.fingerprint:
        raise BadSettingError(
            f"{model.path} is not the model that the study measured ({measured.name}).",
            "Size, header or weights differ, so its placement may not fit.",
            f"Give the right file with --model FILE, or measure this one: hottune run {model.path}",
        )
    return model


def engine_options(found: Found, asked: BuildOptions) -> BuildOptions:
    """Return which llama.cpp serves: the one asked for, else the study's own, else the pinned one.

    Never the program that a result file names: such a file may come from anybody. What a study was run with,
    it tells itself, as for `studies resume`; it counts only where that llama.cpp is still there.
    """
    own = found.asked
    if own is not None and asked == BuildOptions():
        folders = (own.llama_bin, own.headers, own.source)
        asked = own if all(folder is None or folder.exists() for folder in folders) else asked
    if asked.backend is not None or asked.llama_bin is not None:
        return asked
    return asked.model_copy(update={"backend": found.engine.backend})


def asked_in(journal: Journal) -> BuildOptions | None:
    """Return which llama.cpp a study was run with; None where it does not say so in a way of today."""
    config = journal.noted("config") or {}
    try:
        return BuildOptions.model_validate(config.get("engine") or {})
    except ValidationError:
        return None


def gpu_here(found: Found, engine: EngineBuild, machine: Machine, wanted: int | None) -> Gpu:
    """Return the GPU to serve on: the one asked for, the study's by its number, or that with most free VRAM.

    Raises:
        BackendUnavailableError: the study's GPU was a real one, and there is none here.
        BadSettingError: there is no GPU of that number.
    """
    if engine.backend is Backend.CPU:
        if found.engine.backend is not Backend.CPU:
            raise BackendUnavailableError(
                "This placement was measured on a GPU; this llama.cpp is built without GPU support.",
                next_step=f"Leave out --backend cpu, or use --backend {found.engine.backend}.",
            )
        return virtual_gpu(found.usable_mib)
    if not machine.gpus:
        raise BackendUnavailableError(
            "This placement needs a GPU, and none is found here.",
            " ".join(machine.notes),
            "`hottune doctor` shows what is missing.",
        )
    if wanted is not None:
        return numbered_gpu(machine, wanted)
    studied = [gpu for gpu in machine.gpus if found.gpu is not None and gpu.index == found.gpu.index]
    return max(studied or machine.gpus, key=lambda gpu: gpu.vram_free_mib)


def doubts(found: Found, engine: EngineBuild, gpu: Gpu) -> list[str]:
    """Return what makes the study's numbers doubtful here, a sentence each."""
    lines = []
    if not found.confirmed:
        lines.append(
            "The study is not finished, so this is what its search measured as best, not confirmed: "
            f"hottune studies resume {found.study}"
        )
    if engine.key != found.engine.key:
        lines.append(
            f"Measured with {found.engine.llama_build} ({found.engine.source}), served with "
            f"{engine.llama_build} ({engine.source}): other options or compiler, so speeds may differ."
        )
    if gpu.virtual:
        return lines
    if found.gpu is not None and found.gpu.name != gpu.name:
        lines.append(f"Measured on {found.gpu.name}, served on {gpu.name}: hottune run finds what suits it.")
    if gpu.vram_free_mib < found.usable_mib:
        lines.append(
            f"{gpu.vram_free_mib:.0f} MiB of VRAM are free, it was measured with {found.usable_mib:.0f} MiB: "
            "the cache will be smaller, or loading will fail."
        )
    return lines


def _require_own(placement: Placement, command: str = "") -> None:
    if placement.engine:
        raise BadSettingError(
            f"{placement.engine} is another engine; hottune serves with its own llama.cpp alone.",
            f"Its command, as it was measured: {command}" if command else "",
            "Name another arm, or start that engine by hand.",
        )


def _no_arm(name: str, study: str, there: list[str]) -> BadSettingError:
    return BadSettingError(
        f"The study '{study}' has no arm '{name}'.", next_step=f"There are: {', '.join(there)}."
    )


def _seen(env: Mapping[str, str]) -> int | None:
    values = [env[name] for name in _GPU_VARIABLES if env.get(name, "").isdigit()]
    return int(values[0]) if values else None


def _gpu_of(machine: Machine, index: int | None) -> Gpu | None:
    if len(machine.gpus) == 1:
        return machine.gpus[0]
    return next((gpu for gpu in machine.gpus if gpu.index == index), None)
