"""Relative changes between arrangements that were measured in different runs: nothing there can be paired.

Round i of one run and round i of another share no temperature, clocks or other load, so their ratio cancels
nothing. What differs from one run to the next as a whole is not seen by either, and so not in the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from hottune.stats.intervals import PairedChange, Verdict

#: Replicates that each side needs to have a variance of its own.
LEAST = 2


def unpaired_change(
    a: Sequence[float], b: Sequence[float], *, level: float = 0.95, higher_is_better: bool = True
) -> PairedChange:
    """Compare arm `a` with arm `b` by the means of their logarithms; `method` says that nothing was paired.

    Welch's t (1947), "The generalization of 'Student's' problem when several different population variances
    are involved", Biometrika 34, 28-35, with the degrees of freedom of Satterthwaite (1946), "An approximate
    distribution of estimates of variance components", Biometrics Bulletin 2, 110-114. The two sides may have
    different numbers of replicates and scatter differently.

    Args:
        a: one positive number a replicate (tok/s, seconds) of the arm in question.
        b: the same of the arm it is compared with.
        level: confidence level of the interval.
        higher_is_better: True for speeds (ratio a/b); False for durations (ratio b/a), so that a ratio
            above 1 always says that `a` is faster.

    Raises:
        ValueError: a side without replicates, a value that is not positive, or a level outside ]0, 1[.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {level}")
    sign = 1.0 if higher_is_better else -1.0
    first, second = sign * _logs(a), sign * _logs(b)
    counts = f"n={len(first)} and {len(second)}"
    name = "Welch's t on log values, unpaired" + ("" if level == 0.95 else f", at {100 * level:.4g} %")
    difference = float(np.mean(first)) - float(np.mean(second))
    if min(len(first), len(second)) < LEAST:
        method = f"{name} needs n>={LEAST} on both sides, {counts}"
        return PairedChange(math.exp(difference), None, None, "can't tell", method)
    shares = [float(np.var(side, ddof=1)) / len(side) for side in (first, second)]
    error = math.sqrt(sum(shares))
    if error == 0:
        half, p_value = 0.0, 1.0 if difference == 0 else 0.0
    else:
        # Of the variances' shares, not of the variances: a tiny one squared would round to 0.
        weights = [share / sum(shares) for share in shares]
        freedom = 1 / sum(w * w / (len(side) - 1) for w, side in zip(weights, (first, second), strict=True))
        half = float(stdtrit(freedom, 0.5 + level / 2)) * error
        p_value = 2 * float(stdtr(freedom, -abs(difference) / error))
    low, high = difference - half, difference + half
    verdict: Verdict = "faster" if low > 0 else "slower" if high < 0 else "can't tell"
    return PairedChange(
        math.exp(difference), math.exp(low), math.exp(high), verdict, f"{name}, {counts}", p_value
    )


def _logs(values: Sequence[float]) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not np.all(np.isfinite(data) & (data > 0)):
        raise ValueError("each side needs replicates, and they must be positive numbers")
    return np.log(data)
