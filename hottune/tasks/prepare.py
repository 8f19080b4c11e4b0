"""Everything before the first server: resolve, build, probe, plan."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from hottune.engine.build import build_engine, find_engine
from hottune.engine.facts import Backend, EngineBuild
from hottune.engine.forks.command import Fork
from hottune.errors import BadSettingError
from hottune.machine.ballast import Holder
from hottune.machine.facts import Gpu, Machine
from hottune.machine.probe import probe_machine, virtual_gpu
from hottune.models.memory import estimate
from hottune.models.resolve import resolve_model
from hottune.models.shape import ModelFile, MoeShape
from hottune.placement import LoadMode, Placement
from hottune.progress import NoProgress, Progress
from hottune.search import space as spaces
from hottune.search.correction import NeedMib
from hottune.search.objective import Limits
from hottune.search.space import Space
from hottune.tasks.fingerprint import fingerprint
from hottune.tasks.others import engine_files, others, others_for_show
from hottune.tasks.settings import RunConfig
from hottune.units import MIB, format_bytes, mib
from hottune.workload.facts import Workload
from hottune.workload.workloads import context_needed, load_workload

#: Share of the experts that a virtual GPU can hold by default: a real squeeze.
VIRTUAL_EXPERT_SHARE = 0.35
#: VRAM that a real GPU's driver context takes, until the first measurement says it exactly.
CONTEXT_OVERHEAD_MIB = 500.0
LEAST_CONTEXT = 4096
#: How much --quick shortens the workload: 100 tokens out, 5 minutes for a model of 16 GiB.
QUICK_SCALE = 1 / 3
#: Physical batches worth trying; those of no use to the workload's prompts are left out.
UBATCHES = (512, 2048, 4096)
DEMO_UBATCHES = (512,)
BYPASSES = (1, 8)
#: What must be left of free memory beside a model that is read into it: a share of the model, and MiB.
SPARE_RAM_SHARE, SPARE_RAM_MIB = 0.05, 512.0
#: Numbers of threads worth trying, as shares of the physical cores.
THREAD_SHARES = (0.75, 0.5, 0.25)

VIRTUAL_LINE = "No GPU found: using hottune's virtual GPU; these numbers show the tool, not a gain."


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before a server starts."""

    config: RunConfig
    engine: EngineBuild
    model: ModelFile
    machine: Machine
    gpu: Gpu
    ceiling_mib: float
    workload: Workload
    space: Space
    #: What holds the VRAM above the ceiling, where something does; `gpu` is then the card as servers see it.
    ballast: Holder | None = None
    #: Other engines with an arm of their own.
    forks: tuple[Fork, ...] = ()

    @property
    def name(self) -> str:
        """The study's name: the one given, or one made from what is measured on what."""
        if self.config.study:
            return self.config.study
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        stem = re.sub(r"[^\w.+-]+", "-", self.model.name).strip("-.")[:48]
        return f"{stem}-{self.workload.name}-{digest}"

    @property
    def limits(self) -> Limits:
        """What a placement must keep to be recommended."""
        return self.config.limits(self.ceiling_mib)

    @property
    def usable_mib(self) -> float:
        """VRAM that every arm is planned for: the ceiling, less what must stay free."""
        return self.ceiling_mib - self.config.keep_free_mib

    @property
    def without_ballast(self) -> Plan:
        """The same with the card as it is without the ballast: for a command that serves later."""
        if self.ballast is None:
            return self
        gpu = next((one for one in self.machine.gpus if one.index == self.gpu.index), self.gpu)
        return replace(self, gpu=gpu, ballast=None)

    def identity(self) -> dict[str, object]:
        """Return what must be equal for two sessions to belong to one study."""
        # As asked for, not as it is: how much memory is free, and so what `auto` comes to, changes.
        base = self.space.base.model_dump(mode="json", exclude={"n_cpu_moe"})
        # Said only where there are some, so that a study without them keeps the name that it had before.
        engines = [[fork.name, fork.facts.key, fork.file.digest()] for fork in self.forks]
        others: dict[str, object] = {"other engines": engines} if engines else {}
        return {
            "model": self.model.fingerprint,
            "machine": fingerprint(self.machine, self.gpu),
            "ceiling": self.config.vram_mib or f"free - {self.config.headroom_mib:.0f} MiB",
            # As asked for, not as it is: what is free, and so whether a ballast is worth it, changes.
            "ballast": self.config.ballast and self.config.vram_mib is not None and not self.gpu.virtual,
            "workload": self.workload.sha256,
            "engine": [self.engine.key, _file_hash(self.engine.device_library)],
            "settings": base | {"load_mode": str(self.config.load_mode)},
            "ubatches": list(self.space.ubatches),
            "objective": str(self.config.objective),
            "limits": [self.config.min_prefill_tok_s, self.config.keep_free_mib],
        } | others


