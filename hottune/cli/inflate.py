"""`hottune models inflate`: a small trained model in a large one's shape."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.text import Text

from hottune.cli import common
from hottune.errors import BadSettingError
from hottune.models.base_model import BaseModel as SmallModel
from hottune.models.inflate import inflate
from hottune.models.inflation import Inflation, card, caveats
from hottune.models.resolve import hub_repo, load_model, resolve_model
from hottune.models.shape import ModelFile
from hottune.models.target import Recipe, Target, read_target, target_of_numbers, with_layers
from hottune.progress import Progress
from hottune.units import format_bytes, format_seconds

_HEAD_DIM = 128  # of the heads that --heads and --kv-heads count


class Inflated(BaseModel):
    """What `models inflate --json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelFile
    card: Path = Field(description="the model card, a text file")
    seconds: float = Field(description="time that writing took")
    peak_rss_mib: float = Field(description="most memory that the process had, MiB")


def inflate_command(
    base: Annotated[str, typer.Argument(help="The small model: demo, or a Q4_0 .gguf made like it.")],
    out: Annotated[Path, typer.Argument(help="The .gguf file to write; a model card goes beside it.")],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Take shapes and types from this .gguf or owner/repo[:QUANT]; only its header is read.",
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers; with --like, a smaller depth.")] = None,
    experts: Annotated[int | None, typer.Option(min=2, help="Experts of a layer.  [default: 128]")] = None,
    used: Annotated[int | None, typer.Option(min=1, help="Experts used for a token.  [default: 8]")] = None,
    embd: Annotated[int | None, typer.Option(min=32, help="Width of the model.  [default: 2048]")] = None,
    ff: Annotated[int | None, typer.Option(min=32, help="Width of an expert.  [default: 768]")] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Query heads of 128.  [default: width / 64]")
    ] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key/value heads of 128.  [default: 4]")] = None,
    vocab: Annotated[
        int | None, typer.Option(min=1, help="Tokens; by default as many as the small model has.")
    ] = None,
    quant: Annotated[
        Recipe | None, typer.Option(help="Types of the weights.  [default: Q4_K_M]", case_sensitive=False)
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Write the trained demo in a large model's shape: real routing and text, the large one's bytes."""
    with common.handled(json_output):
        progress = common.make_progress(quiet=json_output)
        if like is not None:
            numbers = (experts, used, embd, ff, heads, kv_heads, vocab, quant)
            if any(number is not None for number in numbers):
                raise BadSettingError(
                    "--like already says the shape.", "", "With --like give at most --layers."
                )
            target = read_target(like)
            target = with_layers(target, layers) if layers else target
            named = like if hub_repo(like) is not None else Path(like).name  # not where it lies here
            said = ["--like", named, *(["--layers", str(layers)] if layers else [])]
        else:
            width, recipe = embd or 2048, quant or Recipe.Q4_K_M
            target = target_of_numbers(
                n_layers=layers or 48,
                n_experts=experts or 128,
                n_used=used or 8,
                n_embd=width,
                n_ff=ff or 768,
                q_width=_HEAD_DIM * (heads or max(4, width // 64)),
                kv_width=_HEAD_DIM * (kv_heads or 4),
                n_vocab=vocab or 0,
                recipe=recipe,
            )
            said = _numbers(target, recipe)
        done = _inflate(base, out.absolute(), replace(target, options=tuple(said)), progress)
        if json_output:
            common.emit_json(done)
        else:
            typer.echo(done.model.path)
            _explain(done)


def _numbers(target: Target, recipe: Recipe) -> list[str]:
    """Return the options that ask for a target, those that were left at their defaults, too."""
    found = {
        "--layers": target.n_layers,
        "--experts": target.n_experts,
        "--used": target.n_used,
        "--embd": target.n_embd,
        "--ff": target.n_ff,
        "--heads": target.q_width // _HEAD_DIM,
        "--kv-heads": target.kv_width // _HEAD_DIM,
        "--quant": recipe.value,
    }
    found |= {"--vocab": target.n_vocab} if target.n_vocab else {}
    return [str(word) for pair in found.items() for word in pair]


def _inflate(base: str, out: Path, target: Target, progress: Progress) -> Inflated:
    small = resolve_model(base, cache_dir=common.cache_dir(), progress=progress)
    if out == small.path:
        raise BadSettingError(f"{out} is the small model itself.", "", "Name another file to write.")
    started = time.monotonic()
    found = inflate(out, SmallModel(small.path), target, base_name=small.name, progress=progress)
    seconds = time.monotonic() - started
    beside = out.with_name(f"{out.stem}.card.md")
    beside.write_text(card(out.stem, found), encoding="utf-8")
    return Inflated(
        model=load_model(out, str(out)), card=beside, seconds=seconds, peak_rss_mib=_peak_rss_mib()
    )


def _explain(done: Inflated) -> None:
    console = common.console()
    found = done.model.inflated
    assert isinstance(found, Inflation)  # it was written a moment ago
    console.print(Text(found.sentence))
    for line in caveats(found):
        console.print(Text(f"- {line}", style="dim"))
    speed = format_bytes(done.model.size_bytes / max(done.seconds, 1e-3))
    console.print(
        Text(
            f"{format_bytes(done.model.size_bytes)} in {format_seconds(done.seconds)} ({speed}/s), "
            f"{done.peak_rss_mib:.0f} MiB of memory at most. Card: {done.card}"
        )
    )


def _peak_rss_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
