"""`hottune replay`: what each cache would have done on a recorded routing."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.cli import common
from hottune.engine.replay_library import provide_replay_library
from hottune.errors import BadSettingError
from hottune.models.resolve import hub_repo, resolve_model
from hottune.models.shape import MoeShape
from hottune.models.shape_of import moe_shape
from hottune.placement import LARGEST_BYPASS, KvType, Policy
from hottune.progress import Progress
from hottune.routing.bound import Bandwidths, LayerLoad, Prediction, predict, token_load
from hottune.routing.profile import read_profile
from hottune.routing.replay import Reference, Replay, ReplayResult, ReplaySettings, Routing, references
from hottune.routing.trace import Trace
from hottune.tasks.traced import block_of, expert_bytes_of, read_recorded
from hottune.units import mib, parse_size

_POLICIES = get_args(Policy)
_SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)  # of the experts: the default sizes
_MOST_SLOTS = 1 << 16
_MOST_COLUMNS = 10


class ReplayRow(BaseModel):
    """One cache: what was counted, and what a token would take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    result: ReplayResult
    prediction: Prediction | None = Field(description="None without --model and --bandwidths")


class ReplayReport(BaseModel):
    """What `replay --json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace: Path
    truncated: bool
    tokens: int
    layers: int
    experts: int = Field(description="of a layer, most")
    choices: int
    expert_bytes: tuple[int, ...] | None
    rows: tuple[ReplayRow, ...]
    references: tuple[Reference, ...]


def replay(
    trace: Annotated[Path, typer.Argument(help="A routing trace that the device wrote.")],
    policy: Annotated[
        str, typer.Option(help=f"Policies, with commas: {', '.join(_POLICIES)}.")
    ] = "window,lru,lfru",
    slots: Annotated[
        str | None,
        typer.Option(help="Slots of a layer, with commas. Default: 1/16, 1/8, 1/4, 3/8, 1/2 of the experts."),
    ] = None,
    interval: Annotated[int, typer.Option(min=1, max=1_000_000, help="Tokens (window, lfru).")] = 60,
    hysteresis: Annotated[int, typer.Option(min=0, max=1_000_000, help="Uses (window).")] = 1,
    upload_mib: Annotated[
        int, typer.Option(min=1, help="Most that is uploaded for a batch; needs the size of an expert.")
    ] = 128,
    bypass: Annotated[
        int, typer.Option(min=1, max=LARGEST_BYPASS, help="Largest batch through the cache, tokens.")
    ] = LARGEST_BYPASS,
    arrival: Annotated[
        int, typer.Option(min=1, max=1000, help="Batches until an uploaded expert may be read.")
    ] = 1,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Saved profile whose experts come first.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The traced model (.gguf, owner/repo, demo): sizes of its experts.")
    ] = None,
    expert_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of one expert, like 2.5MiB, without --model.")
    ] = None,
    bandwidths: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of this machine's bandwidths: predicts times.")
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="Tokens in the KV cache, for predicted times.")] = 0,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Also show each layer's hit rate.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the counts of each layer.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Show what each cache would have hit, moved and missed on a recorded routing; nothing is measured."""
    with common.handled(json_output):
        progress = common.make_progress(quiet=json_output)
        policies = _policies(policy)
        recorded = _read(trace)
        routing = Routing.from_trace(recorded)
        sizes = _sizes(slots, max(layer.n_expert for layer in routing.layers))
        machine = _bandwidths(bandwidths)
        if machine is not None and model is None:
            raise BadSettingError("--bandwidths needs the model's sizes.", next_step="Add --model.")
        shape = _shape(model, progress) if model else None
        bytes_each = _expert_bytes(routing, shape, expert_bytes)
        uses = read_profile(profile) if profile else None
        if uses is None and "static" in policies:
            common.console().print(
                Text("static has no --profile: it keeps the first experts that come.", style="dim")
            )
        asked = [
            ReplaySettings(
                policy=one,
                slots=k,
                interval=interval,
                hysteresis=hysteresis,
                upload_mib=upload_mib,
                bypass=bypass,
                arrival=arrival,
            )
            for one in policies
            for k in sizes
        ]
        if by_layer and len(asked) > _MOST_COLUMNS:
            raise BadSettingError(
                f"--by-layer shows up to {_MOST_COLUMNS} caches, not {len(asked)}.",
                next_step="Ask for fewer, or use --csv.",
            )
        replayed = Replay(
            provide_replay_library(common.cache_dir(), progress),
            routing,
            expert_bytes=bytes_each,
            profile=uses,
        )
        if uses is not None and replayed.seeded_layers == 0:
            raise BadSettingError(
                f"The profile {profile} names no layer of the trace.",
                "It is of another model.",
                "Use a profile that was saved with this model.",
            )
        progress.start("Replaying", len(asked), "caches")
        results = replayed.sweep(asked, on_done=progress.update)
        progress.finish()
        report = ReplayReport(
            trace=trace,
            truncated=recorded.truncated,
            tokens=recorded.n_tokens,
            layers=len(routing.layers),
            experts=max(layer.n_expert for layer in routing.layers),
            choices=len(routing.experts),
            expert_bytes=tuple(bytes_each) if bytes_each else None,
            rows=tuple(
                ReplayRow(result=one, prediction=_prediction(one, bytes_each, shape, machine, context))
                for one in results
            ),
            references=tuple(references(routing, sizes, bypass=bypass)),
        )
        if csv_file is not None:
            _write_csv(report, csv_file)
        if json_output:
            common.emit_json(report)
        else:
            _show(report, Console(highlight=False), by_layer=by_layer)


