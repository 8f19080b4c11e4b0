"""The setup block and the proof lines: what was measured, on what, and that it really was on."""

from __future__ import annotations

from collections.abc import Callable

from hottune.engine.facts import OtherEngine
from hottune.models.shape import ModelFile
from hottune.outcomes import Measurement
from hottune.placement import Placement
from hottune.report.schema import Report
from hottune.report.wording import is_virtual, measurements, share
from hottune.units import MIB, format_bytes, format_seconds


def setup(report: Report) -> list[tuple[str, str]]:
    """Return the setup as (label, value) pairs, the way people give it beside a table in a forum."""
    model, shape, engine = report.model, report.model.shape, report.engine
    work = report.workload
    cpu = report.machine.cpu
    lengths = [f"{item.prompt_tokens} in / {item.output_tokens} out" for item in work.requests]
    warm = lengths[work.warmup_requests :] or lengths
    return [
        ("GPU", _gpu(report)),
        (
            "VRAM ceiling",
            f"{_mib(report.ceiling_mib)}, the same for every arm{_ballast(report)}{_limits(report)}",
        ),
        (
            "CPU and RAM",
            f"{cpu.name}, {cpu.physical_cores} cores ({cpu.logical_cores} threads), "
            f"{_mib(report.machine.ram_total_mib)}{_host(report)}",
        ),
        ("Model", f"{model.name}, {format_bytes(model.size_bytes)}{_kind(model)}"),
        (
            "Experts",
            f"{shape.quant}, {shape.n_moe_layers} layers × {shape.n_experts}, {shape.n_used} used a token",
        ),
        (
            "KV and context",
            f"{_by_arm(report, lambda item: f'{item.kv_type_k.value}/{item.kv_type_v.value}')}, "
            f"{_by_arm(report, lambda item: f'{item.context} tokens')}",
        ),
        (
            "Batch",
            f"ubatch {_by_arm(report, lambda item: str(item.ubatch))}; "
            f"batch {_by_arm(report, lambda item: str(item.batch))}; "
            f"threads {_by_arm(report, lambda item: str(item.threads))}; "
            f"load mode {_by_arm(report, lambda item: item.load_mode.value)}",
        ),
        ("Workload", f"{work.name}: {', '.join(dict.fromkeys(warm))} tokens"),
        ("Runs", f"{_runs(report)}; objective: {_plain(report.objective)}"),
        *([("Search began with", "; ".join(report.began_with))] if report.began_with else []),
        ("llama.cpp", f"{engine.llama_build}, {engine.backend.value}, {engine.compiler} ({engine.source})"),
        *((f"{one.name}", _other(one)) for one in report.other_engines),
        ("hottune", f"{report.hottune_version}, {report.created:%Y-%m-%d}, {format_seconds(report.seconds)}"),
    ]


def _plain(objective: str) -> str:
    """Return an objective in words: `turn (chat)` for `turn_s (chat)`."""
    return objective.replace("_tok_s", " speed").replace("turn_s", "turn")


def _other(engine: OtherEngine) -> str:
    """Return what another engine is and how it was made."""
    source = f"{engine.git} at {(engine.commit or engine.ref)[:12]}"
    if engine.refused:
        return f"{source}; not built: {engine.refused}"
    if engine.prebuilt:
        return f"{engine.label}, {engine.backend.value}, handed in already built; its engine file: {source}"
    return f"{engine.label}, {engine.backend.value}, {engine.compiler} ({source}; {' '.join(engine.options)})"


def short_setup(report: Report) -> list[tuple[str, str]]:
    """Return the same as posts in a forum give it, a few words a line."""
    full = dict(setup(report))
    engine, cpu = report.engine, report.machine.cpu
    threads = _by_arm(report, lambda item: str(item.threads))
    return [
        ("GPU", full["GPU"] + (_ballast(report) and f"; {_ballast(report).removeprefix('; ')}")),
        ("CPU", f"{cpu.name}, {cpu.physical_cores} cores, threads {threads}"),
        ("RAM", f"{_mib(report.machine.ram_total_mib)}{_ram(report)}"),
        ("Model", full["Model"]),
        ("Quant", full["Experts"]),
        ("KV, context", full["KV and context"]),
        ("ubatch", _by_arm(report, lambda item: str(item.ubatch))),
        ("Workload", full["Workload"]),
        ("Runs", full["Runs"]),
        ("Software", f"llama.cpp {engine.llama_build} ({engine.backend.value}), hottune {full['hottune']}"),
        *((other.name, _other(other)) for other in report.other_engines),
    ]


def _ram(report: Report) -> str:
    return f", {report.machine.ram_speed}" if report.machine.ram_speed else ""


