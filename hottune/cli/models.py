"""`hottune models`: search, pull, inspect, synthesize and inflate models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.cli import common
from hottune.cli.inflate import inflate_command
from hottune.errors import BadSettingError
from hottune.models.blocks import WeightType
from hottune.models.inflation import Inflation, caveats, inflation_of
from hottune.models.memory import estimate, max_hot_k, min_n_cpu_moe
from hottune.models.resolve import hub_repo, resolve_model
from hottune.models.shape import ModelFile, MoeShape
from hottune.models.shape_of import moe_shape
from hottune.models.synthesize import DEFAULT_VOCABULARY, SYNTHETIC_KEY, SyntheticSpec, synthesize
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.units import format_bytes

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Download, inspect, synthesize and inflate models."
)

_CEILINGS_GIB = (8, 12, 16, 24)
_GPU_CONTEXT_MIB = 500.0  # what CUDA takes before llama.cpp does

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


class Fit(BaseModel):
    """What fits under one VRAM ceiling, by the memory model (nothing is measured here)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ceiling_gib: int
    n_cpu_moe: int | None = Field(
        description="fewest layers with experts in RAM; None = the model is too large"
    )
    hot_k: int = Field(description="experts of a layer that fit into a cache when all experts are in RAM")
    least_vram_mib: float = Field(description="need with all experts in RAM and no cache")


class Inspection(BaseModel):
    """What `models inspect --json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size_bytes: int
    path: Path | None = Field(description="None when only the headers were read over the network")
    synthetic: bool
    inflated: Inflation | None = Field(description="how a small model was inflated to this")
    shape: MoeShape
    context: int
    ubatch: int
    fits: list[Fit]


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="Words in the repository's name.")],
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most results to show.")] = 20,
    json_output: Json = False,
) -> None:
    """Search the Hugging Face Hub for repositories with GGUF files."""
    with common.handled(json_output):
        from hottune.models import huggingface

        found = huggingface.search(query, limit)
        if json_output:
            common.emit_json(found)
            return
        table = Table("Repository", box=None)
        table.add_column("Downloads a month", justify="right")
        table.add_column("Likes", justify="right")
        table.add_column("Updated")
        for model in found:
            table.add_row(model.repo, f"{model.downloads:,}", f"{model.likes:,}", model.updated)
        if found:
            Console(highlight=False).print(table)
        else:
            common.console().print(Text(f"No repository with GGUF files matches '{query}'."))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="owner/repo or owner/repo:QUANT; demo works too.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    json_output: Json = False,
) -> None:
    """Download a model; run it again to go on after an interruption."""
    with common.handled(json_output):
        found = _resolve(model, common.make_progress(quiet=json_output), revision)
        if json_output:
            common.emit_json(found)
        else:
            typer.echo(found.path)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A .gguf file, owner/repo[:QUANT], or demo.")],
    context: Annotated[int, typer.Option(min=1, help="Context length to plan for, tokens.")] = 4096,
    ubatch: Annotated[int, typer.Option(min=1, help="Physical batch to plan for, tokens.")] = 512,
    json_output: Json = False,
) -> None:
    """Show a model's experts, bytes, and what fits into 8 to 24 GiB of VRAM; downloads headers at most."""
    with common.handled(json_output):
        inspection = _inspect(model, context, ubatch, common.make_progress(quiet=json_output))
        if json_output:
            common.emit_json(inspection)
        else:
            _show(inspection, Console(highlight=False))


