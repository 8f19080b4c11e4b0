"""What goes on around a server while it is driven: the GPU's clocks and link, other programs, swap.

It must not disturb what it watches: the GPU is asked twice a second on one thread (well under a millisecond
each time), processor and swap only at the begin and at the end.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Self

import psutil

from hottune.machine.background import Background
from hottune.machine.clocks import GpuState, ask_state
from hottune.machine.facts import Gpu
from hottune.machine.nvml import ask, nvml
from hottune.outcomes import DuringRun
from hottune.units import mib


@dataclass
class _Seen:
    states: list[GpuState] = field(default_factory=list)
    others_mib: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Begin:
    pid: int
    at: float
    busy_s: float
    ours_s: float
    swap: float


class MachineWatch(Background):
    """Watches from `begin` to `seen`; the thread runs from entering the context until leaving it.

    Args:
        gpu: that the server uses; a virtual one is not asked.
        interval_s: seconds between looks at the GPU.
    """

    def __init__(self, gpu: Gpu, *, interval_s: float = 0.5) -> None:
        super().__init__("machine-watch")
        self._gpu, self._interval_s = gpu, interval_s
        self._lock = threading.Lock()  # of what was seen
        self._seen = _Seen()
        self._begin: _Begin | None = None

    def begin(self, pid: int) -> None:
        """Forget what was seen so far: the server `pid` is about to be driven."""
        with self._lock:
            self._seen = _Seen()
            self._begin = _Begin(pid, time.monotonic(), _busy_s(), _ours_s(pid), _swap_mib())

    def seen(self) -> DuringRun:
        """Return what was seen since `begin`; ask while the server is still there."""
        with self._lock:
            begin, states, others = self._begin, self._seen.states, self._seen.others_mib
            return DuringRun(
                samples=len(states),
                temperature_max_c=max(_known(states, "temperature_c"), default=None),
                sm_clock_mhz=_of(median, _known(states, "sm_clock_mhz")),
                power_w=_of(fmean, _known(states, "power_w")),
                throttled=_shares(states),
                pcie_generation=max(_known(states, "pcie_generation"), default=None),
                pcie_width=max(_known(states, "pcie_width"), default=None),
                other_vram_growth_mib=max(others) - others[0] if others else None,
                other_cpu_percent=None if begin is None else _other_cpu_percent(begin),
                swap_growth_mib=None if begin is None else _swap_mib() - begin.swap,
            )

    def __enter__(self) -> Self:
        if not self._gpu.virtual:
            self._start()
        return self

    def _run(self) -> None:
        try:
            with nvml() as module:
                while not self._stop.is_set():
                    self._look(module)
                    self._stop.wait(self._interval_s)
        except Exception:  # a watch must never take its run down: then there are just no samples
            return

    def _look(self, module: Any) -> None:
        begin = self._begin
        if begin is None:
            return
        state = ask_state(module, self._gpu.index)
        others = _others_mib(module, self._gpu.index, begin.pid)
        with self._lock:
            if begin is not self._begin:  # asked before it began anew
                return
            self._seen.states.append(state)
            if others is not None:
                self._seen.others_mib.append(others)


def _others_mib(module: Any, index: int, pid: int) -> float | None:
    """Return the VRAM of all processes but the server; None where the driver hides the server itself."""
    nothing: list[Any] = []
    handle = ask(module, lambda: module.nvmlDeviceGetHandleByIndex(index), None)
    rows = [
        *ask(module, lambda: module.nvmlDeviceGetComputeRunningProcesses(handle), nothing),
        *ask(module, lambda: module.nvmlDeviceGetGraphicsRunningProcesses(handle), nothing),
    ]
    used = {int(row.pid): int(row.usedGpuMemory or 0) for row in rows}
    return mib(sum(used.values()) - used[pid]) if pid in used else None


def _known(states: list[GpuState], name: str) -> list[Any]:
    return [value for state in states if (value := getattr(state, name)) is not None]


def _of(mean: Any, values: list[float]) -> float | None:
    return float(mean(values)) if values else None


def _shares(states: list[GpuState]) -> dict[str, float]:
    counts = Counter(reason for state in states for reason in state.throttled_by)
    return {reason: count / len(states) for reason, count in counts.items()}


def _busy_s() -> float:
    """Return the seconds that all cores together have worked so far, for us, for others, for other guests."""
    times = psutil.cpu_times()._asdict()
    # Guests' time is in user time already.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(value for name, value in times.items() if name not in idle))


def _ours_s(pid: int) -> float:
    own = os.times()
    try:
        server = psutil.Process(pid).cpu_times()
    except psutil.Error:  # it is gone; then nobody needs the answer
        return own.user + own.system
    return float(own.user + own.system + server.user + server.system)


def _other_cpu_percent(begin: _Begin) -> float | None:
    """Return what share of all cores was used by others since then; None where the system does not count."""
    seconds, busy_s = time.monotonic() - begin.at, _busy_s() - begin.busy_s
    if seconds <= 0 or busy_s <= 0:
        return None
    others_s = busy_s - (_ours_s(begin.pid) - begin.ours_s)
    return max(0.0, 100.0 * others_s / (seconds * (psutil.cpu_count() or 1)))


def _swap_mib() -> float:
    return mib(psutil.swap_memory().used)
