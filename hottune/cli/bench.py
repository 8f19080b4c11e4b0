"""`hottune bench`: one placement, measured in fresh servers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from hottune.cli import options
from hottune.cli.common import console, emit_json, error_facts, handled, make_progress, show_error
from hottune.cli.run import close
from hottune.errors import BadSettingError, HottuneError, NotEngagedError, ServerError
from hottune.outcomes import Measurement, Outcome
from hottune.tasks.settings import RunConfig


def bench(
    model: options.Model,
    hot_k: Annotated[
        int, typer.Option("--hot-k", min=0, help="Experts of a layer kept in VRAM; 0 = the device is off.")
    ] = 0,
    n_cpu_moe: Annotated[
        int | None, typer.Option(min=0, help="Layers whose experts stay in RAM. Default: all.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Let llama.cpp's --fit place everything.")] = False,
    interval: Annotated[int, typer.Option(min=1, help="Tokens between rebalances of the cache.")] = 60,
    bypass: Annotated[
        int, typer.Option(min=1, max=64, help="Largest batch, in tokens, that goes through the cache.")
    ] = 1,
    ubatch: Annotated[int, typer.Option(min=1, help="Physical batch, tokens.")] = 512,
    replicates: Annotated[int, typer.Option(min=1, help="Fresh servers, one after another.")] = 1,
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
    """Measure one placement of MODEL in fresh servers.

    What is no measurement ends with its own exit code: 32 when the server ran but not as asked, 31 else.
    """
    with handled(json_output):
        config = options.run_config(
            model=model,
            vram=vram,
            headroom=headroom,
            gpu=gpu,
            workload=workload,
            scale=scale,
            context=context,
            load_mode=load_mode,
            ubatches=(ubatch,),
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
        changes = {
            "hot_k": hot_k,
            "fit": fit,
            "rebalance_interval": interval,
            "prefill_bypass": bypass,
            "ubatch": ubatch,
        }
        _bench(config, changes, n_cpu_moe, replicates, json_output, quiet)


def _bench(
    config: RunConfig,
    changes: dict[str, int | bool],
    n_cpu_moe: int | None,
    replicates: int,
    json_output: bool,
    quiet: bool,
) -> None:
    from hottune import workflow
    from hottune.tasks import prepare
    from hottune.tasks.result import argv_and_env
    from hottune.tasks.show import Meter, outcome_line

    progress = make_progress(quiet)
    try:
        plan = prepare.prepare(config, progress)
        shape = plan.model.shape
        if changes["hot_k"] > shape.n_experts:
            raise BadSettingError(f"--hot-k {changes['hot_k']}: a layer has {shape.n_experts} experts.")
        if n_cpu_moe is not None and n_cpu_moe > shape.n_layers:
            raise BadSettingError(f"--n-cpu-moe {n_cpu_moe}: the model has {shape.n_layers} layers.")
        if plan.gpu.virtual:
            progress.say(prepare.VIRTUAL_LINE)
        update = {**changes, "n_cpu_moe": shape.n_layers if n_cpu_moe is None else n_cpu_moe}
        placement = plan.space.base.model_copy(update=update)
        meter = Meter(progress)
        measure = workflow.real_servers(plan, meter)
        meter.stage("Bench", replicates)
        outcomes: list[Outcome] = []
        for _ in range(replicates):
            outcomes.append(measure(placement))
            meter.ended(placement.label(), outcomes[-1])
        meter.finish()
    finally:
        close(progress)
    argv, env = argv_and_env(plan, placement, config.port or 8080)
    error = _error_of(outcomes)
    if json_output:
        emit_json(
            {
                "model": plan.model.name,
                "ceiling_mib": plan.ceiling_mib,
                "placement": placement,
                "argv": argv,
                "env": env,
                **_summary(outcomes),
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
        "text_sha256": [sample.text_sha256 for sample in found[0].requests],
    }


def _error_of(outcomes: list[Outcome]) -> HottuneError | None:
    """Return the error of the first replicate that is no measurement."""
    bad = next((outcome for outcome in outcomes if not isinstance(outcome, Measurement)), None)
    if bad is None:
        return None
    kind = NotEngagedError if bad.kind == "not_engaged" else ServerError
    tail = "\n".join(getattr(bad, "log_tail", [])[-5:])
    return kind(
        f"This placement was not measured: {bad.kind.replace('_', ' ')}.",
        bad.detail + (f"\n{tail}" if tail else ""),
        "`hottune doctor` checks engine and device; less VRAM: lower --hot-k, higher --n-cpu-moe.",
    )