def _policies(text: str) -> list[Policy]:
    names: list[Policy] = [name for name in _POLICIES if name in {part.strip() for part in text.split(",")}]
    unknown = [part.strip() for part in text.split(",") if part.strip() not in _POLICIES]
    if unknown:
        raise BadSettingError(f"'{unknown[0]}' is no policy.", next_step=f"Known are {', '.join(_POLICIES)}.")
    return names


def _sizes(text: str | None, n_expert: int) -> list[int]:
    if text is None:
        return sorted({max(1, round(n_expert * share)) for share in _SHARES})
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) <= _MOST_SLOTS for part in parts):
        raise BadSettingError(
            f"'{text}' is no list of slots.", next_step="Give numbers with commas, like --slots 8,16,32."
        )
    return sorted({int(part) for part in parts})


def _read(path: Path) -> Trace:
    recorded = read_recorded(path)
    if recorded.truncated:
        common.console().print(
            Text(f"{path} has no end (its server was killed, or still runs): replaying what is there."),
            soft_wrap=True,
        )
    return recorded


def _bandwidths(path: Path | None) -> Bandwidths | None:
    if path is None:
        return None
    try:
        return Bandwidths.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadSettingError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadSettingError(
            f"{path} does not hold bandwidths: {where + ': ' if where else ''}{first['msg']}.",
            next_step=f"It needs {', '.join(Bandwidths.model_fields)}.",
        ) from error


def _shape(model: str, progress: Progress) -> MoeShape:
    if (repo := hub_repo(model)) is not None:
        from hottune.models import huggingface

        return moe_shape(huggingface.remote_headers(*repo).headers)
    return resolve_model(model, cache_dir=common.cache_dir(), progress=progress).shape


def _expert_bytes(routing: Routing, shape: MoeShape | None, size: str | None) -> list[int] | None:
    if shape is None:
        if size is None:
            return None
        try:
            return [parse_size(size)] * len(routing.layers)
        except ValueError as error:
            raise BadSettingError(f"--expert-bytes: {error}.", next_step="Write it like 2.5MiB.") from error
    return expert_bytes_of(routing, shape)


def _prediction(
    result: ReplayResult,
    bytes_each: list[int] | None,
    shape: MoeShape | None,
    machine: Bandwidths | None,
    context: int,
) -> Prediction | None:
    if machine is None or shape is None or bytes_each is None:
        return None
    traced = {block_of(layer.name) for layer in result.layers}
    whole = [
        LayerLoad(expert_bytes=n_bytes / shape.n_experts, n_used=shape.n_used, misses=())
        for index, n_bytes in enumerate(shape.layer_expert_bytes)
        if n_bytes and index not in traced
    ]
    load = token_load(
        result,
        expert_bytes=bytes_each,
        dense_bytes=shape.dense_bytes,
        kv_bytes=shape.kv_bytes(context, KvType.F16, KvType.F16),
        layers_in_vram=whole,
    )
    return predict(load, machine)


