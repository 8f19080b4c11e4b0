"""`hottune plan`: before any download, what fits and how fast it would be; `--try` measures on a stand-in."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from hottune.cli import common, options
from hottune.cli.plan_view import show, show_tried
from hottune.errors import BadSettingError, CeilingTooSmallError
from hottune.machine.bandwidth import bandwidths
from hottune.machine.facts import Gpu, Machine
from hottune.machine.probe import probe_machine
from hottune.models.demo import DEMO
from hottune.models.glance import Glance, glance
from hottune.models.resolve import resolve_model
from hottune.models.shape import ModelFile
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.routing.bound import Bandwidths
from hottune.routing.published import SOURCE
from hottune.tasks.foresight import CONSTANTS, GpuGiven, machine_bandwidths
from hottune.tasks.plan import plan_ceiling
from hottune.tasks.plan_report import PlanReport
from hottune.tasks.prepare import CONTEXT_OVERHEAD_MIB
from hottune.tasks.try_out import TryReport, inflated_to, measured, wanted_target

_CEILINGS_MIB = (8192.0, 12288.0, 16384.0, 24576.0)
_HEADROOM_MIB = 512.0
_SHARE = 0.25  # of the layers in VRAM, for --try without a ceiling


def plan(
    model: Annotated[
        str, typer.Argument(help="owner/repo[:QUANT], the http(s) address of a .gguf, a file, or demo.")
    ],
    vram: options.Vram = None,
    headroom: options.Headroom = None,
    gpu: options.Gpu = None,
    context: Annotated[int, typer.Option(min=1, help="Context length to plan for, tokens.")] = 4096,
    ubatch: Annotated[int, typer.Option(min=1, help="Physical batch to plan for, tokens.")] = 512,
    gpu_bandwidth: Annotated[
        str | None,
        typer.Option(metavar="HBM,PCIE", help="GB/s of a GPU's memory and of PCIe, for one not in here."),
    ] = None,
    try_out: Annotated[
        bool, typer.Option("--try", help="Inflate the demo to this shape and measure on that.")
    ] = False,
    layers: Annotated[
        int | None, typer.Option(min=2, help="With --try: inflate to fewer layers, for less disk and time.")
    ] = None,
    base: Annotated[str, typer.Option(help="With --try: the small model to inflate.")] = DEMO,
    keep: Annotated[bool, typer.Option("--keep", help="With --try: keep the inflated model.")] = False,
    workload: options.WorkloadName = None,
    scale: options.Scale = None,
    threads: options.Threads = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read a model's header only, and predict what fits on this machine and how fast it would be."""
    with common.handled(json_output):
        _require_sense(try_out, layers, keep, base, workload, scale)
        given = None if gpu_bandwidth is None else _given(gpu_bandwidth)
        here = probe_machine()
        chosen = _gpu(here, gpu)
        ceilings = _ceilings_mib(vram, headroom, chosen)
        progress = common.make_progress(quiet)
        try:
            seen = glance(model, cache_dir=common.cache_dir(), progress=progress)
            report = _plan(model, seen, here, chosen, ceilings, context, ubatch, given, progress)
            if vram is not None:
                _require_room(report)
            if not json_output:
                show(report, Console(highlight=False))
            if try_out:
                said: dict[str, Any] = {
                    "workload": workload,
                    "scale": scale,
                    "threads": threads,
                    "gpu": gpu,
                }
                tried = _try(report, seen, base, layers, keep, vram is not None, said, progress)
                report = report.model_copy(update={"tried": tried})
                if not json_output:
                    show_tried(tried, Console(highlight=False))
        finally:
            common.close(progress)
        if json_output:
            common.emit_json(report)


def _require_sense(
    try_out: bool, layers: int | None, keep: bool, base: str, workload: str | None, scale: float | None
) -> None:
    said = {
        "--layers": layers is not None,
        "--keep": keep,
        "--base": base != DEMO,
        "--workload": workload is not None,
        "--scale": scale is not None,
    }
    for option, given in said.items():
        if given and not try_out:
            raise BadSettingError(f"{option} does nothing without --try.", next_step="Add --try.")


def _given(text: str) -> GpuGiven:
    try:
        hbm, pcie = (float(part) for part in text.split(","))
        return GpuGiven(hbm_gb_per_s=hbm, pcie_gb_per_s=pcie)
    except (ValueError, ValidationError) as error:
        raise BadSettingError(
            f"--gpu-bandwidth: '{text}' is not two numbers.",
            next_step="Write GB/s of the GPU's memory, a comma, GB/s of PCIe: 1000,25.",
        ) from error


