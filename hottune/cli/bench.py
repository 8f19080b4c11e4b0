"""`hottune bench`: one placement, measured in fresh servers; or an endpoint, measured as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from hottune.cli import options
from hottune.cli.common import console, emit_json, error_facts, handled, make_progress, show_error
from hottune.cli.run import close
from hottune.errors import BadSettingError, HottuneError
from hottune.outcomes import Measurement, Outcome
from hottune.placement import LARGEST_BYPASS, STREAM_FROM, Placement, Policy, SpecType
from hottune.tasks.settings import RunConfig


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
        changes: dict[str, Any] = {
            "hot_k": hot_k,
            "fit": fit,
            "policy": policy,
            "rebalance_interval": interval,
            "shared_budget": shared_budget,
            "upload_mib": upload_mib,
            "stream_from": stream if hot_k else 0,
            "hot_profile": options.absolute(profile),
            "ubatch": ubatch,
        }
        for name, value in (("n_cpu_moe", n_cpu_moe), ("prefill_bypass", bypass)):
            changes |= {} if value is None else {name: value}
        _require_sense(changes, spec_type, spec_ngram, save_profile)
        if config.engines:
            changes |= _of_engine(config, save_profile)
        _bench(config, changes, options.absolute(save_profile), replicates, json_output, quiet)


def _require_sense(
    changes: dict[str, Any], spec_type: SpecType, spec_ngram: int | None, save_profile: Path | None
) -> None:
    """Raise BadSettingError for options that would do nothing."""
    profile = changes["hot_profile"]
    for option, value in (("--profile", profile), ("--save-profile", save_profile)):
        if value is not None and changes["hot_k"] == 0:
            raise BadSettingError(
                f"{option} without a cache does nothing.", next_step="Add --hot-k, say --hot-k 16."
            )
    if profile is not None and not profile.is_file():
        raise BadSettingError(
            f"--profile: there is no file {profile}.", next_step="--save-profile FILE writes one."
        )
    if spec_ngram is not None and spec_type in ("none", "ngram-cache"):
        raise BadSettingError(
            f"--spec-ngram does nothing with --spec-type {spec_type}.",
            next_step="Use another --spec-type, for example ngram-simple.",
        )


def _of_engine(config: RunConfig, save_profile: Path | None) -> dict[str, Any]:
    """Return what makes the placement that of the one other engine that is asked for.

    Raises:
        BadSettingError: several are asked for, or what only hottune's device does.
    """
    from hottune.tasks.others import engine_files

    files = engine_files(config)
    if len(files) > 1:
        raise BadSettingError(
            "bench measures one placement in one engine.", next_step="Give --engine once, or use hottune run."
        )
    if save_profile is not None:
        raise BadSettingError(
            "--save-profile with --engine does nothing.", next_step="Leave one of them away."
        )
    bypass, policy = files[0].placement.prefill_bypass, "window"
    return {"engine": files[0].name, "stream_from": 0, "policy": policy, "prefill_bypass": bypass}


def _placement(base: Placement, changes: dict[str, Any], n_layers: int, n_experts: int) -> Placement:
    """Return the placement that was asked for, with the defaults that depend on the model.

    Raises:
        BadSettingError: more layers or experts than the model has.
    """
    if changes["hot_k"] > n_experts:
        raise BadSettingError(f"--hot-k {changes['hot_k']}: a layer has {n_experts} experts.")
    if changes.get("n_cpu_moe", 0) > n_layers:
        raise BadSettingError(f"--n-cpu-moe {changes['n_cpu_moe']}: the model has {n_layers} layers.")
    # What is decoded at once is to go through the cache: a token of every slot, with its draft.
    defaults = {"n_cpu_moe": n_layers, "prefill_bypass": min(LARGEST_BYPASS, base.decode_batch)}
    return base.model_copy(update=defaults | changes)


def _bench(
    config: RunConfig,
    changes: dict[str, Any],
    save_profile: Path | None,
    replicates: int,
    json_output: bool,
    quiet: bool,
) -> None:
    from hottune import workflow
    from hottune.report.schema import WarningNote
    from hottune.tasks import prepare
    from hottune.tasks.ballasted import ballasted
    from hottune.tasks.conditions import condition_notes
    from hottune.tasks.result import argv_and_env
    from hottune.tasks.show import Meter, outcome_line
    from hottune.tasks.surroundings import surroundings

    progress = make_progress(quiet)
    try:
        plan = prepare.prepare(config, progress)
        shape = plan.model.shape
        placement = _placement(plan.space.base, changes, shape.n_layers, shape.n_experts)
        warnings = surroundings()
        if plan.gpu.virtual:
            progress.say(prepare.VIRTUAL_LINE)
        if line := prepare.load_mode_line(plan):
            progress.say(line)
        with ballasted(plan, progress) as plan:
            meter = Meter(progress)
            measure = workflow.real_servers(plan, meter)
            measure.bench.profile_to = save_profile
            meter.stage("Bench", replicates)
            outcomes: list[Outcome] = []
            for _ in range(replicates):
                outcomes.append(measure(placement))
                meter.ended(placement.label(), outcomes[-1])
            meter.finish()
        found = condition_notes(plan, [one for one in outcomes if isinstance(one, Measurement)])
        warnings += [WarningNote(code=code, text=text) for code, text in found]
        for one in warnings:
            progress.say(f"Warning: {one.text}")
    finally:
        close(progress)
    argv, env = argv_and_env(plan, placement, config.port or 8080)
    error = _error_of(outcomes)
    if json_output:
        emit_json(
            {
                "model": plan.model.name,
                "ceiling_mib": plan.ceiling_mib,
                "ballast": plan.ballast.facts if plan.ballast else None,
                "placement": placement,
                "argv": argv,
                "env": env,
                **_summary(outcomes),
                "warnings": warnings,
                "outcomes": outcomes,
                "error": error_facts(error) if error else None,
            }
        )
    elif quiet:
        for outcome in outcomes:
            console().print(Text(outcome_line(outcome)), soft_wrap=True)
    if error:
        show_error(error)
        raise typer.Exit(error.exit_code)


def _summary(outcomes: list[Outcome]) -> dict[str, object]:
    """Return means over the replicates, and the proof that what was asked for took effect."""
    found = [outcome for outcome in outcomes if isinstance(outcome, Measurement)]
    if not found:
        return {"outcome": outcomes[-1].kind}

    def mean(name: str) -> float:
        return float(sum(getattr(one, name) for one in found) / len(found))

    hits = [one.hit_rate for one in found if one.hit_rate is not None]
    return {
        "outcome": "measurement",
        "prefill_tok_s": mean("prefill_tok_s"),
        "decode_tok_s": mean("decode_tok_s"),
        "ttft_ms": mean("ttft_ms"),
        "turn_s": mean("turn_s"),
        "vram_peak_mib": max(one.vram_peak_mib for one in found),
        "hit_rate": sum(hits) / len(hits) if hits else None,
        "hot_engaged": bool(hits),
        "multi": _multi(found),
        "drafts": {
            "drafted": sum(sample.drafted for one in found for sample in one.requests),
            "accepted": sum(sample.draft_accepted for one in found for sample in one.requests),
        },
        "text_sha256": [sample.text_sha256 for sample in found[0].requests],
    }


def _multi(found: list[Measurement]) -> dict[str, int | float] | None:
    """Return the cache's counters in batches of several tokens, all replicates together; None without any."""
    counted = [one.engagement.hot for one in found if one.engagement.hot is not None]
    hits, misses = sum(hot.multi_hits for hot in counted), sum(hot.multi_misses for hot in counted)
    if hits + misses == 0:
        return None
    blocks, tokens = sum(hot.multi_blocks for hot in counted), sum(hot.multi_tokens for hot in counted)
    rate = hits / (hits + misses)
    return {"blocks": blocks, "tokens": tokens, "hits": hits, "misses": misses, "hit_rate": rate}


def _error_of(outcomes: list[Outcome]) -> HottuneError | None:
    """Return the error of the first replicate that is no measurement."""
    from hottune.tasks.endings import fatal

    bad = next((outcome for outcome in outcomes if not isinstance(outcome, Measurement)), None)
    if bad is None:
        return None
    next_step = "`hottune doctor` checks engine and device; less VRAM: lower --hot-k, higher --n-cpu-moe."
    return fatal(bad, "This placement was not measured", next_step)
