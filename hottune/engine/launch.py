"""Starting llama-server for one Placement: up, proven engaged, and stopped for certain."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from hottune.engine import argv as arguments
from hottune.engine import loadlog, process
from hottune.engine.engaged import check_loaded
from hottune.engine.facts import EngineBuild
from hottune.engine.failures import Failure, LaunchFailed
from hottune.engine.forks.command import Fork, Unmapped, fork_command, fork_values
from hottune.engine.forks.proof import check_fork_loaded
from hottune.engine.ports import LOOPBACK, free_port, port_taken, require_free
from hottune.engine.server import Server, socket_path, stats_path
from hottune.machine.facts import Gpu
from hottune.models.shape import ModelFile
from hottune.outcomes import Crashed, NotEngaged, TimedOut
from hottune.placement import Placement
from hottune.units import MIB

#: A disk this slow (MiB/s) still loads in time; plus what drivers and fit's trial runs may take.
_SLOWEST_LOAD_MIB_S = 50
_LOAD_TIMEOUT_FLOOR_S = 120.0
_POLL_S = 0.1
#: How far the log may lag behind the server's health on a busy machine.
_LOG_LAG_S = 10.0
_CANNOT_BIND = "couldn't bind HTTP server socket"


@contextmanager
def launch(
    build: EngineBuild,
    model: ModelFile,
    placement: Placement,
    *,
    gpu: Gpu | None,
    ceiling_mib: float,
    log_path: Path,
    port: int | None = None,
    load_timeout_s: float | None = None,
    on_progress: Callable[[str], None] | None = None,
    no_warmup: bool = False,
    extra_env: Mapping[str, str] | None = None,
    serving: arguments.Serving | None = None,
    profile_path: Path | None = None,
    fork: Fork | None = None,
) -> Iterator[Server]:
    """Start llama-server for a placement, wait until it is healthy, and stop it when the context ends.

    Args:
        build: the engine.
        model: what to serve.
        placement: what goes where.
        gpu: the GPU, real or virtual; None keeps everything on the CPU.
        ceiling_mib: VRAM that the server may use, MiB.
        log_path: the server's log file, kept.
        port: to listen on; None takes a free one.
        load_timeout_s: seconds until health; None allows 120 and the model's size at 50 MiB/s.
        on_progress: called with a few words when what the server is doing changes.
        no_warmup: skip llama-server's empty warm-up run.
        extra_env: more variables, which win over those of the placement (another plug-in than our device).
        serving: for people to use; None = for a measurement, on loopback.
        profile_path: profile that the device reads, if it is there, and writes at the end; None = the
            placement's, which stays as it is.
        fork: another engine that is to serve; None = `build`.

    Raises:
        LaunchFailed: it ran out of memory, crashed, did not come up in time, or not as asked.
        PortTakenError: the asked-for port is in use.
        BadSettingError: what it is to listen on is no address of this machine.
    """
    host = serving.host if serving else LOOPBACK
    if port is not None:
        require_free(port, host)
    chosen = free_port() if port is None else port
    folder = Path(tempfile.mkdtemp(prefix="hottune-"))  # mode 0700, and short: socket paths have a limit
    try:
        command, added = _command(
            build,
            model,
            placement,
            folder,
            port=chosen,
            gpu=gpu,
            ceiling_mib=ceiling_mib,
            no_warmup=no_warmup,
            serving=serving,
            profile_path=profile_path,
            fork=fork,
        )
        if "GGML_BACKEND_PATH" in added and not build.device_library.is_file():
            # llama.cpp would log a line and serve without it.
            raise LaunchFailed(NotEngaged(detail=f"the device library is missing: {build.device_library}"))
        added |= extra_env or {}
        started = time.monotonic()
        try:
            child = process.start(command, env=arguments.child_environment(added), log_path=log_path)
        except OSError as error:
            detail = f"llama-server could not be started: {error}"
            raise LaunchFailed(Crashed(exit_code=None, detail=detail)) from error
        server = Server(child, chosen, placement, folder, command, host, fork)
        server.env = added
        try:
            limit_s = load_timeout_s if load_timeout_s is not None else _load_limit_s(model)
            _wait_healthy(server, model, limit_s, on_progress)
            server.load_s = time.monotonic() - started
            refused = _check_log(server, model, placement, gpu, fork)
            if refused is not None:
                raise LaunchFailed(refused.model_copy(update={"log_tail": server.log_tail()}))
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(
    build: EngineBuild,
    model: ModelFile,
    placement: Placement,
    folder: Path,
    *,
    port: int,
    gpu: Gpu | None,
    ceiling_mib: float,
    no_warmup: bool,
    serving: arguments.Serving | None,
    profile_path: Path | None,
    fork: Fork | None,
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the variables that hottune adds; `folder` is the server's own."""
    if fork is not None:
        if fork.facts.refused:
            raise LaunchFailed(NotEngaged(detail=fork.facts.refused))
        stats = stats_path(folder)
        try:
            return fork_command(
                fork, build, model, placement, port=port, gpu=gpu, ceiling_mib=ceiling_mib, stats_path=stats
            )
        except Unmapped as error:
            raise LaunchFailed(NotEngaged(detail=str(error))) from error
    argv = arguments.server_argv(
        build,
        model.path,
        placement,
        shape=model.shape,
        port=port,
        gpu=gpu,
        ceiling_mib=ceiling_mib,
        no_warmup=no_warmup,
        serving=serving,
    )
    env = arguments.server_env(
        build,
        placement,
        shape=model.shape,
        gpu=gpu,
        ceiling_mib=ceiling_mib,
        stats_path=stats_path(folder),
        socket_path=socket_path(folder),
        profile_path=profile_path or _own_profile(placement, folder),
    )
    return argv, env


