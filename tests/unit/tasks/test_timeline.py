"""VRAM and hit rate over time: what looks become, and that looking never takes a measurement down."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hottune.engine.control import Glance
from hottune.outcomes import Timeline
from hottune.tasks.timeline import MOST, Sample, TimelineSampler, timeline


def looks(*rows: tuple[float, float | None, tuple[int, int] | None]) -> list[Sample]:
    return [Sample(*row) for row in rows]


def test_an_interval_has_what_was_counted_in_it_and_its_highest_vram() -> None:
    found = timeline(looks((0, 5.0, (100, 100)), (0.25, 9.0, (101, 103)), (0.5, 7.0, (109, 103))))
    assert found == Timeline(at_s=[0.25, 0.5], vram_mib=[9.0, 7.0], hits=[1, 8], misses=[3, 0])
    assert found.hit_rates == [0.25, 1.0]


def test_where_nothing_went_through_the_cache_there_is_no_hit_rate() -> None:
    found = timeline(looks((0, 5.0, (1, 1)), (1, 5.0, (1, 1)), (2, 5.0, (2, 1))))
    assert found is not None
    assert found.hit_rates == [None, 1.0]


def test_without_a_cache_there_are_no_counts_and_without_vram_no_vram() -> None:
    assert timeline(looks((0, 5.0, None), (1, 6.0, None))) == Timeline(at_s=[1], vram_mib=[6.0])
    assert timeline(looks((0, None, (0, 0)), (1, None, (1, 1)))) == Timeline(at_s=[1], hits=[1], misses=[1])


def test_a_device_that_was_silent_once_loses_no_count() -> None:
    found = timeline(looks((0, 5.0, (0, 0)), (1, 5.0, None), (2, 5.0, (3, 1))))
    assert found == Timeline(at_s=[2], vram_mib=[5.0], hits=[3], misses=[1])


@pytest.mark.parametrize(
    "samples",
    [
        [],
        looks((0, None, None), (1, None, None)),
        looks((0, 5.0, (1, 1))),
        looks((0, 5.0, (1, 1)), (1, 5.0, None)),
    ],
)
def test_one_look_or_nothing_seen_is_no_timeline(samples: list[Sample]) -> None:
    assert timeline(samples) is None


counts = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1e5)), min_size=2)


@given(counts, st.integers(1, 80))
def test_putting_together_keeps_every_hit_and_the_peak_and_the_end(
    grown: list[tuple[int, int, float]], most: int
) -> None:
    hits = misses = 0
    samples = []
    for number, (more_hits, more_misses, vram_mib) in enumerate(grown):
        hits, misses = hits + more_hits, misses + more_misses
        samples.append(Sample(float(number), vram_mib, (hits, misses)))
    found = timeline(samples, most)
    assert found is not None
    assert len(found.at_s) == min(most, len(grown) - 1)
    assert found.at_s == sorted(set(found.at_s))
    assert found.at_s[-1] == len(grown) - 1
    assert sum(found.hits) == hits - grown[0][0]
    assert sum(found.misses) == misses - grown[0][1]
    assert max(found.vram_mib) == pytest.approx(max(vram for _, _, vram in grown[1:]), abs=0.05)


def test_the_longest_timeline_is_about_two_kilobytes() -> None:
    samples = [Sample(float(n), 80_000.5, (n * 1_000_000, n * 1_000_000)) for n in range(10_000)]
    found = timeline(samples)
    assert found is not None
    assert len(found.at_s) == MOST
    assert len(found.model_dump_json()) < 2300


@pytest.mark.parametrize(
    "columns", [{"vram_mib": [1.0]}, {"hits": [1, 2]}, {"hits": [1, 2], "misses": [1]}, {"misses": [1, 2]}]
)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, list[float]]) -> None:
    with pytest.raises(ValidationError):
        Timeline.model_validate({"at_s": [1.0, 2.0], **columns})


class Device:
    """Counts one hit and three misses more at every look."""

    def __init__(self) -> None:
        self.looked = 0

    def glance(self) -> Glance:
        self.looked += 1
        return Glance((self.looked, 3 * self.looked), virtual_mib=10.0 + self.looked)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert true()


def test_a_sampler_looks_from_begin_to_end_and_tells_whoever_listens() -> None:
    device, heard = Device(), []
    sampler = TimelineSampler(
        device.glance, lambda: None, on_sample=lambda *told: heard.append(told), interval_s=0.002
    )
    with sampler:
        assert device.looked == 0, "not before the first request"
        sampler.begin()
        sampler.begin()
        wait_until(lambda: device.looked >= 4)
        sampler.end()
    looked = device.looked
    assert heard[:2] == [(11.0, None), (12.0, 0.25)]
    assert len(heard) == looked
    found = sampler.timeline()
    assert found is not None
    assert (sum(found.hits), sum(found.misses)) == (looked - 1, 3 * (looked - 1))
    assert max(found.vram_mib) == 10.0 + looked
    time.sleep(0.01)
    assert device.looked == looked


def test_each_request_is_a_look_also_where_the_next_by_the_clock_is_far() -> None:
    device = Device()
    with TimelineSampler(device.glance, lambda: None, interval_s=1000) as sampler:
        for _ in range(3):
            sampler.begin()
        sampler.end()
    assert device.looked == 4
    found = sampler.timeline()
    assert found is not None
    assert found.hits == [1, 1, 1]


def test_the_virtual_gpus_own_number_goes_before_the_samplers() -> None:
    with TimelineSampler(lambda: None, lambda: 7.0) as sampler:
        sampler.begin()
        sampler.end()
    found = sampler.timeline()
    assert found is not None
    assert found.vram_mib == [7.0]
    assert found.hits == []


def test_what_fails_while_looking_fails_nothing_else() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no")

    with TimelineSampler(broken, lambda: 7.0) as sampler:
        sampler.begin()
        sampler.end()
    assert sampler.timeline() is None
    with TimelineSampler(lambda: None, lambda: 7.0, on_sample=broken) as sampler:
        sampler.begin()
        sampler.end()
    assert sampler.timeline() is not None


def test_a_server_that_was_never_asked_anything_has_no_timeline() -> None:
    with TimelineSampler(Device().glance, lambda: 7.0) as sampler:
        sampler.end()
    assert sampler.timeline() is None