def resolve(config: RunConfig, progress: Progress) -> ModelFile:
    """Find the model and read its header.

    Raises:
        HottuneError: one of the errors 10-14, or a workload or an engine file that is not there.
    """
    _workload(config)
    engine_files(config)  # before anything is downloaded or built
    return resolve_model(config.model, cache_dir=config.cache_dir, progress=progress)


def build(config: RunConfig, progress: Progress) -> EngineBuild:
    """Return the engine, built if need be."""
    return build_engine(config.engine, cache_dir=config.cache_dir, progress=progress)


def probe() -> Machine:
    """Find out what machine this is."""
    return probe_machine()


def plan(
    config: RunConfig,
    engine: EngineBuild,
    model: ModelFile,
    machine: Machine,
    *,
    ceiling_mib: float | None = None,
    load_mode: LoadMode | None = None,
    forks: tuple[Fork, ...] = (),
) -> Plan:
    """Settle GPU, ceiling, workload, and the space of placements.

    Args:
        config: what was asked for.
        engine: the llama.cpp to use.
        model: what to serve.
        machine: where.
        ceiling_mib: the ceiling that a resumed study has; None computes it.
        load_mode: that of a resumed study; None = as asked for, `auto` by the memory that is free.
        forks: other engines with an arm of their own.

    Raises:
        BadSettingError: settings that make no sense together.
        CeilingTooSmallError: not even all experts in RAM would fit.
    """
    workload = _workload(config)
    load_mode = load_mode or _load_mode(config, model, machine)
    base = _base(config, machine, workload, load_mode)
    ubatches = config.ubatches or _useful_ubatches(config, workload)
    gpu, ceiling_mib = _gpu_and_ceiling(config, engine, model.shape, machine, base, ubatches, ceiling_mib)
    if config.keep_free_mib >= ceiling_mib:
        raise BadSettingError(
            f"--keep-free {config.keep_free_mib:.0f} MiB leaves nothing of a {ceiling_mib:.0f} MiB ceiling.",
            next_step="Give a lower --keep-free, or a higher --vram.",
        )
    space = spaces.plan(
        model.shape,
        base,
        ceiling_mib - config.keep_free_mib,
        ubatches=ubatches,
        bypasses=BYPASSES,
        threads=_useful_threads(config, machine),
        need_mib=memory_need(model.shape, gpu),
    )
    if config.quick and not config.ubatches:
        space = _one_ubatch(space)
    _require_ram(model, machine, base)
    return Plan(config, engine, model, machine, gpu, ceiling_mib, workload, space, forks=forks)


def memory_need(shape: MoeShape, gpu: Gpu) -> NeedMib:
    """Return what tells the VRAM that a placement needs, MiB, as far as the header says it."""
    overhead_mib = 0.0 if gpu.virtual else CONTEXT_OVERHEAD_MIB

    def need_mib(placement: Placement) -> float:
        return estimate(shape, placement, overhead_mib=overhead_mib).vram_mib

    return need_mib


