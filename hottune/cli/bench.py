"""`hottune bench`: one placement, measured in fresh servers; or an endpoint, measured as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hottune.cli import options
from hottune.cli.common import close, console, emit_json, error_facts, handled, make_progress
from hottune.placement import LARGEST_BYPASS, STREAM_FROM, Policy, SpecType

if TYPE_CHECKING:
    from hottune.tasks.benched import Benched


def bench(
    ctx: typer.Context,
    model: options.ModelOrNone = None,
    hot_k: Annotated[
        int, typer.Option("--hot-k", min=0, help="Experts of a layer kept in VRAM; 0 = the device is off.")
    ] = 0,
    n_cpu_moe: Annotated[
        int | None, typer.Option(min=0, help="Layers whose experts stay in RAM. Default: all.")
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit", help="Let llama.cpp's --fit place everything; with --hot-k, beside room for the cache."
        ),
    ] = False,
    policy: Annotated[
        Policy,
        typer.Option(
            help="Which experts are kept: most used lately (window, lfru), last used, or a profile's."
        ),
    ] = "lfru",
    interval: Annotated[int, typer.Option(min=1, help="Tokens between rebalances (window, lfru).")] = 60,
    shared_budget: Annotated[
        bool, typer.Option("--shared-budget", help="Give layers that miss more a larger part of the cache.")
    ] = False,
    upload_mib: Annotated[int, typer.Option(min=1, help="Most MiB uploaded to the cache for a batch.")] = 128,
    stream: Annotated[
        int,
        typer.Option(
            min=0, help="Batches of so many tokens and more pass all experts through VRAM; 0 = none."
        ),
    ] = STREAM_FROM,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Fill the cache by this saved profile or imatrix GGUF first."),
    ] = None,
    save_profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write how often each expert was used, for --profile.")
    ] = None,
    bypass: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LARGEST_BYPASS,
            help="Largest batch, in tokens, that goes through the cache. Default: that of decoding.",
        ),
    ] = None,
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Requests in flight at once, each with its own context.")
    ] = 1,
    spec_type: Annotated[
        SpecType, typer.Option(help="Speculative decoding of llama-server without a draft model.")
    ] = "none",
    spec_ngram: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Tokens that must repeat for a draft. Default: llama.cpp's."),
    ] = None,
    ubatch: Annotated[int, typer.Option(min=1, help="Physical batch, tokens.")] = 512,
    replicates: Annotated[
        int, typer.Option(min=1, help="Fresh servers, one after another; with --endpoint: passes.")
    ] = 1,
    vram: options.Vram = None,
    headroom: options.Headroom = None,
    ballast: options.Ballast = None,
    gpu: options.Gpu = None,
    workload: options.WorkloadName = None,
    scale: options.Scale = None,
    context: options.Context = None,
    load_mode: options.LoadModeOption = None,
    kv: options.KvOption = None,
    threads: options.Threads = None,
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
    endpoint: options.Endpoint = None,
    model_name: options.ModelName = None,
    api_key_env: options.ApiKeyEnv = None,
    chat: options.Chat = None,
    label: options.Label = None,
    out: options.EndpointOut = None,
    timeout: options.Timeout = 600.0,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure one placement of MODEL in fresh servers, or an OpenAI-compatible server with --endpoint.

    What is no measurement ends with its own exit code: 32 when the server ran but not as asked, 33 when an
    endpoint cannot be measured, 31 else. With --engine, another engine serves the placement.
    """
    with handled(json_output):
        from hottune.cli import endpoint as other

        other.require_one_kind(ctx, model, endpoint)
        if endpoint is not None:
            other.bench_endpoint(
                endpoint,
                workload=workload,
                scale=scale,
                parallel=parallel,
                passes=replicates,
                model_name=model_name,
                api_key_env=api_key_env,
                chat=chat,
                label=label,
                out=options.absolute(out),
                timeout_s=timeout,
                json_output=json_output,
                quiet=quiet,
            )
            return
        from hottune.tasks.benched import Asked
        from hottune.tasks.benched import bench as measured

        config = options.run_config(
            model=model or "",
            vram=vram,
            headroom=headroom,
            ballast=ballast,
            gpu=gpu,
            workload=workload,
            parallel=parallel,
            spec_type=spec_type,
            spec_ngram=spec_ngram,
            scale=scale,
            context=context,
            load_mode=load_mode,
            kv_type=kv,
            ubatches=(ubatch,),
            threads=threads,
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
        asked = Asked(
            hot_k=hot_k,
            n_cpu_moe=n_cpu_moe,
            fit=fit,
            policy=policy,
            rebalance_interval=interval,
            shared_budget=shared_budget,
            upload_mib=upload_mib,
            stream_from=stream if hot_k else 0,
            hot_profile=options.absolute(profile),
            prefill_bypass=bypass,
            ubatch=ubatch,
        )
        asked.require_sense(spec_type, spec_ngram, save_profile)
        asked = asked.in_engine(config, save_profile)
        progress = make_progress(quiet)
        try:
            done = measured(config, asked, replicates, progress, save_profile=options.absolute(save_profile))
        finally:
            close(progress)
        _show(done, json_output, quiet)


def _show(done: Benched, json_output: bool, quiet: bool) -> None:
    """Print what was measured; where that is not all, end with the exit code that says why."""
    from hottune.tasks.benched import summary
    from hottune.tasks.commands import argv_and_env
    from hottune.tasks.show import outcome_line

    plan, error = done.plan, done.error
    argv, env = argv_and_env(plan, done.placement)
    if json_output:
        emit_json(
            {
                "model": plan.model.name,
                "ceiling_mib": plan.ceiling_mib,
                "ballast": plan.ballast.facts if plan.ballast else None,
                "placement": done.placement,
                "argv": argv,
                "env": env,
                **summary(done.outcomes),
                "warnings": done.warnings,
                "outcomes": done.outcomes,
                "error": error_facts(error) if error else None,
            }
        )
    elif quiet:
        for outcome in done.outcomes:
            console().print(Text(outcome_line(outcome)), soft_wrap=True)
    if error is not None:
        with handled():  # not as JSON a second time
            raise error
