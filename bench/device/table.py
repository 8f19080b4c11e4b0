"""The benchmark's result file and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from hottune.engine.facts import EngineBuild
from hottune.machine.facts import Machine
from hottune.models.shape import ModelFile, MoeShape
from hottune.outcomes import Measurement
from hottune.report.schema import Arm
from hottune.routing.bound import Bandwidths
from hottune.workload.facts import Workload

STATIC = ("all-cpu", "layers", "fit")
_GB = 1e9


class Row(BaseModel):
    """One cell, measured: an arm of the tool's own result schema, and the ceiling it kept to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    percent: float
    ceiling_mib: float | None
    arm: Arm
    floor_ms: float | None = None


class Result(BaseModel):
    """The whole benchmark of one model on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    commands: list[str]
    machine: Machine
    engine: EngineBuild
    model: ModelFile
    workload: Workload
    bandwidths: Bandwidths | None = None
    rows: list[Row] = []


def write(result: Result, path: Path) -> None:
    """Replace the file in one step: what was measured is never lost half way."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result.model_dump(mode="json"), indent=1) + "\n")
    part.replace(path)


def floor_ms(shape: MoeShape, measured: Measurement, arm: Arm, machine: Bandwidths | None) -> float | None:
    """Return the least time a token can take at the measured hit rate, ms; None without bandwidths.

    All bytes it needs, each read once at the speed that was measured for its link: dense weights and KV (half
    full) and resident experts from VRAM, missed experts by CPU and PCIe together. No latency, no launch.
    """
    if machine is None or arm.name in (
        "fit",
        "probe",
    ):  # the first's layers and the second's misses are not known
        return None
    p = arm.placement
    hits = measured.hit_rate or 0.0
    used = sum(shape.layer_expert_bytes[: p.n_cpu_moe]) / shape.n_experts * shape.n_used
    whole = sum(shape.layer_expert_bytes[p.n_cpu_moe :]) / shape.n_experts * shape.n_used
    kv = shape.kv_bytes(p.context // 2, p.kv_type_k, p.kv_type_v)
    in_vram = (shape.dense_bytes + kv + whole) / machine.hbm
    cached = used * hits / machine.hbm
    missed = (
        used * (1 - hits) / (machine.cpu_overlapped + machine.pcie_overlapped if p.hot_k else machine.cpu)
    )
    return (in_vram + max(cached, missed)) / _GB * 1e3


def table(result: Result) -> str:
    """Return the rows and their summary as Markdown."""
    gpu = result.machine.gpus[0].name if result.machine.gpus else "virtual GPU"
    shape = result.model.shape
    lines = [
        f"{gpu}, {result.machine.cpu.name}. {shape.n_layers} layers x {shape.n_experts} experts, "
        f"{shape.n_used} used, "
        f"{sum(shape.layer_expert_bytes) / 2**30:.1f} GiB of experts ({shape.quant}). Workload "
        f"{result.workload.name}: " + ", ".join(_length(one) for one in result.workload.requests[1:]) + ".",
        "",
        *(f"    {command}" for command in result.commands),
        "",
        "| VRAM | arm | placement | decode tok/s | prefill tok/s | first token ms | VRAM MiB | hits | slots "
        "| uploaded MB/token | fetched | µs a block: submit, cold, wait | share of the roofline |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    lines += [_line(row) for row in sorted(result.rows, key=lambda row: (row.percent, row.key))]
    return "\n".join([*lines, "", *summary(result), ""])


def summary(result: Result) -> list[str]:
    """Return, for each ceiling, the arms against the best static one; best ubatch against best ubatch."""
    lines = [
        "| VRAM | arm | decode | against the best static | prefill | against the best static |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    groups = sorted({(row.percent, _setting(row)) for row in result.rows if row.percent > 0})
    for percent, setting in groups:
        here = [
            row
            for row in result.rows
            if _setting(row) == setting and row.percent in (percent, 0) and row.arm.decode_tok_s
        ]
        static = [row for row in here if row.arm.name in STATIC]
        for name in ("hot", "hot+layers", "probe"):
            own = [row for row in here if row.arm.name == name]
            if not static or not own:
                continue
            decode, prefill = _best(own, "decode_tok_s"), _best(own, "prefill_tok_s")
            lines.append(
                f"| {percent:g} % {setting} | {name} "
                f"| {decode:.1f} | {decode / _best(static, 'decode_tok_s'):.2f}x "
                f"| {prefill:.0f} | {prefill / _best(static, 'prefill_tok_s'):.2f}x |"
            )
    return lines


def _best(rows: list[Row], field: str) -> float:
    return max(float(getattr(row.arm, field)) for row in rows)


def _setting(row: Row) -> str:
    """What must be equal for rows to be compared: all but arm and ubatch."""
    return " ".join(word for word in row.key.split()[2:] if not word.startswith("ub"))


def _length(request: Any) -> str:
    return f"{request.prompt_tokens} tokens in, {request.output_tokens} out"


def _line(row: Row) -> str:
    arm = row.arm
    found = [one.outcome for one in arm.replicates if isinstance(one.outcome, Measurement)]
    if not found or not arm.decode_tok_s:
        return (
            f"| {row.percent:g} % | {arm.name} | {arm.placement.label()} | {arm.outcome}: {arm.detail} "
            + "|" * 10
        )
    hot = found[-1].engagement.hot
    tokens = sum(r.output_tokens for r in found[-1].requests)
    cells = [f"{row.percent:g} %", arm.name, f"{arm.placement.label()} t {arm.placement.threads}"]
    cells += [f"{arm.decode_tok_s:.1f}", f"{arm.prefill_tok_s or 0:.0f}", f"{arm.ttft_ms or 0:.0f}"]
    cells += [f"{arm.vram_peak_mib or 0:.0f}", f"{arm.hit_rate:.1%}" if arm.hit_rate is not None else ""]
    if hot is None:
        cells += ["", "", "", ""]
    else:
        times = ", ".join(f"{hot.time_us.get(phase, 0):.0f}" for phase in ("submit", "cold", "wait"))
        cells += [
            str(hot.slots),
            f"{hot.uploaded_bytes / tokens / 1e6:.0f}",
            f"{hot.fetched_bytes / tokens / 1e6:.0f}",
        ]
        cells += [times]
    share = row.floor_ms * arm.decode_tok_s / 1e3 if row.floor_ms else None
    return "| " + " | ".join([*cells, f"{share:.0%}" if share else ""]) + " |"
