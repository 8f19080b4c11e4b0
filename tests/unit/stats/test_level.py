import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hottune.stats.level import level_interval

POSITIVE = st.floats(0.01, 1e5)


def test_equals_the_textbook_t_interval_of_the_logarithms():
    samples = [57.0, 61.0, 55.5, 60.2]
    low, high = stats.t.interval(
        0.9,
        3,
        loc=sum(map(math.log, samples)) / 4,
        scale=stats.sem([math.log(value) for value in samples]),
    )
    assert level_interval(samples, 0.9) == pytest.approx((math.exp(low), math.exp(high)))


def test_one_sample_has_no_interval_and_none_at_zero():
    assert level_interval([3.0]) is None
    assert level_interval([]) is None
    with pytest.raises(ValueError, match="positive"):
        level_interval([1.0, 0.0])


@given(st.lists(POSITIVE, min_size=2, max_size=9))
def test_contains_the_geometric_mean_and_stays_above_zero(samples):
    low, high = level_interval(samples)
    middle = math.exp(sum(map(math.log, samples)) / len(samples))
    assert 0 <= low <= middle * 1.000001
    assert middle <= high * 1.000001


def test_covers_the_true_level_as_often_as_it_says():
    import numpy as np

    draws = np.exp(np.random.default_rng(7).normal(math.log(50), 0.08, size=(2000, 3)))
    inside = sum(low <= 50 <= high for low, high in map(level_interval, draws))
    assert 0.935 <= inside / 2000 <= 0.965
