"""How fast the CPU reads main memory: in order, and in pieces of an expert's size at random places.

A reader is `numpy.bitwise_or.reduce` over 64-bit words, one call a piece: it only loads, it releases Python's
lock, and inside the second-level cache it runs several times as fast as memory delivers, so memory is what is
measured. It computes nothing on the weights: the kernels of llama.cpp reach less, how much less depends on
the quantization.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int64]

_GB = 1e9
_STREAM_BYTES = 4 << 20
_FILL_BYTES = 16 << 20
_REPEATS = 3


def new_area(n_bytes: int, threads: int) -> Words:
    """Return memory that is really there: every page is written, by the threads that will read."""
    area: Words = np.empty(n_bytes // 8, dtype=np.int64)
    parts = np.array_split(area, max(1, threads))

    def fill(part: Words) -> None:
        step = _FILL_BYTES // 8
        for at in range(0, part.size, step):  # in steps, so that Ctrl-C gets through
            part[at : at + step] = 1

    workers = [threading.Thread(target=fill, args=(part,), daemon=True) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return area


def streaming_gb_per_s(area: Words, threads: int, seconds: float) -> float:
    """Return GB/s (10^9 bytes) at which `threads` threads together read the area in order.

    Each has a part of its own and begins anew at its end. Median of three runs of `seconds` each.
    """

    def pieces(number: int) -> Iterator[Words]:
        part = np.array_split(area, threads)[number]
        step = min(_STREAM_BYTES // 8, part.size)
        while True:
            for at in range(0, part.size - step + 1, step):
                yield part[at : at + step]

    return _median(pieces, threads, seconds)


def expert_reads_gb_per_s(area: Words, threads: int, expert_bytes: int, seconds: float) -> float:
    """Return GB/s at which `threads` threads read pieces of `expert_bytes` in random order from the area.

    As experts do, the pieces lie side by side and do not overlap; each is read whole, by one thread.
    """
    words = max(1, expert_bytes // 8)
    count = max(1, area.size // words)

    def pieces(number: int) -> Iterator[Words]:
        rng = np.random.default_rng([7, number])
        while True:
            for piece in rng.permutation(count).tolist():
                yield area[piece * words : (piece + 1) * words]

    return _median(pieces, threads, seconds)


@contextmanager
def reading(area: Words, threads: int, expert_bytes: int) -> Iterator[Callable[[], float]]:
    """Let `threads` threads read experts at random while the block runs.

    Yields a function that returns GB/s of all threads since the block began, or since it was last asked.
    """
    words = max(1, expert_bytes // 8)
    count = max(1, area.size // words)
    stop = threading.Event()
    done = [0] * threads
    since = [time.perf_counter(), 0.0]  # moment, bytes then

    def work(number: int) -> None:
        rng = np.random.default_rng([11, number])
        while not stop.is_set():
            for piece in rng.permutation(count).tolist():
                np.bitwise_or.reduce(area[piece * words : (piece + 1) * words])
                done[number] += words * 8
                if stop.is_set():
                    return

    def rate() -> float:
        now, total = time.perf_counter(), float(sum(done))
        found = (total - since[1]) / (now - since[0]) / _GB
        since[:] = [now, total]
        return found

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield rate
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def _median(pieces: Callable[[int], Iterator[Words]], threads: int, seconds: float) -> float:
    return sorted(_rate(pieces, threads, seconds) for _ in range(_REPEATS))[_REPEATS // 2]


def _rate(pieces: Callable[[int], Iterator[Words]], threads: int, seconds: float) -> float:
    """Sum the threads' own rates: one that starts or ends late does not count against the others."""
    rates = [0.0] * threads
    together = threading.Barrier(threads)

    def work(number: int) -> None:
        source = pieces(number)
        together.wait()
        start, n_bytes = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds or n_bytes == 0:
            piece = next(source)
            np.bitwise_or.reduce(piece)
            n_bytes += piece.nbytes
        rates[number] = n_bytes / took / _GB

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)