@app.command(name="synthesize")
def synthesize_command(
    out: Annotated[Path, typer.Argument(help="The .gguf file to write.")],
    layers: Annotated[int, typer.Option(help="Layers.")] = 48,
    experts: Annotated[int, typer.Option(help="Experts of a layer.")] = 128,
    used: Annotated[int, typer.Option(help="Experts used for a token.")] = 8,
    embd: Annotated[int, typer.Option(help="Width of the model.")] = 2048,
    ff: Annotated[int, typer.Option(help="Width of an expert.")] = 768,
    heads: Annotated[int | None, typer.Option(help="Attention heads of 128; by default width / 64.")] = None,
    quant: Annotated[WeightType, typer.Option(help="Type of the weights.", case_sensitive=False)] = (
        WeightType.Q4_K
    ),
    skew: Annotated[float, typer.Option(help="How uneven routing is: 0 not at all, 0.65 plausible.")] = 0.65,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 1,
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer/--no-tokenizer", help="Copy Qwen2's tokenizer into the model.")
    ] = True,
    json_output: Json = False,
) -> None:
    """Write a model of any shape with random weights: its speed is real, its text is not."""
    with common.handled(json_output):
        progress = common.make_progress(quiet=json_output)
        n_head = heads or max(1, embd // 64)
        try:
            spec = SyntheticSpec(
                n_layers=layers,
                n_experts=experts,
                n_used=used,
                n_embd=embd,
                n_ff_expert=ff,
                n_head=n_head,
                n_head_kv=next(n for n in (4, 2, 1) if n_head % n == 0),
                quant=quant,
                skew=skew,
                seed=seed,
                with_tokenizer=tokenizer,
            )
        except ValidationError as error:
            reasons = "; ".join(_reason(detail["loc"], detail["msg"]) for detail in error.errors())
            raise BadSettingError(
                f"No model can have this shape: {reasons}.", "", "Change the options."
            ) from error
        vocabulary = _source_dir(progress) / "models" / DEFAULT_VOCABULARY if tokenizer else None
        synthesize(out, spec, tokenizer_vocab=vocabulary, progress=progress)
        found = resolve_model(str(out.absolute()), cache_dir=common.cache_dir())
        if json_output:
            common.emit_json(found)
        else:
            typer.echo(found.path)


app.command(name="inflate")(inflate_command)


def _reason(location: tuple[int | str, ...], message: str) -> str:
    field = ".".join(str(part) for part in location)
    text = message.removeprefix("Value error, ")
    return f"{field}: {text}" if field else text


def _source_dir(progress: Progress) -> Path:
    from hottune.engine.build import BuildOptions, source_dir

    return source_dir(BuildOptions(), cache_dir=common.cache_dir(), progress=progress)


def _resolve(model: str, progress: Progress, revision: str | None = None) -> ModelFile:
    return resolve_model(model, cache_dir=common.cache_dir(), progress=progress, revision=revision)


def _inspect(model: str, context: int, ubatch: int, progress: Progress) -> Inspection:
    if (repo := hub_repo(model)) is not None:
        from hottune.models import huggingface

        remote = huggingface.remote_headers(*repo)
        name, size, path, shape = remote.name, remote.size_bytes, None, moe_shape(remote.headers)
        synthetic = remote.headers[0].metadata.get(SYNTHETIC_KEY) is True
        inflated = inflation_of(remote.headers[0])
    else:
        found = _resolve(model, progress)
        name, size, path, shape = found.name, found.size_bytes, found.path, found.shape
        synthetic, inflated = found.synthetic, found.inflated
    return Inspection(
        name=name,
        size_bytes=size,
        path=path,
        synthetic=synthetic,
        inflated=inflated,
        shape=shape,
        context=context,
        ubatch=ubatch,
        fits=[_fit(shape, ceiling, context, ubatch) for ceiling in _CEILINGS_GIB],
    )


def _fit(shape: MoeShape, ceiling_gib: int, context: int, ubatch: int) -> Fit:
    ceiling = ceiling_gib * 1024.0
    all_cpu = Placement(n_cpu_moe=shape.n_layers, threads=1, context=context, ubatch=ubatch)
    need = estimate(shape, all_cpu, overhead_mib=_GPU_CONTEXT_MIB)
    return Fit(
        ceiling_gib=ceiling_gib,
        n_cpu_moe=min_n_cpu_moe(shape, all_cpu, ceiling, overhead_mib=_GPU_CONTEXT_MIB),
        hot_k=max_hot_k(shape, all_cpu, ceiling, overhead_mib=_GPU_CONTEXT_MIB),
        least_vram_mib=need.vram_mib,
    )


def _show(inspection: Inspection, out: Console) -> None:
    shape = inspection.shape
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    kind = f"{shape.architecture}, {shape.n_params / 1e9:.3g} B weights, experts {shape.quant}"
    facts.add_row("Model", f"{inspection.name} ({kind}{', synthetic' if inspection.synthetic else ''})")
    facts.add_row("Layers", f"{shape.n_layers}, of which {shape.n_moe_layers} have experts")
    facts.add_row("Experts", f"{shape.n_experts} a layer, {shape.n_used} used for a token")
    facts.add_row("One expert", format_bytes(shape.one_expert_bytes))
    facts.add_row("All experts", format_bytes(shape.expert_bytes))
    facts.add_row("Always in VRAM", format_bytes(shape.dense_bytes))
    facts.add_row("Always in RAM", format_bytes(shape.host_bytes))
    per_token = shape.kv_elements_k + shape.kv_elements_v
    facts.add_row("KV cache", f"{format_bytes(2 * per_token)} a token (f16)")
    facts.add_row("Size", format_bytes(inspection.size_bytes))
    if inspection.inflated is not None:
        facts.add_row("Inflated", inspection.inflated.sentence)
        for line in caveats(inspection.inflated):
            facts.add_row("", line)
    out.print(facts)
    fits = Table(box=None, title=f"What fits: context {inspection.context}, ubatch {inspection.ubatch}")
    fits.add_column("VRAM", justify="right")
    fits.add_column("Whole layers (--n-cpu-moe)", justify="right")
    fits.add_column("or a cache of", justify="right")
    for fit in inspection.fits:
        if fit.n_cpu_moe is None:
            need = f"needs {format_bytes(fit.least_vram_mib * 1024 * 1024)} at least"
            fits.add_row(f"{fit.ceiling_gib} GiB", "too small", need)
        elif fit.n_cpu_moe == 0:
            fits.add_row(f"{fit.ceiling_gib} GiB", "0: all fits", "")
        else:
            share = f"{fit.hot_k} of {shape.n_experts} experts a layer"
            fits.add_row(f"{fit.ceiling_gib} GiB", str(fit.n_cpu_moe), share)
    out.print(fits)
    out.print(Text("Predicted from the header, not measured; `hottune run` measures.", style="dim"))
