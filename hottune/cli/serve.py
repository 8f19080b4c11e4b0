"""`hottune serve`: run llama-server with what a study found."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hottune.cli import options
from hottune.cli.common import cache_dir, close, console, emit_json, handled, make_progress
from hottune.cli.found import is_file, locate, report_of_study, result_file, storage_urls
from hottune.engine.build import BuildOptions
from hottune.errors import BadResultError, NothingMeasuredError, StorageError, StudyNotFoundError
from hottune.report import load

if TYPE_CHECKING:
    from hottune.engine.server import Server
    from hottune.progress import Progress
    from hottune.search.journal import Journal
    from hottune.tasks.serve import Job
    from hottune.tasks.served import Found


class Printed(StrEnum):
    """What `--print` can print."""

    COMMAND = "command"
    PRESET = "preset"


def serve(
    study: Annotated[str, typer.Argument(help="A study's name, its .db file, or a result file (.json).")],
    extra: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="More arguments for llama-server, after --."),
    ] = None,
    arm: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another arm than the recommended one, like layers.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port to listen on. Default: 8080, or a free one if it is taken."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. Default: this machine only.")
    ] = "127.0.0.1",
    print_: Annotated[
        Printed | None,
        typer.Option(
            "--print", help="Start nothing; print a shell command, or a section for --models-preset."
        ),
    ] = None,
    watch: Annotated[
        bool | None,
        typer.Option(
            "--watch/--no-watch", help="Every 10 s: speed and hit rate. Default: yes, on a terminal."
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile/--no-profile", help="Keep the uses of the experts for the next start."),
    ] = True,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model, if it is not where the study had it.")
    ] = None,
    gpu: Annotated[
        int | None, typer.Option(metavar="N", help="Which GPU, by NVML's number. Default: the study's.")
    ] = None,
    storage: options.StoredIn = None,
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
    """Run llama-server with what a study found, for people and programs to use.

    Ctrl-C (or SIGTERM) ends it with exit code 0; before it is healthy with 130 (143).
    """
    with handled(json_output):
        from hottune.tasks.serve import require_sense

        more = tuple(extra or ())
        require_sense(more)
        found = _find(study, arm, storage)
        progress = make_progress(quiet)
        try:
            engine = options.engine_options(
                backend=backend,
                source=source,
                git=git,
                llama_bin=llama_bin,
                headers=headers,
                sdist=sdist,
                cmake_option=cmake_option,
            )
            job = _job(found, engine, progress, model, gpu, host, port, more, profile)
            if print_ is not None:
                _print(print_, job, json_output)
                return
            _serve(found, job, progress, watch, json_output)
        finally:
            close(progress)


def _find(study: str, arm: str | None, storage: str | None) -> Found:
    """Return what is to be served: what was confirmed, or else what the study's search measured as best.

    Raises:
        StudyNotFoundError: there is nothing of that name.
    """
    from hottune.search.catalogue import reopen
    from hottune.tasks.served import asked_in

    source = locate(study, storage)
    found = _found(study, arm, storage, source)
    if found.asked is None:
        # Which llama.cpp is a matter of the study itself: a result file may come from anybody.
        with suppress(StudyNotFoundError, StorageError):
            journal = reopen(found.study, storage_urls()) if isinstance(source, Path) else source
            found = replace(found, asked=asked_in(journal))
    return found


def _found(study: str, arm: str | None, storage: str | None, source: Journal | Path) -> Found:
    from hottune.tasks.served import of_journal, of_report

    if isinstance(source, Path):
        return of_report(load(source), arm)
    # A study that is not finished, or that an earlier hottune began, has its last result file at best.
    with suppress(BadResultError, NothingMeasuredError):
        if (report := report_of_study(source)).winner:
            return of_report(report, arm)
    path = None if storage or is_file(study) else result_file(study)
    if path is not None and (report := load(path)).winner:
        return of_report(report, arm)
    return of_journal(source, arm)


def _job(
    found: Found,
    asked: BuildOptions,
    progress: Progress,
    model: Path | None,
    gpu: int | None,
    host: str,
    port: int | None,
    extra: tuple[str, ...],
    profile: bool,
) -> Job:
    from hottune.engine.argv import Serving
    from hottune.engine.build import build_engine
    from hottune.machine.probe import probe_machine
    from hottune.tasks import served
    from hottune.tasks.logs import new_log
    from hottune.tasks.serve import Job, profile_for

    cache = cache_dir()
    here = served.model_here(found, options.absolute(model), cache_dir=cache)
    engine = build_engine(served.engine_options(found, asked), cache_dir=cache, progress=progress)
    card = served.gpu_here(found, engine, probe_machine(), gpu)
    for line in served.doubts(found, engine, card):
        progress.say(f"Warning: {line}")
    return Job(
        engine=engine,
        model=here,
        placement=found.placement,
        gpu=card,
        ceiling_mib=found.usable_mib,
        serving=Serving(host=host, extra=extra),
        port=port,
        log_path=new_log(cache / "logs" / "serve"),
        profile_path=profile_for(here, found.placement, cache) if profile else None,
    )


def _print(what: Printed, job: Job, json_output: bool) -> None:
    from hottune.engine.argv import shell_command
    from hottune.engine.preset import preset

    if what is Printed.PRESET and job.profile_path is not None:
        # The router's environment is that of all its models: one profile cannot be theirs.
        job = job.without_profile
    argv, env = job.command()
    text = preset(job.model.name, argv, env) if what is Printed.PRESET else shell_command(argv, env) + "\n"
    if json_output:
        emit_json({what.value: text, "argv": argv, "env": env})
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def _serve(found: Found, job: Job, progress: Progress, watch: bool | None, json_output: bool) -> None:
    from hottune.tasks.serve import only_here, serve

    def up(server: Server) -> None:
        progress.say(f"Serving {job.model.name}, arm {found.arm} ({job.placement.label()})")
        address = f"Address: {server.base_url}  OpenAI base URL: {server.base_url}/v1"
        console().print(Text(address), soft_wrap=True)  # also when quiet: it is the result
        progress.say(f"Log: {server.log_path}. Ctrl-C ends it.")
        if not only_here(job.serving.host) and not {"--api-key", "--api-key-file"} & set(job.serving.extra):
            progress.say("Warning: others on the network can use it. Ask for a key: -- --api-key KEY")
        if json_output:
            emit_json(
                {
                    "url": server.base_url,
                    "openai_base_url": f"{server.base_url}/v1",
                    "pid": server.pid,
                    "arm": found.arm,
                    "placement": job.placement,
                    "argv": server.argv,
                    "env": server.env,
                    "log": server.log_path,
                    "profile": job.profile_path,
                }
            )

    serve(job, progress, up=up, watch=console().is_terminal if watch is None else watch)
