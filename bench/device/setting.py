"""What is settled before the first server: engine, model, machine, text, what placements share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import hottune
from bench.device import models, probe
from bench.device.options import Options
from bench.device.room import OVERHEAD_MIB, Settings
from bench.device.work import make_work
from hottune.engine.argv import server_command
from hottune.engine.build import build_engine, source_dir
from hottune.engine.facts import Backend
from hottune.engine.ports import PORT
from hottune.errors import BadSettingError
from hottune.machine.bandwidth import bandwidths
from hottune.machine.facts import Gpu, Machine
from hottune.machine.probe import probe_machine, virtual_gpu
from hottune.models.inflation import Inflation
from hottune.models.resolve import resolve_model
from hottune.placement import LARGEST_BYPASS, Placement
from hottune.progress import Progress
from hottune.report.schema import ArmName, Report, WarningNote
from hottune.routing.bound import Bandwidths
from hottune.stats.notes import NoteCode, note
from hottune.tasks.foresight import machine_bandwidths
from hottune.tasks.measure import Bench
from hottune.workload.workloads import context_needed

LEAST_BATCH = 2048
#: More than any demo needs: all-cpu on the virtual GPU has no ceiling.
_VIRTUAL_MIB = 65536.0


@dataclass(frozen=True)
class Setting:
    """What stays the same over all servers of a benchmark."""

    options: Options
    frame: Report  #: the result without rows
    gpu: Gpu
    threads: tuple[int, ...]
    placements: Settings
    bandwidths: Bandwidths | None
    bench: Bench
    probe: probe.ProbeBench | None

    def measures(self, arm: ArmName) -> Bench | None:
        """Return what measures an arm; None where nothing can."""
        return self.probe if arm == "probe" else self.bench

    def as_run(
        self, arm: ArmName, placement: Placement, ceiling_mib: float
    ) -> tuple[list[str], dict[str, str]]:
        """Return a server's command line and the variables that are added for it."""
        plain = placement.model_copy(update={"hot_k": 0}) if arm == "probe" else placement
        argv, env = server_command(
            self.frame.engine,
            self.frame.model.path,
            plain,
            shape=self.frame.model.shape,
            port=PORT,
            gpu=self.gpu,
            ceiling_mib=ceiling_mib,
        )
        if arm == "probe" and self.probe is not None:
            env |= probe.probe_env(self.probe.library, placement.hot_k)
        return argv, env


def settle(options: Options, cache_dir: Path, progress: Progress) -> Setting:
    """Build or find everything, in the order in which errors are cheapest.

    Raises:
        HottuneError: what a user must know or decide.
    """
    engine = build_engine(options.engine, cache_dir=cache_dir, progress=progress)
    known = options.model in models.SHAPES
    argument = str(models.provide(options.model, cache_dir)) if known else options.model
    model = resolve_model(argument, cache_dir=cache_dir, progress=progress)
    machine = probe_machine()
    gpu = _gpu(machine, engine.backend)
    workload = make_work(
        options.workload,
        requests=options.requests,
        scale=options.scale,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
    )
    needed = context_needed(workload)
    if options.context is not None and options.context < needed:
        raise BadSettingError(f"--context {options.context}: the longest request takes {needed} tokens.")
    threads = options.threads or (max(1, machine.cpu.physical_cores - 1),)
    base = Placement(
        n_cpu_moe=model.shape.n_layers,
        threads=threads[0],
        load_mode=options.load_mode,
        kv_type_k=options.kv,
        kv_type_v=options.kv,
        context=options.context or 256 * math.ceil(needed / 256),
        batch=LEAST_BATCH,
        spec_type=options.spec,
    )
    hot: dict[str, object] = {
        "policy": options.policy,
        "stream_from": options.stream,
        "prefill_bypass": min(LARGEST_BYPASS, base.decode_batch),
    }
    overhead_mib = options.overhead_mib
    if overhead_mib is None:
        overhead_mib = 0.0 if gpu.virtual else OVERHEAD_MIB
    log_dir = options.out.with_name(f"{options.out.stem}-logs")
    bench = Bench(engine, model, gpu, gpu.vram_free_mib, workload, log_dir)
    library = None
    if options.probe is not None and "probe" in options.arms and not gpu.virtual:
        source = source_dir(options.engine, cache_dir=cache_dir, progress=progress)
        library = probe.build_probe(options.probe, source, engine.llama_server.parent, cache_dir / "bench")
    return Setting(
        options=options,
        frame=Report(
            hottune_version=hottune.__version__,
            created=datetime.now(UTC),
            command=options.command,
            study="device-benchmark",
            objective="none: every cell is measured",
            ceiling_mib=0,
            model=model,
            machine=machine.model_copy(update={"gpus": (gpu,)}),
            engine=engine,
            workload=workload,
            arms=[],
            winner=None,
            trials=[],
            warnings=_warnings(model.name, model.inflated, gpu),
            seconds=0,
        ),
        gpu=gpu,
        threads=threads,
        placements=Settings(base, hot, options.stream_layers, overhead_mib, options.split),
        bandwidths=None if gpu.virtual else machine_bandwidths(bandwidths(machine, cache_dir, gpu=gpu), None),
        bench=bench,
        probe=probe.beside(bench, library) if library else None,
    )


def _gpu(machine: Machine, backend: Backend) -> Gpu:
    if backend is Backend.CPU or not machine.gpus:
        return virtual_gpu(_VIRTUAL_MIB)
    return max(machine.gpus, key=lambda gpu: gpu.vram_free_mib)


def _warnings(name: str, inflated: Inflation | None, gpu: Gpu) -> list[WarningNote]:
    found = [note(NoteCode.VIRTUAL_GPU)] if gpu.virtual else []
    found += [note(NoteCode.INFLATED_MODEL, model=name, how=inflated.sentence)] if inflated else []
    return [WarningNote(code=code, text=text) for code, text in found]
