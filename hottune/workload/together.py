"""Doing several things at once, as several users of one server do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def together(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run all jobs at once, each in a thread of its own, and return their results in order.

    A single job runs in the caller's thread. When one fails, its error is raised at once, as Ctrl-C is: the
    others are not waited for. They must end by themselves soon, and cannot keep the program alive.

    Raises:
        BaseException: whatever the first job to fail raised.
    """
    if len(jobs) == 1:
        return [jobs[0]()]
    ended: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()
    start = threading.Barrier(len(jobs))

    def run(index: int) -> None:
        try:
            start.wait()
            ended.put((index, jobs[index](), None))
        except BaseException as error:
            ended.put((index, None, error))

    for index in range(len(jobs)):
        threading.Thread(target=run, args=(index,), name=f"request-{index}", daemon=True).start()
    results: dict[int, T] = {}
    while len(results) < len(jobs):
        index, result, error = ended.get()
        if error is not None:
            raise error
        results[index] = result  # type: ignore[assignment]  # None only beside an error, or if T is None
    return [results[index] for index in range(len(jobs))]