def _gpu(here: Machine, index: int | None) -> Gpu | None:
    if index is None:
        return max(here.gpus, key=lambda gpu: gpu.vram_free_mib, default=None)
    for one in here.gpus:
        if one.index == index:
            return one
    listed = ", ".join(str(one.index) for one in here.gpus) or "none"
    raise BadSettingError(f"There is no GPU {index}.", next_step=f"GPUs here: {listed}.")


def _ceilings_mib(vram: str | None, headroom: str | None, gpu: Gpu | None) -> tuple[float, ...]:
    if vram is not None:
        ceiling_mib = options.size_mib(vram, "--vram")
        if ceiling_mib <= 0:
            raise BadSettingError(f"--vram: {vram} is no VRAM at all.")
        return (ceiling_mib,)
    left_mib = _HEADROOM_MIB if headroom is None else options.size_mib(headroom, "--headroom")
    return _CEILINGS_MIB if gpu is None else (max(0.0, gpu.vram_free_mib - left_mib),)


def _plan(
    argument: str,
    seen: Glance,
    here: Machine,
    gpu: Gpu | None,
    ceilings: tuple[float, ...],
    context: int,
    ubatch: int,
    given: GpuGiven | None,
    progress: Progress,
) -> PlanReport:
    found = bandwidths(here, common.cache_dir(), gpu=gpu, progress=progress)
    used = machine_bandwidths(found, given)
    base = Placement(
        n_cpu_moe=0,
        threads=max(1, here.cpu.physical_cores - 1),
        context=context,
        ubatch=ubatch,
        batch=max(2048, ubatch),
    )
    return PlanReport(
        model=options.hide_passwords(argument),
        name=seen.name,
        size_bytes=seen.size_bytes,
        bytes_read=seen.bytes_read,
        synthetic=seen.synthetic,
        inflated=seen.inflated,
        shape=seen.shape,
        machine=here,
        bandwidths=found,
        gpu_given=given,
        used=used,
        ceilings=tuple(
            plan_ceiling(seen.shape, base, one, overhead_mib=CONTEXT_OVERHEAD_MIB, machine=used)
            for one in ceilings
        ),
        assumptions=_assumptions(used, given),
    )


def _assumptions(used: Bandwidths | None, given: GpuGiven | None) -> tuple[str, ...]:
    found = [SOURCE]
    if used is not None:
        found.append(CONSTANTS)
    if given is not None:
        found.append(
            "bandwidths of the GPU as given; at the same time, the CPU keeps 73 % and PCIe 64 %: a desktop's"
        )
    return tuple(found)


def _require_room(report: PlanReport) -> None:
    (only,) = report.ceilings
    if not only.placements:
        raise CeilingTooSmallError(
            f"{only.ceiling_mib:.0f} MiB of VRAM cannot hold what of {report.name} always goes there: "
            f"{only.least_mib:.0f} MiB.",
            "That is attention, norms, the output head, the KV cache and buffers.",
            "Give more --vram, or a lower --context or --ubatch.",
        )


def _small_model(base: str, progress: Progress) -> ModelFile:
    return resolve_model(base, cache_dir=common.cache_dir(), progress=progress)


def _try(
    report: PlanReport,
    seen: Glance,
    base: str,
    layers: int | None,
    keep: bool,
    vram_given: bool,
    config: dict[str, Any],
    progress: Progress,
) -> TryReport:
    target = wanted_target(seen, layers)
    small = _small_model(base, progress)
    first = report.ceilings[0]
    layered = next((one for one in first.placements if one.arm == "layers"), None)
    whole = target.n_layers == seen.shape.n_layers
    share = 1 - layered.placement.n_cpu_moe / seen.shape.n_layers if layered else _SHARE
    # A ceiling that was given, or that the GPU has, holds for the whole model; a shallower one gets its part.
    ceiling = first.ceiling_mib if whole and (vram_given or report.machine.gpus) else None
    folder = common.cache_dir() / "models" / "tried"
    with inflated_to(target, small, folder, keep=keep, progress=progress) as model:
        made = options.run_config(
            model=str(model.path),
            vram=None if ceiling is None else str(ceiling),
            context=_context(report),
            ubatches=(_ubatch(report),),
            **config,
        )
        return measured(made, seen, share=share, machine=report.used, kept=keep, progress=progress)


def _context(report: PlanReport) -> int | None:
    """Return the context asked for; None lets the workload decide where it is the default."""
    rows = [row for one in report.ceilings for row in one.placements]
    return rows[0].placement.context if rows else None


def _ubatch(report: PlanReport) -> int:
    rows = [row for one in report.ceilings for row in one.placements]
    return rows[0].placement.ubatch if rows else 512
