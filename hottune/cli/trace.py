"""`hottune trace`: record a model's routing, generate one, or describe a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.cli import options
from hottune.cli.common import close, console, emit_json, handled, make_progress
from hottune.errors import BadSettingError, BadTraceError
from hottune.placement import Policy
from hottune.routing.summary import TraceSummary, summarize
from hottune.units import format_bytes

SUFFIX = ".hottrace"
_GENERATOR = "Generator"


def trace(
    model: Annotated[
        str | None,
        typer.Argument(help="A .gguf file, owner/repo[:quant] or demo; or a .hottrace file to describe."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Trace to write. Default: by the model."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to decode, or to generate. Default: the workload's; 4096."),
    ] = None,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Trace prompts, too, in batches of 64. Else: decoding only.")
    ] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Write the router's weights, too.")] = False,
    hot_k: Annotated[
        int | None,
        typer.Option("--hot-k", min=1, help="Experts of a layer kept in VRAM. Default: a quarter."),
    ] = None,
    policy: Annotated[Policy, typer.Option(help="Which experts are kept meanwhile.")] = "window",
    interval: Annotated[int, typer.Option(min=1, help="Tokens between rebalances (policy window).")] = 60,
    preset: Annotated[
        str | None,
        typer.Option(
            "--generate",
            metavar="PRESET",
            help="Generate the routing of a published model.",
            rich_help_panel=_GENERATOR,
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="With --generate: other layers.", rich_help_panel=_GENERATOR)
    ] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="With --generate: other experts.", rich_help_panel=_GENERATOR)
    ] = None,
    used: Annotated[
        int | None, typer.Option(min=1, help="With --generate: other top-k.", rich_help_panel=_GENERATOR)
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="With --generate: tokens of a prompt.", rich_help_panel=_GENERATOR)
    ] = 512,
    repetition: Annotated[
        float,
        typer.Option(help="With --generate: share of looping text, 0 to 0.95.", rich_help_panel=_GENERATOR),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="With --generate.", rich_help_panel=_GENERATOR)] = 0,
    vram: options.Vram = None,
    headroom: options.Headroom = None,
    gpu: options.Gpu = None,
    workload: options.WorkloadName = None,
    scale: options.Scale = None,
    context: options.Context = None,
    load_mode: options.LoadModeOption = None,
    threads: options.Threads = None,
    port: options.Port = None,
    backend: options.BackendOption = None,
    source: options.Source = None,
    git: options.Git = None,
    llama_bin: options.LlamaBin = None,
    headers: options.Headers = None,
    sdist: options.Sdist = None,
    cmake_option: options.CmakeOption = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Record which experts MODEL chooses for a workload, token by token, and say how well they would cache.

    Prompts are no part of the trace unless asked for. Ctrl-C keeps what was traced so far.
    """
    with handled(json_output):
        if preset is not None:
            if model is not None:
                raise BadSettingError("--generate needs no MODEL.", next_step="Leave one of them out.")
            path = target(out, preset)
            _generate(
                path, preset, tokens or 4096, _given(layers=layers, experts=experts, used=used),
                prompt_tokens, repetition, seed, quiet,
            )  # fmt: skip
            show({}, path, (), json_output)
        elif model is None:
            raise BadSettingError(
                "There is nothing to trace.",
                next_step="Name a MODEL, a .hottrace file, or --generate PRESET.",
            )
        elif model.endswith(SUFFIX):
            show({}, Path(model), (), json_output)
        else:
            config = options.run_config(
                model=model,
                vram=vram,
                headroom=headroom,
                gpu=gpu,
                workload=workload,
                scale=scale,
                context=context,
                load_mode=load_mode,
                threads=threads,
                port=port,
                engine=options.engine_options(
                    backend=backend,
                    source=source,
                    git=git,
                    llama_bin=llama_bin,
                    headers=headers,
                    sdist=sdist,
                    cmake_option=cmake_option,
                ),
            )
            changes = {"prompts": prompts, "policy": policy, "interval": interval}
            _record(config, out, tokens, hot_k, changes, weights, json_output, quiet)


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def target(out: Path | None, name: str) -> Path:
    """Return the file to write, checked to be none that must not be overwritten.

    Raises:
        BadSettingError: what is there is no trace, or it cannot be written.
    """
    from hottune.routing.trace_writer import refuse_foreign

    path = (out or Path(f"{name}{SUFFIX}")).expanduser().absolute()
    try:
        refuse_foreign(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")
    except OSError as error:
        raise BadSettingError(f"--out: {error}.", next_step="Give another file with --out.") from error
    return path


def _generate(
    path: Path,
    preset: str,
    n_tokens: int,
    changes: dict[str, int],
    prompt_tokens: int,
    repetition: float,
    seed: int,
    quiet: bool,
) -> None:
    from hottune.routing.generator import RoutingModel, generate
    from hottune.routing.presets import PRESETS
    from hottune.routing.trace_writer import TraceWriter

    if preset not in PRESETS:
        raise BadSettingError(f"There is no generator '{preset}'.", next_step=f"Known: {', '.join(PRESETS)}.")
    progress = make_progress(quiet)
    try:
        model = RoutingModel.model_validate(PRESETS[preset].model.model_dump() | changes)
        progress.start("Drawing the routing", model.layers, "layers")
        drawn = generate(
            model, n_tokens, prompt_tokens=prompt_tokens, seed=seed, repetition=repetition, workers=2,
            on_layer=progress.update,
        )  # fmt: skip
        progress.finish()
        progress.start("Writing the trace", n_tokens, "tokens")
        with TraceWriter(path) as writer:
            names = [f"blk.{layer}.ffn_up_exps.weight" for layer in range(model.layers)]
            writer.decode(names, model.experts, drawn.experts, progress.update)
        progress.finish()
    except ValueError as error:
        raise BadSettingError(f"No routing can be drawn so: {error}.") from error
    except OSError as error:
        raise BadSettingError(f"The trace cannot be written: {error}.", next_step="Give --out.") from error
    finally:
        close(progress)


def _record(
    config: Any,
    out: Path | None,
    tokens: int | None,
    hot_k: int | None,
    changes: dict[str, Any],
    weights: bool,
    json_output: bool,
    quiet: bool,
) -> None:
    from hottune.tasks import prepare, record
    from hottune.workload.workloads import context_needed, load_workload

    path = target(out, f"{Path(config.model).name.removesuffix('.gguf').replace(':', '-')}-{config.workload}")
    work = load_workload(config.workload, scale=config.scale or 1.0)
    if tokens is not None:
        work = record.with_tokens(work, tokens)
        if config.context is None and (needed := context_needed(work)) > prepare.LEAST_CONTEXT:
            config = config.model_copy(update={"context": 256 * -(-needed // 256)})
    progress = make_progress(quiet)
    kept = record.Recorded()
    try:
        plan = record.with_workload(prepare.prepare(config, progress), work)
        if context_needed(work) > plan.space.base.context:
            raise BadSettingError(
                f"A context of {plan.space.base.context} tokens is too short for {tokens} tokens.",
                next_step=f"Give --context {256 * -(-context_needed(work) // 256)}, or fewer --tokens.",
            )
        placement = record.placement_for(plan, hot_k, **changes)
        if plan.gpu.virtual:
            progress.say(prepare.VIRTUAL_LINE)
        progress.start("Tracing", len(work.requests), "requests")
        record.record(
            plan,
            placement,
            path,
            kept,
            weights=weights,
            note=lambda done, line: progress.update(done, note=line),
        )
        progress.finish()
    except KeyboardInterrupt:
        close(progress)
        if kept.requests:
            console().print(Text(f"What was traced so far is in {path}."), soft_wrap=True)
        raise
    finally:
        close(progress)
    facts = {
        "model": plan.model.name,
        "workload": work.name,
        "placement": placement,
        "requests": [vars(one) for one in kept.requests],
        "hot": kept.hot,
    }
    show(facts, path, kept.starts, json_output)


def show(facts: dict[str, Any], path: Path, starts: tuple[int, ...], json_output: bool) -> None:
    """Read a trace back and print what it holds.

    Args:
        facts: of the recording, for `--json`.
        path: the trace.
        starts: tokens with which requests begin.
        json_output: print JSON instead of tables.

    Raises:
        BadTraceError: it cannot be read, or holds nothing.
    """
    from hottune.routing.trace import TraceFormatError, read_trace

    try:
        summary = summarize(read_trace(path), path.stat().st_size, starts)
    except TraceFormatError as error:
        raise BadTraceError(f"{error}.") from error
    except (OSError, ValueError) as error:
        raise BadTraceError(f"{path} says nothing about routing: {error}.") from error
    if json_output:
        emit_json({"path": path, **facts, "summary": without_nan(summary.model_dump(mode="python"))})
    else:
        _print(path, summary, Console(highlight=False))


def without_nan(value: Any) -> Any:
    """Return plain data with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(one) for one in value]
    return None if value != value else value


def _print(path: Path, summary: TraceSummary, out: Console) -> None:
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    first = summary.layers[0]
    what = "decoded tokens only"
    if summary.prompt_tokens:
        what = f"{summary.prompt_tokens} of them in batches, as prompts are"
    tail = ", not ended properly" if summary.truncated else ""
    facts.add_row("Trace", f"{path} ({format_bytes(summary.bytes)}, version {summary.version}{tail})")
    facts.add_row("Tokens", f"{summary.tokens:,}: {what}")
    facts.add_row(
        "Choices", f"{summary.choices:,}: {len(summary.layers)} layers, {first.used} of {first.experts}"
    )
    facts.add_row(
        "Bytes a choice", f"{summary.bytes_per_choice:.2f}" + " and 2 of weight" * summary.has_weights
    )
    facts.add_row("Repeat", f"{summary.repeat_next:.1%} at the next token, {summary.repeat_8:.1%} within 8")
    facts.add_row(
        "LRU, 25 % of experts", f"{summary.lru_hit:.1%} hits; a random set {summary.random_hit:.1%}"
    )
    facts.add_row(
        "Its misses",
        f"{_share(summary.first_miss)} in the first 64 tokens, {_share(summary.later_miss)} later",
    )
    facts.add_row("Most used 25 %", f"{summary.static_share:.1%} of the choices")
    facts.add_row(
        "Skew", f"most used {summary.max_over_mean:.1f} times the mean, evenness {summary.entropy:.3f}"
    )
    facts.add_row("Never chosen", f"{summary.unused:.1%} of the experts")
    out.print(facts)
    table = Table(box=None, title="By layer")
    for name in ("Layer", "Tokens", "Repeat", "Within 8", "LRU 25 %", "Top 25 %", "Max/mean", "Unused"):
        table.add_column(name, justify="right")
    for one in summary.layers:
        rates = (one.repeat_next, one.repeat_8, one.lru_hit, one.static_share)
        row = [str(one.layer), str(one.tokens), *(_share(rate) for rate in rates)]
        table.add_row(*row, f"{one.max_over_mean:.1f}", _share(one.unused))
    out.print(table)


def _share(value: float) -> str:
    return "–" if value != value else f"{value:.1%}"
