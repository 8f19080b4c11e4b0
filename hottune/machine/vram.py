"""Peak VRAM of a server, sampled while it runs.

Three sources, best first: NVML's use by process; where the process is hidden (containers and WSL show no or
foreign process ids) the change of the device's total since the sampler began, which other tenants of the card
can falsify; and for the virtual GPU the peak that the device itself counted.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, Literal, Self

import psutil

from hottune.machine.background import Background
from hottune.machine.facts import Gpu
from hottune.machine.nvml import NvmlUnavailable, ask, nvml
from hottune.units import mib

VramSource = Literal["process", "device-change", "virtual"]


class VramSampler(Background):
    """Samples a GPU's memory on a thread of its own, from entering the context until leaving it.

    Enter it *before* the server starts (the device's change counts from there), then call `watch(pid)`.
    On a machine without NVML, or for a virtual GPU, no thread runs; then only `note_virtual` gives a peak.

    Args:
        gpu: the GPU that the server uses.
        pid: the server's process, if it already runs.
        interval_s: seconds between samples; 0.1 or less, or short peaks are missed.
    """

    def __init__(self, gpu: Gpu, pid: int | None = None, *, interval_s: float = 0.05) -> None:
        super().__init__("vram-sampler")
        self._gpu = gpu
        self._pid = pid
        self._interval_s = interval_s
        self._ready = threading.Event()
        self._baseline: int | None = None
        self._process_peak: int | None = None
        self._change_peak = 0
        self._last: int | None = None
        self._virtual_peak_mib: float | None = None
        self._lock = threading.Lock()  # of the peaks
        #: Samples taken so far.
        self.samples = 0
        #: Why there are no samples, or "".
        self.note = ""

    def watch(self, pid: int) -> None:
        """Name the server's process, once it is started; its children count with it."""
        self._pid = pid

    def note_virtual(self, peak_mib: float) -> None:
        """Take over the peak that the virtual GPU counted itself (exact, not sampled)."""
        self._virtual_peak_mib = max(peak_mib, self._virtual_peak_mib or 0.0)

    def begin_again(self) -> None:
        """Forget the peaks, not the baseline: what comes now is measured anew, in the same server."""
        with self._lock:
            self._process_peak = None if self._process_peak is None else 0
            self._change_peak, self._virtual_peak_mib = 0, None

    @property
    def source(self) -> VramSource:
        """Where `peak_mib` comes from."""
        if self._gpu.virtual:
            return "virtual"
        return "device-change" if self._process_peak is None else "process"

    @property
    def peak_mib(self) -> float:
        """Highest use seen so far, MiB; 0 when nothing could be sampled."""
        if self._gpu.virtual:
            return self._virtual_peak_mib or 0.0
        return mib(self._change_peak if self._process_peak is None else self._process_peak)

    @property
    def last_mib(self) -> float | None:
        """Use as last seen, from the same source as the peak; None where nothing was, and on virtual GPUs."""
        return None if self._last is None else mib(self._last)

    def __enter__(self) -> Self:
        if self._gpu.virtual:
            self.note = "virtual GPU: the device counts its own peak"
            return self
        self._start()
        self._ready.wait(timeout=30)  # the baseline is known before the caller starts a server
        return self

    def _run(self) -> None:
        try:
            with nvml() as module:
                handle = module.nvmlDeviceGetHandleByIndex(self._gpu.index)
                self._baseline = int(module.nvmlDeviceGetMemoryInfo(handle).used)
                self._ready.set()
                while True:
                    self._sample(module, handle)
                    if self._stop.wait(self._interval_s):
                        return
        except NvmlUnavailable as error:
            self.note = str(error)
        except Exception as error:  # a sampler must never take its run down; the note says it went blind
            self.note = f"VRAM sampling ended: {error}"
        finally:
            self._ready.set()

    def _sample(self, module: Any, handle: Any) -> None:
        with self._lock:
            memory = ask(module, lambda: module.nvmlDeviceGetMemoryInfo(handle), None)
            if memory is not None and self._baseline is not None:
                change = int(memory.used) - self._baseline
                self._change_peak = max(self._change_peak, change)
                self._last = change if self._process_peak is None else self._last
            used = self._process_use(module, handle)
            if used is not None:
                self._process_peak = max(self._process_peak or 0, used)
                self._last = used
            self.samples += 1

    def _process_use(self, module: Any, handle: Any) -> int | None:
        """Return the bytes that the watched process and its children use, or None where that is hidden."""
        pid = self._pid
        if pid is None:
            return None
        rows: dict[int, int] = {}
        listings: list[list[Any]] = [
            ask(module, lambda: module.nvmlDeviceGetComputeRunningProcesses(handle), []),
            ask(module, lambda: module.nvmlDeviceGetGraphicsRunningProcesses(handle), []),  # Vulkan's
        ]
        for row in itertools.chain.from_iterable(listings):
            if row.usedGpuMemory is not None:
                rows[int(row.pid)] = max(rows.get(int(row.pid), 0), int(row.usedGpuMemory))
        ours = [rows[one] for one in (pid, *_children(pid)) if one in rows] if rows else []
        return sum(ours) if ours else None


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