def engine_for_show(config: RunConfig) -> EngineBuild:
    """Return the engine if it is built, else a stand-in with the names that its files will have."""
    found = find_engine(config.engine, cache_dir=config.cache_dir)
    return found or EngineBuild(
        llama_server=Path("llama-server"),
        device_library=Path("libggml-hot.so"),
        backend=config.engine.backend or (Backend.CUDA if probe_machine().gpus else Backend.CPU),
        llama_build="not built yet",
        source="",
        api_version=0,
        compiler="",
        options=(),
        key="",
    )


def prepare(config: RunConfig, progress: Progress) -> Plan:
    """Do all of the above, in the order in which errors are cheapest."""
    model = resolve(config, progress)
    engine = build(config, progress)
    return plan(config, engine, model, probe(), forks=others(config, engine, model, progress))


def prepare_for_show(config: RunConfig) -> Plan:
    """Like `prepare`, but builds nothing; for `--dry-run`."""
    progress = NoProgress()
    engine = engine_for_show(config)
    model = resolve(config, progress)
    return plan(config, engine, model, probe(), forks=others_for_show(config, engine, model))


def _workload(config: RunConfig) -> Workload:
    shorter = config.quick and not config.is_demo  # the demo is quick as it is
    scale = config.scale or (QUICK_SCALE if shorter else 1.0)
    return load_workload(config.workload, scale=scale, seed=0, parallel=config.parallel)


def _useful_ubatches(config: RunConfig, workload: Workload) -> tuple[int, ...]:
    """Return the ubatches that differ for the workload: none is larger than its longest prompt needs."""
    if config.is_demo:
        return DEMO_UBATCHES
    longest = max(request.prompt_tokens for request in workload.requests) * workload.parallel
    useful = [ubatch for ubatch in UBATCHES[:-1] if ubatch < longest]
    return (*useful, UBATCHES[len(useful)])


def _useful_threads(config: RunConfig, machine: Machine) -> tuple[int, ...]:
    """Return the numbers of threads to try: the asked-for one, or shares of the physical cores.

    Fewer threads than cores can be faster with the cache: the GPU's driver and the device wait on cores, too
    (on an H100 with 16 cores, 8 threads decoded 1.4 times as fast as 16: reports/device/h100-threads.md).
    """
    if config.threads is not None or config.is_demo:
        return ()
    return tuple(max(1, round(share * machine.cpu.physical_cores)) for share in THREAD_SHARES)


def _load_mode(config: RunConfig, model: ModelFile, machine: Machine) -> LoadMode:
    if config.load_mode != "auto":
        return config.load_mode
    need_mib = mib(model.size_bytes) * (1 + SPARE_RAM_SHARE) + SPARE_RAM_MIB
    return LoadMode.NONE if need_mib <= machine.ram_available_mib else LoadMode.MMAP


def load_mode_line(plan: Plan) -> str:
    """Say which load mode was chosen, and why; '' when it was asked for."""
    if plan.config.load_mode != "auto":
        return ""
    model, free = format_bytes(plan.model.size_bytes), format_bytes(plan.machine.ram_available_mib * MIB)
    if plan.space.base.load_mode is LoadMode.NONE:
        return f"Load mode none for every arm: {model} of weights, {free} of memory free."
    return (
        f"Load mode mmap for every arm: {model} of weights leave too little of {free} free memory. Mapped "
        "weights are not pinned, so prompts take longer, and speeds scatter more."
    )


