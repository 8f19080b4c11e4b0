"""The interval of one arrangement's level: where its mean lies, given a few replicates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hottune.stats.intervals import student_t


def level_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return the Student t interval (1908) of the geometric mean of positive samples; None below two.

    On logarithms, as `paired_change` works, because the noise is relative and the interval stays above 0. Two
    such intervals that overlap do not say that two arms are equal: pairing takes out what rounds share.

    Args:
        samples: one positive number a replicate (tok/s, seconds).
        level: confidence level, between 0 and 1.

    Raises:
        ValueError: a sample that is not positive.
    """
    if any(not value > 0 for value in samples):
        raise ValueError(f"samples must be positive, not {list(samples)}")
    if len(samples) < 2:
        return None
    low, high, _ = student_t(np.log(np.asarray(samples, dtype=np.float64)), level)
    # exp overflows above 709: two samples that differ by orders of magnitude know no upper bound.
    return math.exp(low), math.exp(high) if high < 700 else math.inf