def _own_profile(placement: Placement, folder: Path) -> Path | None:
    """Copy the placement's profile: the device writes it again at the end, and every server starts equal."""
    if placement.hot_profile is None:
        return None
    copied = folder / f"profile{placement.hot_profile.suffix}"
    try:
        shutil.copyfile(placement.hot_profile, copied)
    except OSError as error:
        raise LaunchFailed(NotEngaged(detail=f"the profile cannot be read: {error}")) from error
    return copied


def _load_limit_s(model: ModelFile) -> float:
    return _LOAD_TIMEOUT_FLOOR_S + model.size_bytes / MIB / _SLOWEST_LOAD_MIB_S


def _wait_healthy(
    server: Server, model: ModelFile, limit_s: float, on_progress: Callable[[str], None] | None
) -> None:
    """Return when /health says ok; raise LaunchFailed when the process dies or time runs out."""
    deadline = time.monotonic() + limit_s
    told = ""
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while True:
            if not server.alive():
                if _CANNOT_BIND in server.log_text():
                    raise port_taken(server.port, "llama-server could not bind it")
                raise LaunchFailed(server.failure("load"))
            with suppress(httpx.HTTPError):
                if client.get(f"{server.base_url}/health").status_code == 200:
                    return
            if time.monotonic() > deadline:
                detail = f"not healthy after {limit_s:.0f} s; last seen {loadlog.activity(server.log_text())}"
                failure: Failure = TimedOut(
                    stage="load", limit_s=limit_s, detail=detail, log_tail=server.log_tail()
                )
                raise LaunchFailed(failure)
            if on_progress is not None and (now := _progress(server, model)) != told:
                told = now
                on_progress(now)
            time.sleep(_POLL_S)


def _check_log(
    server: Server, model: ModelFile, placement: Placement, gpu: Gpu | None, fork: Fork | None
) -> NotEngaged | None:
    """Compare what was asked for with the log, once it is written.

    llama.cpp writes its log in a thread of its own: on a busy machine the server is healthy while lines of
    loading are still to come.
    """
    deadline = time.monotonic() + _LOG_LAG_S
    while True:
        text = server.log_text()
        if fork is not None:
            values = fork_values(placement, model=model.path, port=server.port, gpu=gpu)
            refused = check_fork_loaded(fork.file, text, placement, gpu, values)
        else:
            refused = check_loaded(loadlog.parse(text), placement, gpu)
        if refused is None or loadlog.loaded(text) or time.monotonic() > deadline:
            return refused
        time.sleep(_POLL_S / 4)


def _progress(server: Server, model: ModelFile) -> str:
    """Say what the server is doing, with a percentage while it reads weights.

    llama-server logs no percentage. The bytes the process has read (or, for a mapped file, holds) tell it.
    """
    text = server.log_text()
    words = loadlog.activity(text)
    if not loadlog.loading_weights(text):
        return words
    try:
        one = psutil.Process(server.pid)
        seen = one.memory_info().rss
        if hasattr(one, "io_counters"):
            seen = max(seen, one.io_counters().read_chars)
    except (psutil.Error, AttributeError):
        return words
    return f"{words} {min(99, 100 * seen // max(1, model.size_bytes))} %"
