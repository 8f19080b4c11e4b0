"""Glances at a server: what they are made of, and that they disturb nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hottune.engine.control import DeviceStats
from hottune.outcomes import HotStats
from hottune.tasks.glances import Glance, Glances

HOT = HotStats(slots=4, layers=2, hits=3, misses=1, uploads=0, uploaded_bytes=0, cache_bytes=1)


class Sampler:
    """Stands in for a VRAM sampler."""

    def __init__(self, now_mib: float | None = None, peak_mib: float = 0.0) -> None:
        self.now_mib, self.peak_mib = now_mib, peak_mib


class Server:
    def __init__(self, stats: DeviceStats | None) -> None:
        self.stats, self.asked = stats, 0

    def glance(self) -> DeviceStats | None:
        self.asked += 1
        return self.stats


def first(sampler: Any, server: Server | None) -> Glance:
    found: list[Glance] = []
    with Glances(sampler, found.append, every_s=0.001) as glances:
        if server is not None:
            glances.watch(server)
        deadline = time.monotonic() + 20
        while not found or (server is not None and not server.asked):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return found[-1]


def test_a_real_gpus_use_is_what_the_sampler_saw() -> None:
    stats = DeviceStats(hot=HOT, virtual_peak_mib=None)
    assert first(Sampler(300.0, 400.0), Server(stats)) == Glance(300.0, 0.75, 400.0)


def test_a_virtual_gpus_use_is_what_it_counts_itself() -> None:
    stats = DeviceStats(hot=HOT, virtual_peak_mib=20.0, virtual_used_mib=15.0)
    assert first(Sampler(), Server(stats)) == Glance(15.0, 0.75, 20.0)


@pytest.mark.parametrize("stats", [None, DeviceStats(hot=None, virtual_peak_mib=None)])
def test_without_a_cache_there_is_no_hit_rate(stats: DeviceStats | None) -> None:
    assert first(Sampler(300.0, 400.0), Server(stats)) == Glance(300.0, None, 400.0)


def test_a_cache_that_was_not_used_yet_has_no_hit_rate() -> None:
    unused = HOT.model_copy(update={"hits": 0, "misses": 0})
    assert first(Sampler(), Server(DeviceStats(unused, None))) == Glance(None, None, None)


def test_while_a_model_loads_only_vram_is_looked_at() -> None:
    assert first(Sampler(100.0, 100.0), None) == Glance(100.0, None, 100.0)


def test_where_nobody_looks_nothing_is_asked() -> None:
    server = Server(None)
    with Glances(Sampler(), None, every_s=0.001) as glances:  # type: ignore[arg-type]
        glances.watch(server)
        time.sleep(0.05)
    assert server.asked == 0


def test_who_looks_and_fails_ends_the_glances_and_nothing_else() -> None:
    calls = []

    def broken(glance: Glance) -> None:
        calls.append(glance)
        raise ValueError("a view's bug")

    with Glances(Sampler(1.0, 1.0), broken, every_s=0.001):  # type: ignore[arg-type]
        time.sleep(0.1)
    assert len(calls) == 1