def _kind(model: ModelFile) -> str:
    if model.inflated is not None:
        return f", {model.inflated.base} inflated to the shape of {model.inflated.like}"
    return ", synthetic" if model.synthetic else ""


def _mib(amount: float) -> str:
    return format_bytes(amount * MIB)


def _limits(report: Report) -> str:
    kept = f"; {_mib(report.keep_free_mib)} of it kept free" if report.keep_free_mib else ""
    least = report.min_prefill_tok_s
    return kept + (f"; recommended: prefill of {least:g} tok/s or more" if least else "")


def _ballast(report: Report) -> str:
    return f"; a ballast held {_mib(report.ballast.held_mib)} of the card" if report.ballast else ""


def _host(report: Report) -> str:
    """Return what is known of memory speed, governor and confinement, each after a comma."""
    machine = report.machine
    words = [machine.ram_speed, machine.cpu.governor and f"governor {machine.cpu.governor}"]
    return "".join(f", {word}" for word in [*words, machine.confinement] if word)


def _gpu(report: Report) -> str:
    if is_virtual(report):
        return "virtual (computes on the CPU, with a memory cap)"
    gpus = [
        ", ".join(
            part
            for part in (
                gpu.name,
                _mib(gpu.vram_total_mib),
                (gpu.pcie_max or gpu.pcie) and f"PCIe {gpu.pcie_max or gpu.pcie}",
                gpu.driver and f"driver {gpu.driver}",
            )
            if part
        )
        for gpu in report.machine.gpus
        if not gpu.virtual
    ]
    return "; ".join(gpus) or "none"


def _by_arm(report: Report, read: Callable[[Placement], str]) -> str:
    """Return one value when all arms share it, else each value with its arms."""
    found: dict[str, list[str]] = {}
    for arm in report.arms:
        found.setdefault(read(arm.placement), []).append(arm.name)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in found.items())


def _runs(report: Report) -> str:
    counts = {len(arm.replicates) for arm in report.arms if arm.outcome == "measurement" and arm.replicates}
    if not counts:
        return "none repeated"
    number = str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{number} fresh servers an arm, interleaved"


def proof(report: Report) -> list[str]:
    """Return, for `fit`, other engines and arms with the cache, what shows that it was on.

    It is that of the first measured replicate.

    The last line says whose text was equal: proof of nothing without the lines before it.
    """
    lines = []
    for arm in report.arms:
        runs = measurements(arm)
        if runs and (
            line := _hot_proof(runs[0], arm.placement.hot_k, report.model.shape.n_experts)
            or _fit_proof(runs[0])
            or _engine_proof(runs[0], arm.placement.engine)
        ):
            lines.append(f"{arm.name}: {line}")
    return [*lines, text] if (text := text_equality(report)) else lines


def _hot_proof(run: Measurement, wanted: int, n_experts: int) -> str:
    hot = run.engagement.hot
    if hot is None:
        return ""
    fewer = f" of {wanted} asked for" if hot.slots < wanted else ""
    fallback = f", {hot.fallback_nodes} nodes fell back to the CPU" if hot.fallback_nodes else ""
    return (
        f"cache on {run.engagement.gpu_device}, {hot.layers} layers × {hot.slots} experts{fewer} "
        f"({format_bytes(hot.cache_bytes)}), {share(hot.hit_rate)} hits (any {hot.slots} experts: "
        f"{share(min(1.0, hot.slots / n_experts))}), {hot.uploads:,} uploads "
        f"({format_bytes(hot.uploaded_bytes)}){fallback}"
    )


def _engine_proof(run: Measurement, engine: str) -> str:
    if not engine:
        return ""
    found = run.engagement
    return (
        f"every line that its engine file asks for was in its log; {_mib(found.vram_model_mib)} of weights "
        f"on {found.gpu_device or 'no GPU'}, {_mib(found.host_model_mib)} in host memory"
    )


def _fit_proof(run: Measurement) -> str:
    fit = run.engagement.fit
    if fit is None:
        return ""
    layers = f"{fit.n_gpu_layers} of {fit.layers_total} layers" if fit.n_gpu_layers is not None else "placed"
    overrides = f", {len(fit.overrides)} tensor overrides" if fit.overrides else ""
    projected = f", {_mib(fit.projected_mib)} projected" if fit.projected_mib else ""
    return f"fit chose {layers}{overrides}{projected}"


def text_equality(report: Report) -> str:
    """Return which arms wrote the same text as all-cpu; "" when nobody compared."""
    same = [arm.name for arm in report.arms if arm.text_equal is True and arm.name != "all-cpu"]
    other = [arm.name for arm in report.arms if arm.text_equal is False]
    parts = [f"equal in {', '.join(same)}"] * bool(same) + [f"different in {', '.join(other)}"] * bool(other)
    return f"Text against all-cpu: {'; '.join(parts)}." if parts else ""
