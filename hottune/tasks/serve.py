"""Serve a found arm for people to use: start, watch, and end it cleanly."""

from __future__ import annotations

import ipaddress
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from hottune.engine.argv import Serving, server_command
from hottune.engine.facts import EngineBuild
from hottune.engine.failures import Failure, LaunchFailed
from hottune.engine.launch import launch
from hottune.engine.ports import PORT, require_free
from hottune.engine.server import Server
from hottune.errors import BadProfileError, BadSettingError, NotEngagedError, PortTakenError, ServerError
from hottune.machine.facts import Gpu
from hottune.models.shape import ModelFile
from hottune.outcomes import HotStats
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.routing.profile import read_profile
from hottune.tasks.endings import fatal

WATCH_S = 10.0
_POLL_S = 0.2
#: Arguments that hottune must know of, by which option they are given instead.
_OURS = {"--port": "--port", "--host": "--host", "-m": "--model", "--model": "--model"}


@dataclass(frozen=True)
class Job:
    """Everything that is settled before the server starts."""

    engine: EngineBuild
    model: ModelFile
    placement: Placement
    gpu: Gpu
    #: VRAM that the server may use, MiB.
    ceiling_mib: float
    serving: Serving
    #: Asked for; None = 8080, or a free one where that is taken.
    port: int | None
    log_path: Path
    #: Read at the start, where it is there, and written at the end; None = neither.
    profile_path: Path | None

    @property
    def without_profile(self) -> Job:
        """The same without a profile."""
        return replace(self, profile_path=None)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """Return the command line and the variables that it needs, to show."""
        return server_command(
            self.engine,
            self.model.path,
            self.placement,
            shape=self.model.shape,
            port=self.port or PORT,
            gpu=self.gpu,
            ceiling_mib=self.ceiling_mib,
            serving=self.serving,
            profile_path=self.profile_path,
        )


def only_here(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_sense(extra: tuple[str, ...]) -> None:
    """Raise BadSettingError for llama-server arguments that have an option of hottune's own."""
    for word in extra:
        option = _OURS.get(word.split("=", 1)[0])
        if option is not None:
            raise BadSettingError(
                f"{word} after -- would be unknown to hottune.", next_step=f"Give {option} before the --."
            )


def profile_for(model: ModelFile, placement: Placement, cache_dir: Path) -> Path | None:
    """Return where the uses of this model's experts are kept; its folder is made. None without a cache."""
    if placement.hot_k == 0:
        return None
    folder = cache_dir / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{model.fingerprint[:16]}.json"


def serve(job: Job, ui: Progress, *, up: Callable[[Server], None], watch: bool) -> None:
    """Serve until SIGINT or SIGTERM, on which the server is ended cleanly and this returns.

    Args:
        job: what to serve.
        ui: told what happens.
        up: called once, when the server is healthy.
        watch: say every 10 s in which tokens went through the cache how fast, and how many it hit.

    Raises:
        ServerError: it did not come up, or died.
        NotEngagedError: it came up, but not as asked.
        PortTakenError: the asked-for port is in use.
        BadSettingError: the host is no address of this machine.
        KeyboardInterrupt: SIGINT came before it was healthy, or a second one while it ended.
        SystemExit: SIGTERM did.
    """
    if set_aside(job.profile_path, ui.say):
        ui.say(f"The cache starts with the experts of last time: {job.profile_path}")
    before = _written_at(job.profile_path)
    try:
        ui.start(f"Starting {job.model.name}")
        with launch(
            job.engine,
            job.model,
            job.placement,
            gpu=job.gpu,
            ceiling_mib=job.ceiling_mib,
            log_path=job.log_path,
            port=_port(job),
            on_progress=lambda words: ui.update(0, note=words),
            serving=job.serving,
            profile_path=job.profile_path,
        ) as server:
            ui.finish("healthy")
            with stop_signals() as stopping:
                up(server)
                _wait(server, stopping, ui if watch and job.placement.hot_k else None)
            ui.say("Stopping ...")
        if _written_at(job.profile_path) != before:
            ui.say(f"Stopped. The uses of the experts are kept for the next start: {job.profile_path}")
    except LaunchFailed as failed:
        raise _error(failed.outcome, "llama-server did not come up") from failed


def set_aside(path: Path | None, say: Callable[[str], None]) -> bool:
    """Return whether there is a profile to begin with; a damaged one is moved away.

    The device never writes over what is no profile, so what it learns would be lost at each end.
    """
    if path is None or not path.exists():
        return False
    try:
        read_profile(path)
    except BadProfileError as error:
        away = path.with_suffix(".damaged")
        say(f"Warning: the cache starts empty: {error.what}")
        try:
            path.replace(away)
        except OSError as cause:
            say(f"Warning: and nothing will be kept for the next start: {path} cannot be moved ({cause}).")
        else:
            say(f"It was moved to {away}; a new one is written at the end.")
        return False
    return True


def _written_at(path: Path | None) -> int | None:
    return path.stat().st_mtime_ns if path is not None and path.is_file() else None


def _port(job: Job) -> int | None:
    """Return the port to take; None where the usual one is taken and none was asked for."""
    if job.port is not None:
        return job.port
    try:
        require_free(PORT, job.serving.host)
    except PortTakenError:
        return None
    return PORT


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Let SIGINT and SIGTERM set an event; afterwards they do again what they did before."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(server: Server, stopping: threading.Event, ui: Progress | None) -> None:
    """Return when asked to stop.

    Raises:
        ServerError: the server died meanwhile.
    """
    seen, seen_at = Seen.of(server), time.monotonic()
    while not stopping.wait(_POLL_S):
        if not server.alive():
            raise _error(server.failure("later"), "llama-server died")
        if ui is None or time.monotonic() - seen_at < WATCH_S:
            continue
        now, now_at = Seen.of(server), time.monotonic()
        if line := watch_line(seen, now, now_at - seen_at):
            ui.say(line)
        seen, seen_at = now, now_at


@dataclass(frozen=True)
class Seen:
    """The cache's counters at a moment."""

    tokens: int
    hits: int
    misses: int

    @staticmethod
    def of(server: Server) -> Seen:
        """Ask the device; zeros where it does not answer."""
        hot: HotStats | None = server.hot_stats()
        return Seen(server.cached_tokens, hot.hits, hot.misses) if hot else Seen(0, 0, 0)


def watch_line(before: Seen, now: Seen, seconds: float) -> str:
    """Return what went on since the last line; '' when nothing did. The speed is over all that time."""
    tokens, hits, misses = now.tokens - before.tokens, now.hits - before.hits, now.misses - before.misses
    if tokens <= 0 or hits < 0 or misses < 0 or hits + misses == 0:
        return ""
    return (
        f"{tokens} tokens in {seconds:.0f} s ({tokens / seconds:.1f} tok/s), "
        f"hit rate {hits / (hits + misses):.0%}"
    )


def _error(outcome: Failure, what: str) -> NotEngagedError | ServerError:
    next_step = "`hottune doctor` checks engine and device. Others may hold VRAM that the study had."
    return fatal(outcome, what, next_step, log_lines=10)
