"""The published curve that stands in for a model that nobody traced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.routing.published import independent_misses, published_hit_rate


@pytest.mark.parametrize(
    ("experts", "hits"), [(0, 0.0), (8, 0.366), (24, 0.741), (49, 0.894), (81, 0.962), (128, 1.0)]
)
def test_it_goes_through_every_published_point(experts: int, hits: float) -> None:
    assert published_hit_rate(experts / 128) == pytest.approx(hits)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_experts_never_hit_less(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= published_hit_rate(low) <= published_hit_rate(high) <= 1


@given(st.integers(1, 64), st.floats(0, 1))
def test_misses_are_a_distribution_with_the_right_mean(n_used: int, hits: float) -> None:
    misses = independent_misses(n_used, hits)
    assert len(misses) == n_used + 1
    assert sum(misses) == pytest.approx(1)
    assert sum(m * p for m, p in enumerate(misses)) == pytest.approx(n_used * (1 - hits))
