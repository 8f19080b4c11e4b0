"""A llama-server process that is up: what it tells, what can be changed in it, and its end."""

from __future__ import annotations

from pathlib import Path

from hottune.engine import control, loadlog, process
from hottune.engine.control import ControlError
from hottune.engine.failures import Stage
from hottune.engine.forks.command import Fork
from hottune.engine.forks.proof import fork_log
from hottune.engine.ports import LOOPBACK, reachable
from hottune.outcomes import Crashed, Engagement, HotStats, OutOfMemory
from hottune.placement import Placement, needs_restart


class Server:
    """A llama-server that is up. Made by `launch`, which also stops it."""

    def __init__(
        self,
        child: process.ChildProcess,
        port: int,
        placement: Placement,
        folder: Path,
        argv: list[str],
        host: str = LOOPBACK,
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
        self.base_url = f"http://{reachable(host)}:{port}"
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
            self._stats = control.ask(socket_path(self._folder)) if cached else None
        return self._hot

    @property
    def _hot(self) -> HotStats | None:
        return self._stats.hot if self._stats and self._fork is None else None

    def glance(self) -> control.Glance | None:
        """Look at what moves while the server is driven; None where no device listens, or it is silent."""
        if self._stopped or "GGML_HOT_SOCKET" not in self.env:
            return None
        return control.glance(socket_path(self._folder))

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
        path, empty = socket_path(self._folder), self._placement.model_copy(update={"hot_k": 0})
        control.set_live(path, self._placement, empty)
        control.set_live(path, empty, placement)
        control.reset(path)
        self._placement, self._stats = placement, None

    def save_profile(self, path: Path) -> None:
        """Let the device write how often each expert was used, for a later start.

        Raises:
            ControlError: there is no cache, or the device cannot write there.
        """
        control.save_profile(socket_path(self._folder), path)

    def start_trace(self, path: Path, *, weights: bool = False) -> None:
        """Let the device write the router's choices to a file, until `stop_trace` or the server's end.

        The cache's counters begin again with the trace.

        Raises:
            ControlError: there is no cache, or the device cannot write there.
        """
        control.start_trace(socket_path(self._folder), path, weights=weights)
        control.reset(socket_path(self._folder))

    def stop_trace(self) -> None:
        """End the trace; harmless when there is none.

        Raises:
            ControlError: the device does not answer, or the disk was full.
        """
        control.stop_trace(socket_path(self._folder))

    def traced_tokens(self) -> int:
        """Return how many tokens the device has traced since `start_trace`.

        Raises:
            ControlError: it does not answer, or not with a number.
        """
        return control.traced_tokens(socket_path(self._folder))

    def stop(self) -> HotStats | None:
        """End the process for certain and return the cache's final counters; harmless when called again."""
        if not self._stopped:
            self._child.stop()
            self._stats = control.read_file(stats_path(self._folder))
            self._stopped = True
        return self._hot

    def failure(self, stage: Stage) -> OutOfMemory | Crashed:
        """Say why the server failed, from its exit status and log.

        Args:
            stage: `first_batch` for the first request, `later` afterwards.
        """
        # A connection breaks a moment before the exit status is there.
        return loadlog.diagnose(self.log_text(), stage, self._child.wait(2.0))


def stats_path(folder: Path) -> Path:
    """Return where, in the server's own folder, the device writes its counters at the end."""
    return folder / "stats.json"


def socket_path(folder: Path) -> Path:
    """Return the device's control socket, in the server's own folder."""
    return folder / "hot.sock"