def _write_csv(report: ReplayReport, path: Path) -> None:
    most = max(len(row.result.misses_of_tokens) for row in report.rows)
    try:
        with path.open("w", newline="", encoding="utf-8") as stream:
            out = csv.writer(stream)
            counts = ("hits", "misses", "cold_hits", "cold_misses", "uploads", "evictions", "uploaded_bytes")
            out.writerow(
                [
                    "policy",
                    "interval",
                    "layer",
                    "name",
                    "slots",
                    *counts,
                    *map("tokens_with_{}_misses".format, range(most)),
                ]
            )
            for row in report.rows:
                asked = row.result.settings
                for index, layer in enumerate(row.result.layers):
                    numbers = [getattr(layer, count) for count in counts]
                    first = [asked.policy, asked.interval, index, layer.name, layer.slots]
                    out.writerow([*first, *numbers, *layer.misses_of_tokens])
    except OSError as error:
        raise BadSettingError(f"{path} cannot be written: {error.strerror}.") from error


def _show(report: ReplayReport, out: Console, *, by_layer: bool) -> None:
    title = (
        f"{report.trace.name}: {report.tokens:,} tokens, {report.layers} layers, "
        f"{report.experts} experts, {report.choices:,} choices"
    )
    table = Table(box=None, title=title, title_justify="left")
    cold = report.rows[0].result.settings.cold_tokens
    for name in ("Policy", "Slots", "Hits %", f"first {cold}", "later", "Misses a layer", "90 %"):
        table.add_column(name, justify="left" if name == "Policy" else "right")
    for name in ("Uploads a token", "MiB a token", "Best fixed set %", "Any set %"):
        table.add_column(name, justify="right")
    predicted = report.rows[0].prediction is not None
    if predicted:
        table.add_column("ms a token", justify="right")
    fixed = {one.slots: (one.static_oracle, one.random) for one in report.references}
    for row in report.rows:
        result = row.result
        moved = result.uploaded_bytes
        mean, most = _spread(result.misses_of_tokens)
        cells = [
            result.settings.policy,
            str(result.settings.slots),
            *(f"{100 * rate:.1f}" for rate in (result.hit_rate, result.cold_hit_rate, result.warm_hit_rate)),
            f"{mean:.2f}",
            str(most),
            f"{result.uploads / max(1, result.tokens):.2f}",
            "?" if moved is None else f"{mib(moved) / max(1, result.tokens):.2f}",
            *(f"{100 * share:.1f}" for share in fixed[result.settings.slots]),
        ]
        table.add_row(*cells, *([f"{row.prediction.total_ms:.2f}"] if row.prediction else []))
    out.print(table)
    if by_layer:
        out.print(_layers_table(report))
    notes = ["Replayed, not measured."]
    notes += ["Times are a bound for these bandwidths, not a measurement."] * predicted
    notes += ["Sizes are not known (--model): uploads have no limit."] * (report.expert_bytes is None)
    out.print(Text(" ".join(notes), style="dim"))


def _layers_table(report: ReplayReport) -> Table:
    table = Table(box=None, title="Hits % by layer", title_justify="left")
    table.add_column("Layer")
    for row in report.rows:
        table.add_column(f"{row.result.settings.policy} {row.result.settings.slots}", justify="right")
    for index, layer in enumerate(report.rows[0].result.layers):
        rates = [
            100 * one.hits / max(1, one.hits + one.misses)
            for one in (row.result.layers[index] for row in report.rows)
        ]
        table.add_row(layer.name, *(f"{rate:.1f}" for rate in rates))
    return table


def _spread(misses_of_tokens: tuple[int, ...]) -> tuple[float, int]:
    """Return the mean number of misses, and the number that 90 % of (layer, token) pairs do not exceed."""
    total, seen = sum(misses_of_tokens), 0
    mean = sum(n * count for n, count in enumerate(misses_of_tokens)) / max(1, total)
    for n, count in enumerate(misses_of_tokens):
        seen += count
        if seen >= 0.9 * total:
            return mean, n
    return mean, 0
