"""How fast a GPU gets data: from pinned and unpinned host memory, and from its own memory.

Copies alone, by the CUDA driver; no kernel of ours runs. What is timed by events is the copy itself.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from hottune.machine.cuda_driver import Cuda

_GB = 1e9
_REPEATS = 3
_HBM_COPIES = 8  # waited for together


@contextmanager
def pinned_copies(cuda: Cuda, area_bytes: int, piece_bytes: int) -> Iterator[Callable[[float], float]]:
    """Set up copies from pinned host memory to the GPU, in pieces of `piece_bytes` on one stream.

    Yields a function that copies for the given seconds and returns GB/s.
    """
    pieces = max(1, area_bytes // piece_bytes)
    with (
        cuda.pinned_memory(pieces * piece_bytes) as host,
        cuda.device_memory(piece_bytes) as device,
        cuda.stream() as stream,
    ):
        base = int(host.value or 0)
        ctypes.memset(base, 1, pieces * piece_bytes)

        def enqueue() -> int:
            for piece in range(pieces):
                source = ctypes.c_void_p(base + piece * piece_bytes)
                cuda.call("cuMemcpyHtoDAsync_v2", device, source, ctypes.c_size_t(piece_bytes), stream)
            return pieces * piece_bytes

        _run(cuda, stream, enqueue, 0.0)  # warms up
        yield lambda seconds: _run(cuda, stream, enqueue, seconds)


def h2d_unpinned_gb_per_s(cuda: Cuda, area_bytes: int, piece_bytes: int, seconds: float) -> float:
    """Return GB/s from ordinary host memory to the GPU, in pieces of `piece_bytes`.

    By wall clock: the driver copies through a staging buffer of its own, on the calling thread.
    """
    pieces = max(1, area_bytes // piece_bytes)
    host = np.ones(pieces * piece_bytes, dtype=np.uint8)
    with cuda.device_memory(piece_bytes) as device:

        def run() -> float:
            start, n_bytes = time.perf_counter(), 0
            while (took := time.perf_counter() - start) < seconds or n_bytes == 0:
                address = host.ctypes.data + n_bytes // piece_bytes % pieces * piece_bytes
                cuda.call("cuMemcpyHtoD_v2", device, ctypes.c_void_p(address), ctypes.c_size_t(piece_bytes))
                n_bytes += piece_bytes
            return n_bytes / took / _GB

        run()  # the first copies set the staging buffer up
        return median(run)


def hbm_copy_gb_per_s(cuda: Cuda, area_bytes: int, seconds: float) -> float:
    """Return the GPU memory's GB/s while it copies within itself: bytes read plus bytes written."""
    with (
        cuda.device_memory(area_bytes) as source,
        cuda.device_memory(area_bytes) as target,
        cuda.stream() as stream,
    ):

        def enqueue() -> int:
            for _ in range(_HBM_COPIES):
                cuda.call("cuMemcpyDtoDAsync_v2", target, source, ctypes.c_size_t(area_bytes), stream)
            return _HBM_COPIES * 2 * area_bytes

        _run(cuda, stream, enqueue, 0.0)  # warms up
        return median(lambda: _run(cuda, stream, enqueue, seconds))


def median(measure: Callable[[], float]) -> float:
    """Return the middle one of three measurements."""
    return sorted(measure() for _ in range(_REPEATS))[_REPEATS // 2]


def _run(cuda: Cuda, stream: ctypes.c_void_p, enqueue: Callable[[], int], seconds: float) -> float:
    """Enqueue rounds of copies until `seconds` have passed; return GB/s between two events."""
    elapsed = ctypes.c_float()
    n_bytes = 0
    with cuda.event() as begin, cuda.event() as end:
        start = time.perf_counter()
        cuda.call("cuEventRecord", begin, stream)
        while n_bytes == 0 or time.perf_counter() - start < seconds:
            n_bytes += enqueue()
            cuda.call("cuStreamSynchronize", stream)  # a short queue, or the end would come late
        cuda.call("cuEventRecord", end, stream)
        cuda.call("cuEventSynchronize", end)
        cuda.call("cuEventElapsedTime", ctypes.byref(elapsed), begin, end)
    return n_bytes / max(elapsed.value / 1e3, 1e-9) / _GB
