"""`hottune bench --endpoint`: its options, its table, its result file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import StringIO
from itertools import count
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.cli import common
from hottune.errors import BadSettingError, HottuneError
from hottune.report.endpoint import EndpointResult, json_text
from hottune.report.names import file_stem
from hottune.report.store import write_bytes
from hottune.report.wording import NOTHING, number
from hottune.tasks.endpoint import Interrupted, Wanted, access_to, measure_endpoint
from hottune.workload.endpoint_facts import Route
from hottune.workload.endpoint_url import kept_command
from hottune.workload.facts import Workload
from hottune.workload.workloads import load_workload

_BOTH = {"workload", "scale", "parallel", "replicates", "json_output", "quiet"}
_ONLY_ENDPOINT = {"endpoint", "model_name", "api_key_env", "chat", "label", "out", "timeout"}
_WIDEST = 100


def require_one_kind(ctx: typer.Context, model: str | None, endpoint: str | None) -> None:
    """Raise BadSettingError unless there is a MODEL or an --endpoint, and options for that alone."""
    if model is None and endpoint is None:
        raise BadSettingError(
            "There is nothing to measure.", next_step="Name a MODEL, or a server: --endpoint URL."
        )
    if model is not None and endpoint is not None:
        raise BadSettingError(
            f"--endpoint measures a server as it runs, so MODEL ('{model}') has no place beside it.",
            next_step="Leave one of them out; --model-name chooses among an endpoint's models.",
        )
    said = {one.name: one.opts[0] for one in ctx.command.params if one.name and one.opts}
    allowed = _BOTH | _ONLY_ENDPOINT if endpoint is not None else set(said) - _ONLY_ENDPOINT
    idle = [option for name, option in said.items() if name not in allowed and _said(ctx, name)]
    if idle:
        why = (
            "Nothing is started or placed there: the server is measured as it is."
            if endpoint is not None
            else "It is about an endpoint."
        )
        there = "with" if endpoint is not None else "without"
        raise BadSettingError(f"{', '.join(idle)} {there} --endpoint does nothing.", why, "Leave it out.")


def _said(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def bench_endpoint(
    url: str,
    *,
    workload: str | None,
    scale: float | None,
    parallel: int,
    passes: int,
    model_name: str | None,
    api_key_env: str | None,
    chat: bool | None,
    label: str | None,
    out: Path | None,
    timeout_s: float,
    json_output: bool,
    quiet: bool,
) -> None:
    """Measure an endpoint, show the result and keep it.

    Raises:
        HottuneError: see `measure_endpoint`.
        typer.Exit: it failed after some passes, which are kept and shown.
    """
    route: Route | None = None if chat is None else "chat/completions" if chat else "completions"
    wanted = Wanted(model_name, route, label, api_key_env, timeout_s)
    work = load_workload(workload or "chat", scale=1.0 if scale is None else scale, parallel=parallel)
    result, failure, path = measured(url, work, passes, wanted, out=out, quiet=quiet)
    if json_output:
        facts = result.model_dump(mode="json")
        if failure is not None and isinstance(failure.error, HottuneError):
            facts["error"] = common.error_facts(failure.error)
        common.emit_json(facts)
    else:
        typer.echo(text(result), nl=False)
    common.console().print(Text(f"Wrote {path}"), soft_wrap=True)
    if failure is not None:
        with common.handled():  # not as JSON a second time
            raise failure.error


def measured(
    url: str,
    workload: Workload,
    passes: int,
    wanted: Wanted,
    *,
    out: Path | None = None,
    quiet: bool = False,
    before: Callable[[EndpointResult], None] | None = None,
) -> tuple[EndpointResult, Interrupted | None, Path]:
    """Measure an endpoint and keep the result, also of passes before one that failed.

    Without `out` no earlier result is replaced: it may be of the same server with other settings.

    Raises:
        HottuneError: see `measure_endpoint`; or the file cannot be written.
    """
    access = access_to(url, wanted)
    command = kept_command(["hottune", *sys.argv[1:]])
    progress = common.make_progress(quiet)
    failure: Interrupted | None = None
    try:
        result = measure_endpoint(access, workload, passes, wanted, progress, command=command, before=before)
    except Interrupted as interrupted:
        result, failure = interrupted.result, interrupted
    finally:
        common.close(progress)
    path = out or _free_path(f"endpoint-{file_stem(result.label)}")
    try:
        write_bytes(path, json_text(result).encode())
    except OSError as error:
        raise BadSettingError(
            f"{path} cannot be written: {error.strerror}.", next_step="Give another --out."
        ) from error
    return result, failure, path


def _free_path(stem: str) -> Path:
    """Return where a result goes by default: `reports/STEM.json`, or `STEM-2.json` if that is taken."""
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.json" for number in count(1))
    return next(path for name in names if not (path := common.reports_dir() / name).exists())


def text(result: EndpointResult) -> str:
    """Return a result as text: what was measured, each pass, the mean, and what makes it weaker."""
    out = StringIO()
    console = Console(file=out, width=_WIDEST, color_system=None, highlight=False, emoji=False, markup=False)
    console.print(f"{result.label}: {result.url}, route /{result.route}, timed by the client")
    console.print(f"model  {result.model}")
    if result.server:
        console.print("server " + ", ".join(f"{name} {value}" for name, value in result.server.items()))
    work = result.workload
    last = work.requests[-1]
    console.print(
        f"work   {work.name}: {len(work.requests)} requests ({work.warmup_requests} to warm up), the last "
        f"{last.prompt_tokens} tokens in, {last.output_tokens} out, {work.parallel} at once; "
        f"lengths {result.prompts}"
    )
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    for head in ("prefill tok/s", "decode tok/s", "first token ms", "turn s", "tokens in", "out"):
        table.add_column(head, justify="right", no_wrap=True)
    for place, one in enumerate(result.passes, start=1):
        warm = [sample for sample in one.requests if not sample.warmup]
        told = [sample.prompt_tokens for sample in warm if sample.prompt_tokens is not None]
        table.add_row(
            f"pass {place}",
            number(one.prefill_tok_s),
            number(one.decode_tok_s),
            number(one.ttft_ms),
            number(one.turn_s) + ("" if one.as_asked else "*"),
            f"{sum(told):,}" if len(told) == len(warm) else NOTHING,
            f"{sum(sample.output_tokens for sample in warm):,}",
        )
    if len(result.passes) > 1:
        table.add_row(
            "mean",
            number(result.mean("prefill")),
            number(result.mean("decode")),
            "",
            number(result.mean("turn")),
        )
    console.print(table)
    if not all(one.as_asked for one in result.passes):
        console.print("* lengths were not those asked for, so this turn does not compare.")
    console.print(f"There and back: {result.round_trip_ms:.2f} ms.")
    for note in result.warnings:
        console.print()
        console.print(f"Warning: {note.text}")
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())
