"""The process that holds a ballast, started by `ballast.held`.

It takes VRAM through the CUDA driver until NVML shows that only the ceiling is free, says so in one line of
JSON on standard output, and holds it until its standard input ends. It cannot outlive its parent: the kernel
kills it with the parent (Linux, `PR_SET_PDEATHSIG`), and the pipe that is its standard input breaks.

A process of its own, because VRAM that a crash or `kill -9` leaves behind must go with it, and because CUDA
in hottune's own process would count as another tenant of the card.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from hottune.machine.cuda_driver import Cuda, CudaUnavailable, opened
from hottune.machine.nvml import NvmlUnavailable, ask, nvml
from hottune.units import MIB, mib

#: The driver hands out VRAM in pages of so many MiB.
PAGE_MIB = 2
#: Most that is taken at once, MiB: so much can another program lose before the holder notices it.
CHUNK_MIB = 1024
#: How far from the ceiling the free VRAM may end, MiB.
CLOSE_MIB = 8.0
#: A change of the free VRAM that is not ours, MiB, from which on somebody else is at work on the card.
FOREIGN_CHANGE_MIB = 64.0
#: VRAM, MiB, that other computing programs may hold where the driver shows them, and where it hides them.
OTHERS_MIB, HIDDEN_MIB = 64.0, 256.0
#: Seconds for which the free VRAM must then stay as it is.
STILL_S = 0.5

_PR_SET_PDEATHSIG = 1


class Refused(Exception):
    """No ballast is possible or decent here; the message says why."""


def main(arguments: Sequence[str] | None = None, *, library: Any = None) -> int:
    """Take the ballast, report, and hold it until standard input ends; return the exit status.

    Args:
        arguments: of the command line; None = this process's.
        library: stands in for the CUDA driver in tests.
    """
    parser = argparse.ArgumentParser(description="Hold VRAM so that only so much is free (see hottune run).")
    parser.add_argument("--gpu", type=int, required=True, help="NVML's number")
    parser.add_argument("--uuid", default="", help="as NVML writes it")
    parser.add_argument("--leave-mib", type=float, required=True, help="VRAM to leave free, MiB")
    parser.add_argument("--parent", type=int, required=True, help="process with which this one ends")
    given = parser.parse_args(arguments)
    die_with(given.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is hottune's; it ends us after its servers
    try:
        with ExitStack() as ending:
            module = ending.enter_context(nvml())
            card = Card(module, given.gpu)
            before_mib = card.free_mib()
            card.require_alone()
            cuda = ending.enter_context(opened(given.uuid, library))
            fill(cuda, ending, card.free_mib, given.leave_mib)
            left_mib = card.free_mib()
            _tell({"held_mib": before_mib - left_mib, "free_mib": left_mib})
            sys.stdin.buffer.read()  # until hottune closes it, or is gone
    except (Refused, CudaUnavailable, NvmlUnavailable) as error:
        _tell({"refused": str(error)})
        return 3
    return 0


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux; else the pipe)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above took effect
        raise SystemExit(4)


class Card:
    """What NVML says about one card's memory."""

    def __init__(self, module: Any, index: int) -> None:
        self._module = module
        self._handle = ask(module, lambda: module.nvmlDeviceGetHandleByIndex(index), None)
        if self._handle is None:
            raise Refused(f"NVML does not show GPU {index}")

    def free_mib(self) -> float:
        """Return the card's free VRAM, MiB."""
        memory = ask(self._module, lambda: self._module.nvmlDeviceGetMemoryInfo(self._handle), None)
        if memory is None:
            raise Refused("NVML does not tell the card's free memory")
        return mib(memory.free)

    def require_alone(self) -> None:
        """Raise Refused when other programs compute on the card, seen or hidden.

        A desktop's graphics are let be: what they hold is not free, so it is not taken from them.
        """
        module, handle = self._module, self._handle
        drawing = {row.pid: row for row in _graphics(module, handle)}
        computing = [row for row in _compute(module, handle) if row.pid not in drawing]
        theirs = [row.usedGpuMemory for row in computing]
        if any(used is None for used in theirs) or mib(sum(theirs)) > OTHERS_MIB:
            pids = ", ".join(str(row.pid) for row in computing)
            raise Refused(f"other programs compute on this card (process {pids})")
        # The old form of this question counts the driver's own reserve as used, which hides nothing.
        info = ask(module, lambda: module.nvmlDeviceGetMemoryInfo(handle, module.nvmlMemory_v2), None)
        if info is not None:
            seen = sum(row.usedGpuMemory or 0 for row in [*drawing.values(), *computing])
            hidden_mib = mib(max(0, info.used - seen))
            if hidden_mib > HIDDEN_MIB:
                raise Refused(f"{hidden_mib:.0f} MiB are held by programs that the driver does not show here")


def _compute(module: Any, handle: Any) -> list[Any]:
    nothing: list[Any] = []
    return ask(module, lambda: list(module.nvmlDeviceGetComputeRunningProcesses(handle)), nothing)


def _graphics(module: Any, handle: Any) -> list[Any]:
    nothing: list[Any] = []
    return ask(module, lambda: list(module.nvmlDeviceGetGraphicsRunningProcesses(handle)), nothing)


def fill(
    cuda: Cuda,
    ending: ExitStack,
    free_mib: Callable[[], float],
    leave_mib: float,
    *,
    still_s: float = STILL_S,
) -> None:
    """Take VRAM until `leave_mib` is free; `ending` gives it back.

    In ever smaller pieces, for each allocation also costs the driver a little. After each, the free VRAM must
    have shrunk by just that piece.

    Raises:
        Refused: less is free from the start (this process's CUDA context alone is too large a ballast), or
            the free VRAM changes by something that is not ours.
        CudaUnavailable: the driver refuses a piece.
    """
    now_mib = free_mib()
    if now_mib < leave_mib - CLOSE_MIB:
        raise Refused(f"only {now_mib:.0f} MiB are free beside the ballast's own CUDA context")
    while (excess_mib := now_mib - leave_mib) >= PAGE_MIB:
        piece_mib = min(CHUNK_MIB, PAGE_MIB * max(1, int(excess_mib / 2 / PAGE_MIB)))
        ending.enter_context(cuda.device_memory(piece_mib * MIB))
        was_mib, now_mib = now_mib, free_mib()
        _require_ours(was_mib - now_mib - piece_mib)
    if now_mib < leave_mib - CLOSE_MIB:
        raise Refused(f"{now_mib:.0f} MiB stayed free instead of {leave_mib:.0f}")
    time.sleep(still_s)
    _require_ours(now_mib - free_mib())


def _require_ours(foreign_mib: float) -> None:
    if abs(foreign_mib) > FOREIGN_CHANGE_MIB:
        took = "took" if foreign_mib > 0 else "gave back"
        raise Refused(f"another program {took} {abs(foreign_mib):.0f} MiB while the ballast was taken")


def _tell(facts: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
