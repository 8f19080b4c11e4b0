"""A llama-server process for one Placement: started, proven engaged, and stopped for certain."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from hottune.engine import argv as arguments
from hottune.engine import control, loadlog, process
from hottune.engine.control import ControlError
from hottune.engine.engaged import check_engaged, check_loaded
from hottune.engine.facts import EngineBuild
from hottune.engine.forks.command import Fork, Unmapped, fork_command, fork_values
from hottune.engine.forks.proof import check_fork_loaded, fork_log
from hottune.engine.interface import Failure, LaunchFailed, Stage
from hottune.errors import BadSettingError, PortTakenError
from hottune.machine.facts import Gpu
from hottune.models.shape import ModelFile
from hottune.outcomes import Crashed, Engagement, HotStats, NotEngaged, OutOfMemory, TimedOut
from hottune.placement import Placement, needs_restart
from hottune.units import MIB

#: A disk this slow (MiB/s) still loads in time; plus what drivers and fit's trial runs may take.
_SLOWEST_LOAD_MIB_S = 50
_LOAD_TIMEOUT_FLOOR_S = 120.0
_POLL_S = 0.1
#: How far the log may lag behind the server's health on a busy machine.
_LOG_LAG_S = 10.0
_CANNOT_BIND = "couldn't bind HTTP server socket"

__all__ = [
    "ControlError",
    "LaunchFailed",
    "LlamaCppEngine",
    "Server",
    "check_engaged",
    "free_port",
    "launch",
    "require_free",
]


class Server:
    """A llama-server that is up. Made by `launch`, which also stops it."""

    def __init__(
        self,
        child: process.ChildProcess,
        port: int,
        placement: Placement,
        folder: Path,
        argv: list[str],
        host: str = "127.0.0.1",
        fork: Fork | None = None,
    ) -> None:
        self._child = child
        self._fork = fork
        self._placement = placement
        self._folder = folder
        self._stats: control.DeviceStats | None = None  #: as last read
        self._stopped = False
        #: The command line as run.
        self.argv = argv
        #: The variables that hottune added to the environment.
        self.env: dict[str, str] = {}
        self.port = port
        self.base_url = f"http://{_reachable(host)}:{port}"
        self.pid = child.pid
        self.log_path = child.log_path
        #: Seconds from the start of the process to health.
        self.load_s = 0.0

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self._child.alive()

    def log_text(self) -> str:
        """Return the whole log so far."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def log_tail(self, n_lines: int = 20) -> list[str]:
        """Return the log's last lines, without timestamps."""
        return loadlog.tail(self.log_text(), n_lines)

    def engagement(self) -> Engagement:
        """Return the proof of what took effect; the cache's counters are in it as they were last read."""
        if self._fork is not None:
            return fork_log(self._fork.file, self.log_text()).engagement()
        hot = self._stats.hot if self._stats else None
        return loadlog.parse(self.log_text()).engagement().model_copy(update={"hot": hot})

    def hot_stats(self) -> HotStats | None:
        """Read the cache's counters now; None where there is no cache, or it does not answer."""
        if not self._stopped:
            cached = self._placement.hot_k > 0 and self._fork is None
            self._stats = control.ask(_socket_path(self._folder)) if cached else None
        return self._hot

    @property
    def _hot(self) -> HotStats | None:
        return self._stats.hot if self._stats and self._fork is None else None

    def glance(self) -> control.Glance | None:
        """Look at what moves while the server is driven; None where no device listens, or it is silent."""
        if self._stopped or "GGML_HOT_SOCKET" not in self.env:
            return None
        return control.glance(_socket_path(self._folder))

    @property
    def cached_tokens(self) -> int:
        """Tokens that went through the cache, when `hot_stats` last read it; long prompts do not."""
        return self._stats.tokens if self._stats else 0

    @property
    def virtual_peak_mib(self) -> float | None:
        """Peak memory that the virtual GPU counted, when `hot_stats` or `stop` last read it."""
        return self._stats.virtual_peak_mib if self._stats else None

    def apply(self, placement: Placement) -> None:
        """Turn to another placement without a restart: the cache is emptied, its counters are set to zero.

        So it starts as a fresh server's does, and never holds old and new slots at once.

        Raises:
            ControlError: this change needs a restart, or the device refuses it or does not answer. What then
                holds is unknown: stop the server.
        """
        if needs_restart(self._placement, placement):
            raise ControlError(f"going to {placement.label()} needs a restart")
        path, empty = _socket_path(self._folder), self._placement.model_copy(update={"hot_k": 0})
        control.set_live(path, self._placement, empty)
        control.set_live(path, empty, placement)
        control.reset(path)
        self._placement, self._stats = placement, None

    def save_profile(self, path: Path) -> None:
        """Let the device write how often each expert was used, for a later start.

        Raises:
            ControlError: there is no cache, or the device cannot write there.
        """
        control.save_profile(_socket_path(self._folder), path)

    def start_trace(self, path: Path, *, weights: bool = False) -> None:
        """Let the device write the router's choices to a file, until `stop_trace` or the server's end.

        The cache's counters begin again with the trace.

        Raises:
            ControlError: there is no cache, or the device cannot write there.
        """
        control.start_trace(_socket_path(self._folder), path, weights=weights)
        control.reset(_socket_path(self._folder))

    def stop_trace(self) -> None:
        """End the trace; harmless when there is none.

        Raises:
            ControlError: the device does not answer, or the disk was full.
        """
        control.stop_trace(_socket_path(self._folder))

    def traced_tokens(self) -> int:
        """Return how many tokens the device has traced since `start_trace`.

        Raises:
            ControlError: it does not answer, or not with a number.
        """
        return control.traced_tokens(_socket_path(self._folder))

    def stop(self) -> HotStats | None:
        """End the process for certain and return the cache's final counters; harmless when called again."""
        if not self._stopped:
            self._child.stop()
            self._stats = control.read_file(_stats_path(self._folder))
            self._stopped = True
        return self._hot

    def failure(self, stage: Stage) -> OutOfMemory | Crashed:
        """Say why the server failed, from its exit status and log.

        Args:
            stage: `first_batch` for the first request, `later` afterwards.
        """
        # A connection breaks a moment before the exit status is there.
        return loadlog.diagnose(self.log_text(), stage, self._child.wait(2.0))


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
    host = serving.host if serving else "127.0.0.1"
    if port is not None:
        require_free(port, host)
    chosen = free_port() if port is None else port
    folder = Path(tempfile.mkdtemp(prefix="hottune-"))  # mode 0700, and short: socket paths have a limit
    try:
        if fork is not None:
            command, added = _fork_command(
                fork, build, model, placement, chosen, gpu, ceiling_mib, _stats_path(folder)
            )
        else:
            added = arguments.server_env(
                build,
                placement,
                shape=model.shape,
                gpu=gpu,
                ceiling_mib=ceiling_mib,
                stats_path=_stats_path(folder),
                socket_path=_socket_path(folder),
                profile_path=profile_path or _own_profile(placement, folder),
            )
            command = arguments.server_argv(
                build,
                model.path,
                placement,
                shape=model.shape,
                port=chosen,
                gpu=gpu,
                ceiling_mib=ceiling_mib,
                no_warmup=no_warmup,
                serving=serving,
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


class LlamaCppEngine:
    """llama.cpp's llama-server as an `interface.Engine`."""

    def __init__(self, build: EngineBuild) -> None:
        self.build = build

    def launch(
        self,
        model: ModelFile,
        placement: Placement,
        *,
        gpu: Gpu | None,
        ceiling_mib: float,
        log_path: Path,
        port: int | None = None,
        load_timeout_s: float | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> AbstractContextManager[Server]:
        """Start a fresh server (see `launch`)."""
        return launch(
            self.build,
            model,
            placement,
            gpu=gpu,
            ceiling_mib=ceiling_mib,
            log_path=log_path,
            port=port,
            load_timeout_s=load_timeout_s,
            on_progress=on_progress,
        )


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Return if the port can be listened on.

    Raises:
        PortTakenError: it cannot.
        BadSettingError: the host is no address of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is no one's
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise BadSettingError(
                    f"Nothing can listen on {host}: {error.strerror}.",
                    "It is no address of this machine.",
                    "Leave --host out for this machine alone; 0.0.0.0 is all its addresses.",
                ) from error
            raise _port_taken(port, error.strerror or str(error), host) from error


def _port_taken(port: int, why: str, host: str = "127.0.0.1") -> PortTakenError:
    return PortTakenError(
        f"Port {port} on {host} cannot be used: {why}.",
        "Ports below 1024 need special rights."
        if port < 1024
        else "Another program most likely listens there.",
        "Choose another with --port, or leave it out and a free one is taken.",
    )


def _reachable(host: str) -> str:
    """Return how this machine itself reaches a server that listens on `host`, as it stands in a URL."""
    if host in ("0.0.0.0", "::"):  # all addresses
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host


def _stats_path(folder: Path) -> Path:
    return folder / "stats.json"


def _socket_path(folder: Path) -> Path:
    return folder / "hot.sock"


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
                    raise _port_taken(server.port, "llama-server could not bind it")
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


def _fork_command(
    fork: Fork,
    build: EngineBuild,
    model: ModelFile,
    placement: Placement,
    port: int,
    gpu: Gpu | None,
    ceiling_mib: float,
    stats_path: Path,
) -> tuple[list[str], dict[str, str]]:
    if fork.facts.refused:
        raise LaunchFailed(NotEngaged(detail=fork.facts.refused))
    try:
        return fork_command(
            fork,
            build,
            model,
            placement,
            port=port,
            gpu=gpu,
            ceiling_mib=ceiling_mib,
            stats_path=stats_path,
        )
    except Unmapped as error:
        raise LaunchFailed(NotEngaged(detail=str(error))) from error


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
