"""A child process that cannot outlive us: own group, parent-death signal, and a stop that is certain.

Three ways for the parent to end, three answers:

- it stops the child itself (`stop`): SIGTERM to the group, a grace period, SIGKILL to the group;
- it is interrupted or raises: the context managers above call `stop`;
- it is killed with SIGKILL and can do nothing: the kernel sends the child SIGKILL (Linux,
  `PR_SET_PDEATHSIG`).

The kernel ties that signal to the *thread* that forked, not to the process: a child started from a worker
thread would be killed when that thread ends, in the middle of a measurement. So all children are forked by
one thread that lives as long as the process (`_SPAWNER`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")
#: Resolved once, before any fork: between fork and exec only plain calls are safe.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
if _PRCTL is not None:
    _PRCTL.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


class ChildProcess:
    """A running program in its own process group, its output in a log file.

    The exit status is left with the kernel until `stop`: an unreaped leader keeps its group's number from
    being given to a stranger, so a signal to the group can only reach our own.
    """

    def __init__(self, popen: subprocess.Popen[bytes], log_path: Path) -> None:
        self._popen = popen
        self._exit_code: int | None = None
        self.pid = popen.pid
        self.log_path = log_path

    def exit_code(self) -> int | None:
        """Return the exit status (negative: killed by that signal), or None while it runs."""
        if self._exit_code is None:
            with suppress(ChildProcessError):
                ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None:
                    exited = ended.si_code == os.CLD_EXITED
                    self._exit_code = ended.si_status if exited else -ended.si_status
        return self._exit_code

    def alive(self) -> bool:
        """Tell whether the program still runs."""
        return self.exit_code() is None

    def wait(self, timeout_s: float) -> int | None:
        """Wait up to `timeout_s` seconds for the end; return the exit status, or None if it still runs."""
        deadline = time.monotonic() + timeout_s
        pause = 0.005
        while self.alive() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        return self.exit_code()

    def stop(self, grace_s: float = 15.0) -> int | None:
        """End the whole group for certain and return the exit status; harmless when called again.

        Args:
            grace_s: seconds between SIGTERM (on which llama-server shuts down cleanly and the device writes
                its counters) and SIGKILL.
        """
        if self._popen.returncode is not None:
            return self._exit_code
        if self.alive():
            self._signal_group(signal.SIGTERM)
            self.wait(grace_s)
        self._signal_group(signal.SIGKILL)  # also for what the program may have started and left behind
        # A process stuck in the kernel (a GPU driver) may need a while to notice SIGKILL.
        self.wait(30.0)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=1.0)
        return self._exit_code

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def start(argv: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> ChildProcess:
    """Start a program whose stdout and stderr go to `log_path` (overwritten).

    Args:
        argv: program and arguments.
        env: the whole environment, not an addition.
        log_path: the log file; its folder is made if needed.

    Raises:
        OSError: the program is missing or may not be run, or the log file cannot be written.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:

        def fork() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # own group; Ctrl-C of the terminal reaches us alone, we stop it
                close_fds=True,
                preexec_fn=_tie_to_parent(os.getpid()),
            )

        popen = _SPAWNER.submit(fork).result()
    return ChildProcess(popen, log_path)


def _tie_to_parent(parent: int) -> Callable[[], None] | None:
    """Return what the child runs between fork and exec: ask to be killed when `parent` dies."""
    if _PRCTL is None:
        return None  # not Linux: a kill -9 of hottune leaves the server to its user
    prctl, sigkill = _PRCTL, int(signal.SIGKILL)

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, sigkill, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above took effect
            os._exit(1)

    return tie