def _base(config: RunConfig, machine: Machine, workload: Workload, load_mode: LoadMode) -> Placement:
    needed = context_needed(workload)
    if config.context is not None and config.context < needed:
        raise BadSettingError(
            f"A context of {config.context} tokens is too short for the workload '{workload.name}'.",
            f"Its longest request takes {needed} tokens.",
            "Raise --context or lower --scale.",
        )
    least = 0 if config.is_demo else LEAST_CONTEXT
    return Placement(
        n_cpu_moe=0,
        threads=config.threads or max(1, machine.cpu.physical_cores - 1),
        load_mode=load_mode,
        kv_type_k=config.kv_type,
        kv_type_v=config.kv_type,
        context=config.context or max(least, 256 * math.ceil(needed / 256)),
        batch=max(2048, *config.ubatches, 0),
        parallel=config.parallel,
        spec_type=config.spec_type,
        spec_ngram=config.spec_ngram,
    )


def _gpu_and_ceiling(
    config: RunConfig,
    engine: EngineBuild,
    shape: MoeShape,
    machine: Machine,
    base: Placement,
    ubatches: tuple[int, ...],
    known_mib: float | None,
) -> tuple[Gpu, float]:
    wanted_mib = known_mib or config.vram_mib
    if engine.backend is Backend.CPU:
        if wanted_mib is None:
            plain = base.model_copy(update={"n_cpu_moe": shape.n_layers, "ubatch": max(ubatches)})
            always = estimate(shape, plain).vram_mib
            wanted_mib = always + VIRTUAL_EXPERT_SHARE * mib(shape.expert_bytes)
        ceiling_mib = float(math.floor(wanted_mib))
        return virtual_gpu(ceiling_mib), ceiling_mib
    gpu = _real_gpu(config, engine, machine)
    ceiling_mib = float(math.floor(wanted_mib or gpu.vram_free_mib - config.headroom_mib))
    if ceiling_mib > gpu.vram_free_mib:
        raise BadSettingError(
            f"A VRAM ceiling of {ceiling_mib:.0f} MiB is more than is free on {gpu.name}: "
            f"{gpu.vram_free_mib:.0f} of {gpu.vram_total_mib:.0f} MiB.",
            "Another program may hold some of it.",
            "Close it, or give a lower --vram.",
        )
    return gpu, ceiling_mib


def _real_gpu(config: RunConfig, engine: EngineBuild, machine: Machine) -> Gpu:
    if machine.gpus:
        if config.gpu is None:
            return max(machine.gpus, key=lambda gpu: gpu.vram_free_mib)
        return numbered_gpu(machine, config.gpu)
    if config.vram_mib is None:
        raise BadSettingError(
            f"The engine is built for {engine.backend}, but this GPU's memory cannot be read.",
            " ".join(machine.notes) or "NVML shows no GPU.",
            "Say how much it has with --vram, or use --backend cpu for the virtual GPU.",
        )
    size = config.vram_mib
    return Gpu(index=config.gpu or 0, name=str(engine.backend), vram_total_mib=size, vram_free_mib=size)


def numbered_gpu(machine: Machine, index: int) -> Gpu:
    """Return the GPU of NVML's number.

    Raises:
        BadSettingError: there is none of that number.
    """
    for gpu in machine.gpus:
        if gpu.index == index:
            return gpu
    indices = ", ".join(str(gpu.index) for gpu in machine.gpus)
    raise BadSettingError(f"There is no GPU {index}.", next_step=f"GPUs here: {indices}.")


def _one_ubatch(space: Space) -> Space:
    """Keep the largest ubatch whose buffers leave at least half of the ceiling to experts."""
    roomy = [u for u in space.ubatches if space.predicted_mib(space.all_cpu(u)) <= space.ceiling_mib / 2]
    return replace(space, ubatches=(max(roomy),) if roomy else (min(space.ubatches),))


def _require_ram(model: ModelFile, machine: Machine, base: Placement) -> None:
    if base.load_mode == "none" and mib(model.size_bytes) > machine.ram_total_mib:
        raise BadSettingError(
            f"{model.name} ({format_bytes(model.size_bytes)}) is larger than this machine's memory.",
            "Load mode 'none' reads all weights into memory.",
            "Use --load-mode auto or mmap.",
        )


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
