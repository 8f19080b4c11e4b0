"""Jobs at once: results in order, the first error at once, nothing that keeps the program alive."""

from __future__ import annotations

import threading
import time

import pytest

from hottune.workload.together import together


def test_results_come_in_the_order_of_the_jobs_whichever_ends_first() -> None:
    def job(number: int) -> int:
        time.sleep(0.01 * (3 - number))
        return number

    assert together([lambda number=number: job(number) for number in range(3)]) == [0, 1, 2]


def test_all_jobs_really_run_at_once() -> None:
    meeting = threading.Barrier(4, timeout=5)
    assert sorted(together([meeting.wait] * 4)) == [0, 1, 2, 3]


def test_a_single_job_needs_no_thread() -> None:
    assert together([threading.current_thread]) == [threading.current_thread()]


def test_the_first_error_is_raised_without_waiting_for_the_rest() -> None:
    end = threading.Event()

    def failing() -> None:
        raise KeyError("first")

    try:
        with pytest.raises(KeyError, match="first"):
            together([end.wait, failing, end.wait])
    finally:
        end.set()


def test_what_is_left_behind_does_not_keep_the_program_alive() -> None:
    end = threading.Event()
    kinds: list[bool] = []

    def job() -> None:
        kinds.append(threading.current_thread().daemon)
        end.set()

    together([job, end.wait])
    assert kinds == [True]
