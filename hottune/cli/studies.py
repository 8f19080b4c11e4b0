"""`hottune studies`: what has been measured here, and going on with it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hottune.cli.common import cache_dir, console, emit_json, handled, make_progress, reports_dir, studies_dir
from hottune.cli.found import storage_urls
from hottune.cli.options import Json, Quiet
from hottune.errors import StudyNotFoundError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and resume studies.")

Name = Annotated[str, typer.Argument(help="Name of the study.")]
Storage = Annotated[
    str | None, typer.Option(metavar="URL", help="Optuna storage. Default: the SQLite files in ./studies.")
]


@app.command("list")
def list_studies(storage: Storage = None, json_output: Json = False) -> None:
    """List the studies in a storage, with what they measured and how far they are."""
    with handled(json_output):
        from hottune.search.catalogue import summaries

        found = summaries(storage_urls(storage))
        if json_output:
            emit_json([vars(one) for one in found])
            return
        if not found:
            console().print(f"No studies in {storage or studies_dir()}. Begin one: hottune run demo")
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for head in ("study", "model", "ceiling MiB", "trials", "measured", "replicates"):
            table.add_column(head, justify="left" if head in ("study", "model") else "right")
        for one in found:
            table.add_row(
                one.name,
                one.model,
                f"{one.ceiling_mib:.0f}",
                str(one.trials),
                str(one.measured),
                str(one.replicates),
            )
        _out().print(table)


@app.command()
def show(name: Name, storage: Storage = None, json_output: Json = False) -> None:
    """Show every trial of a study, with what it ended as."""
    with handled(json_output):
        from hottune.search.catalogue import reopen
        from hottune.tasks.show import outcome_line

        journal = reopen(name, storage_urls(storage))
        trials = journal.trials()
        if json_output:
            facts = ("identity", "ceiling_mib", "config", "machine", "engine", "model")
            emit_json({"study": name, **{key: journal.noted(key) for key in facts}, "trials": trials})
            return
        out = _out()
        config = journal.noted("config") or {}
        out.print(Text(f"{name}: {config.get('command', '')}"), soft_wrap=True)
        for trial in trials:
            who = f"{trial.arm or trial.origin}: {trial.placement.label()}"
            out.print(Text(f"#{trial.number:<3} {who:<46} {outcome_line(trial.outcome)}"), soft_wrap=True)


@app.command()
def resume(
    name: Name,
    storage: Storage = None,
    worker: Annotated[
        str | None, typer.Option(metavar="NAME", help="Work on it beside others of this machine.")
    ] = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a study exactly as it was begun, and report."""
    with handled(json_output):
        from hottune.cli.run import run_and_show
        from hottune.search.catalogue import reopen
        from hottune.tasks.settings import RunConfig

        journal = reopen(name, storage_urls(storage))
        stored = journal.noted("config")
        if stored is None:
            raise StudyNotFoundError(f"The study '{name}' does not say how it was begun.")
        # Its name is fixed now: the set-up's own name would change with the engine.
        here: dict[str, object] = {"study": name, "storage": journal.url, "worker": worker}
        if journal.shared:  # another machine may have begun it, with other folders
            here |= {"cache_dir": cache_dir(), "studies_dir": studies_dir(), "reports_dir": reports_dir()}
        config = RunConfig.model_validate({**stored, **here})
        run_and_show(config, json_output, make_progress(quiet))


@app.command()
def dashboard(
    name: Annotated[str | None, typer.Argument(help="Study to open. Default: the only one here.")] = None,
    storage: Storage = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port to listen on. Default: 8081, or a free one if it is taken."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Show a study's trials in optuna-dashboard, on this machine alone, until Ctrl-C.

    It needs the extra: pip install 'hottune[dashboard]'.
    """
    with handled(json_output):
        from hottune.tasks.dashboards import HOST, page_of, serve_dashboard

        url, study = _one(name, storage)
        page = page_of(url, study)

        def up(port: int) -> None:
            address = f"http://{HOST}:{port}{page}"
            console().print(Text(f"Dashboard: {address}  Ctrl-C ends it."), soft_wrap=True)
            if json_output:
                emit_json({"url": address, "study": study})

        serve_dashboard(url, port, up=up)


def _one(name: str | None, storage: str | None) -> tuple[str, str | None]:
    """Return the URL of the storage to show, and the study in it to open; None = the list of them.

    Raises:
        StudyNotFoundError: there is no such study, none at all, or several and no name.
    """
    from hottune.search.catalogue import find, summaries

    if name is not None:
        return find(name, storage_urls(storage))[1], name
    if storage is not None:
        return storage, None
    found = summaries(storage_urls(None))
    if not found:
        raise StudyNotFoundError(
            f"There are no studies in {studies_dir()}.",
            next_step="Begin one: hottune run demo; or say where they are with --storage URL.",
        )
    if len({one.storage for one in found}) > 1:
        raise StudyNotFoundError(
            f"There are {len(found)} studies in {studies_dir()}, each in a file of its own.",
            "The dashboard shows one file.",
            f"Name one: {', '.join(one.name for one in found)}.",
        )
    return found[0].storage, found[0].name if len(found) == 1 else None


def _out() -> Console:
    return Console(file=sys.stdout, highlight=False)
