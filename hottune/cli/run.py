"""`hottune run`: from a model to a proven placement and its report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hottune.cli import options
from hottune.cli.common import close, console, emit_json, handled, make_progress
from hottune.errors import BadSettingError
from hottune.placement import KvType
from hottune.progress import Progress
from hottune.report import Format, render
from hottune.search.objective import Objective
from hottune.tasks.settings import RunConfig


def run(
    model: options.Model,
    vram: options.Vram = None,
    headroom: options.Headroom = None,
    ballast: options.Ballast = None,
    gpu: options.Gpu = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Baselines, five placements, winner measured twice.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Settings that ship: decode, document, thorough; or a .toml file."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=0, help="Placements after the baselines. Default: 28; demo 14; quick 5.")
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(min=1, help="Fresh servers of each arm at the end. Default: 5 to 8; demo 3; quick 2."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, max=3, help="Placements measured again. Default: 2; quick 1.")
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Like 20m or 2h, without the build. Quick: 4m.")
    ] = None,
    objective: Annotated[
        Objective | None,
        typer.Option(help="turn (default): wall-clock of a request; or the speed of one phase."),
    ] = None,
    min_prefill: Annotated[
        float | None,
        typer.Option(metavar="TOK_S", help="Recommend nothing that processes prompts slower than this."),
    ] = None,
    keep_free: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="VRAM below the ceiling that every arm must leave free."),
    ] = None,
    workload: options.WorkloadName = None,
    scale: options.Scale = None,
    context: options.Context = None,
    load_mode: options.LoadModeOption = None,
    kv: Annotated[
        list[KvType] | None,
        typer.Option("--kv", help="Element type of the KV cache, in every arm. Default: f16."),
    ] = None,
    ubatch: Annotated[
        list[int] | None, typer.Option(min=1, help="Physical batch to try; repeatable. Default: 512, 2048.")
    ] = None,
    threads: options.Threads = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Begin with what caches would have done on this .hottrace."),
    ] = None,
    warm_start: Annotated[
        bool | None,
        typer.Option(
            "--warm-start/--no-warm-start",
            help="Begin where earlier studies of this machine found the best. Default: yes.",
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study. Default: by the set-up.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna storage. Default: SQLite in ./studies.")
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="To work on a study beside others of this machine."),
    ] = None,
    reports: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: ./reports.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search. Default: 0.")] = None,
    port: options.Port = None,
    backend: options.BackendOption = None,
    source: options.Source = None,
    git: options.Git = None,
    llama_bin: options.LlamaBin = None,
    headers: options.Headers = None,
    sdist: options.Sdist = None,
    cmake_option: options.CmakeOption = None,
    engine: options.Engine = None,
    engine_bin: options.EngineBin = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every command it would run; start nothing.")
    ] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the fastest placement of MODEL under a VRAM ceiling, measure it against every baseline, report.

    Stop it at any time: the same command goes on where it was. With --engine (repeatable) another engine gets
    an arm of its own.
    """
    with handled(json_output):
        config = options.run_config(
            model=model,
            vram=vram,
            headroom=headroom,
            ballast=ballast,
            gpu=gpu,
            quick=quick or None,
            recipe=recipe,
            trials=trials,
            replicates=replicates,
            confirm_top=top,
            time_budget=time_budget,
            objective=objective,
            min_prefill_tok_s=min_prefill,
            keep_free=keep_free,
            workload=workload,
            scale=scale,
            context=context,
            load_mode=load_mode,
            kv_type=_one_kv_type(kv),
            ubatches=tuple(ubatch or ()),
            threads=threads,
            trace=options.absolute(trace),
            warm_start=warm_start,
            study=study,
            storage=storage,
            worker=worker,
            reports=reports,
            seed=seed,
            port=port,
            engines=options.engine_names(engine),
            engine_bins=options.engine_bins(engine_bin),
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
        if dry_run:
            show_dry_run(config, json_output)
        else:
            run_and_show(config, json_output, make_progress(quiet))


def _one_kv_type(types: list[KvType] | None) -> KvType | None:
    """Return the KV type of all arms.

    Raises:
        BadSettingError: several are asked for.
    """
    if types is not None and len(set(types)) > 1:
        raise BadSettingError(
            f"A study has one KV type, not {len(set(types))}: {', '.join(dict.fromkeys(types))}.",
            "A quantized KV cache changes what the model answers, so it is no question of speed alone.",
            "Run a study with each, and set their reports side by side.",
        )
    return types[0] if types else None


def run_and_show(config: RunConfig, json_output: bool, progress: Progress) -> None:
    """Run a study to its end and print its report."""
    from hottune import workflow

    try:
        report = workflow.run(config, progress)
    except KeyboardInterrupt:
        close(progress)
        console().print("Everything measured so far is kept; the same command goes on from there.")
        raise
    finally:
        close(progress)
    sys.stdout.write(render(report, Format.JSON if json_output else Format.TERMINAL))
    sys.stdout.flush()


def show_dry_run(config: RunConfig, json_output: bool) -> None:
    """Print the servers that a run would start first, as shell commands or JSON."""
    from hottune import workflow
    from hottune.engine.argv import shell_command

    plan, servers = workflow.dry_run(config)
    if json_output:
        emit_json(
            {
                "study": plan.name,
                "ceiling_mib": plan.ceiling_mib,
                "servers": [vars(server) for server in servers],
            }
        )
        return
    out = console()
    out.print(Text(f"Study {plan.name}, VRAM ceiling {plan.ceiling_mib:.0f} MiB. Nothing is started."))
    for server in servers:
        need = "" if server.predicted_vram_mib is None else f", about {server.predicted_vram_mib:.0f} MiB"
        who = "" if server.placement.engine else f"{server.arm}: "
        sys.stdout.write(f"# {who}{server.placement.label()}{need}\n")
        sys.stdout.write(shell_command(server.argv, server.env) + "\n")
    out.print("Then the sampler chooses, and the best of each arm is measured again.")
