"""How `hottune plan` shows what it found to people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.tasks.plan import CeilingPlan, PlannedPlacement
from hottune.tasks.plan_report import PlanReport
from hottune.tasks.try_out import TryReport
from hottune.units import MIB, format_bytes

NO_GPU = (
    "No speeds: they need a GPU's bandwidths, and none was measured ({}). "
    "Give some with --gpu-bandwidth HBM,PCIE."
)

_LEFT_OUT = "layers left out: "


def show(report: PlanReport, out: Console) -> None:
    """Show shapes, and for each ceiling the placements with their memory and predicted speed."""
    shape = report.shape
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    kind = f"{shape.architecture}, {shape.n_params / 1e9:.3g} B weights, experts {shape.quant}"
    facts.add_row("Model", f"{report.name} ({kind})")
    if report.inflated is not None:
        facts.add_row("", report.inflated.sentence)
    over = "" if report.bytes_read is None else f", {format_bytes(report.bytes_read)} of it read"
    facts.add_row("Size", f"{format_bytes(report.size_bytes)}{over}")
    facts.add_row("Layers", f"{shape.n_layers}, of which {shape.n_moe_layers} have experts")
    facts.add_row("Experts", f"{shape.n_experts} a layer, {shape.n_used} used for a token")
    each = format_bytes(shape.one_expert_bytes)
    facts.add_row("Bytes", f"one expert {each}, all {format_bytes(shape.expert_bytes)}")
    facts.add_row("Always in VRAM", format_bytes(shape.dense_bytes))
    out.print(facts)
    for one in report.ceilings:
        out.print(_table(one, report))
    for line in _remarks(report):
        out.print(Text(line, style="dim"), soft_wrap=True)


def _table(one: CeilingPlan, report: PlanReport) -> Table | Text:
    ceiling = format_bytes(one.ceiling_mib * MIB)
    if not one.placements:
        need = format_bytes(one.least_mib * MIB)
        return Text(f"{ceiling} of VRAM is too small: it takes {need} at least.")
    table = Table(box=None, title=f"Predicted under {ceiling} of VRAM", title_justify="left")
    table.add_column("Placement")
    for name in ("VRAM", "RAM", "Hits (assumed)", "RAM a token"):
        table.add_column(name, justify="right")
    if report.used is not None:
        for name in ("Decode tok/s", "at most", "Prefill at most"):
            table.add_column(name, justify="right")
    for row in one.placements:
        table.add_row(*_cells(row, report))
    return table


def _cells(row: PlannedPlacement, report: PlanReport) -> list[str]:
    placement = row.placement
    cache = f" + {placement.hot_k} experts of each" if placement.hot_k else ""
    where = f"{placement.n_cpu_moe} layers in RAM{cache}"
    ram = format_bytes(row.need.host_mib * MIB)
    cells = [
        f"{row.arm}: {where}",
        format_bytes(row.vram_mib * MIB),
        ram + ("!" if row.need.host_mib > report.machine.ram_total_mib else ""),
        "" if row.hit_rate is None else f"{row.hit_rate:.0%}",
        f"{row.ram_gb_per_token:.2f} GB",
    ]
    if row.speed is not None:
        prefill = row.speed.prefill_at_most_tok_s
        cells += [
            f"{row.speed.decode_tok_s:.1f}",
            f"{row.speed.decode_at_most_tok_s:.1f}",
            "" if prefill is None else f"{prefill:.0f}",
        ]
    return cells


def _remarks(report: PlanReport) -> list[str]:
    lines = ["Predicted from the header, not measured; --try measures on a stand-in, `hottune run` for real."]
    if report.used is None:
        lines.append(NO_GPU.format(report.bandwidths.gpu_reason))
    lines += [f"Assumed: {one}." for one in report.assumptions]
    rows = [row for one in report.ceilings for row in one.placements]
    if any(row.need.host_mib > report.machine.ram_total_mib for row in rows):
        lines.append(f"! more than this machine's RAM, {format_bytes(report.machine.ram_total_mib * MIB)}.")
    return lines


def show_tried(tried: TryReport, out: Console) -> None:
    """Show what was measured on the inflated model, and what that was."""
    depth = f"{tried.layers} of {tried.layers_of_the_model} layers, {format_bytes(tried.file_bytes)}"
    ceiling = format_bytes(tried.ceiling_mib * MIB)
    title = (
        f"Measured on the inflated model ({depth}) under {ceiling} on {tried.gpu}, workload {tried.workload}"
    )
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("Placement")
    for name in ("Decode tok/s", "predicted", "Prefill tok/s", "VRAM", "Hits"):
        table.add_column(name, justify="right")
    for one in tried.tried:
        if one.decode_tok_s is None:
            table.add_row(f"{one.arm}: {one.placement.label()}", one.outcome.replace("_", " "))
            continue
        predicted = one.predicted_decode_tok_s
        table.add_row(
            f"{one.arm}: {one.placement.label()}",
            f"{one.decode_tok_s:.1f}",
            "" if predicted is None else f"{predicted:.1f}",
            f"{one.prefill_tok_s:.0f}",
            f"{one.vram_peak_mib:.0f} MiB",
            "" if one.hit_rate is None else f"{one.hit_rate:.0%}",
        )
    out.print(table)
    out.print(Text(tried.inflated.sentence), soft_wrap=True)
    for line in tried.notes:
        if _LEFT_OUT in line:
            continue  # tensor by tensor what the number of layers says; --json has it
        out.print(Text(f"- {line}", style="dim"), soft_wrap=True)
    if tried.layers < tried.layers_of_the_model:
        less = "Fewer layers are faster than the whole model by about that factor: compare placements."
        out.print(Text(less, style="dim"), soft_wrap=True)
    if tried.virtual:
        out.print(Text("Virtual GPU: these numbers show the tool, not a gain.", style="dim"))
    if tried.kept:
        out.print(Text(f"Kept: {tried.kept}"), soft_wrap=True)
