"""Relative changes between two arrangements, from paired replicates: interval, test and verdict.

Replicate i of both arms is taken in the same round of an interleaved order, so what drifts from round to
round (clocks, temperature, other load) is common to the pair and cancels in its ratio. Speeds are positive
and their noise is relative, so everything is computed on log-ratios and turned back at the end.

A verdict needs enough replicates to be able to come out: with fewer it is "can't tell", whatever the ratio.
The t interval needs 2 pairs (and is then very wide: 12.7 standard errors at 95 %). The exact test needs
`smallest_permutation_n(0.95) == 6` pairs: with 5 its smallest two-sided p-value is 2/32 = 0.0625.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

Verdict = Literal["faster", "slower", "can't tell"]
Method = Literal["t", "permutation"]

#: Most pairs for which all sign patterns are enumerated (2**16 of them).
MAX_PERMUTATION_N = 16

#: Digits of a log-ratio that count; what lies below is rounding of the division.
_DIGITS = 12


@dataclass(frozen=True)
class PairedChange:
    """A relative change with its interval. Above 1 means that the first arm is faster."""

    ratio: float
    low: float | None  # None: too few pairs for an interval (JSON has no infinity)
    high: float | None
    verdict: Verdict
    method: str
    p_value: float | None = None  # two-sided; None: too few pairs for a test


def paired_change(
    a: Sequence[float],
    b: Sequence[float],
    *,
    level: float = 0.95,
    higher_is_better: bool = True,
    method: Method = "t",
) -> PairedChange:
    """Compare arm `a` with arm `b`, replicate by replicate.

    Args:
        a: one positive number a replicate (tok/s, seconds) of the arm in question.
        b: the same of the arm it is compared with; `b[i]` is of the same round as `a[i]`.
        level: confidence level of the interval.
        higher_is_better: True for speeds (ratio a/b); False for durations (ratio b/a), so that a ratio
            above 1 always says that `a` is faster.
        method: `t` (Student 1908, on the paired log-ratios) or `permutation`: the exact sign-flip test
            (Fisher 1935, The Design of Experiments, section 21) with the interval of Hartigan (1969),
            "Using subsample values as typical values", J. Am. Stat. Assoc. 64, 1303-1317.

    Raises:
        ValueError: different lengths, no pairs, a value that is not positive, a level outside ]0, 1[, or too
            many pairs for the exact test.
    """
    logs = _log_ratios(a, b, higher_is_better)
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {level}")
    n = len(logs)
    needed = 2 if method == "t" else smallest_permutation_n(level)
    name = "t on paired log-ratios" if method == "t" else "exact sign-flip on paired log-ratios"
    name += "" if level == 0.95 else f" at {100 * level:.4g} %"
    ratio = math.exp(float(np.mean(logs)))
    if n < needed:
        return PairedChange(ratio, None, None, "can't tell", f"{name} needs n>={needed}, n={n}")
    low, high, p_value = student_t(logs, level) if method == "t" else _permutation(logs, level)
    verdict: Verdict = "faster" if low > 0 else "slower" if high < 0 else "can't tell"
    return PairedChange(ratio, math.exp(low), math.exp(high), verdict, f"{name}, n={n}", p_value)


def smallest_permutation_n(level: float = 0.95) -> int:
    """Return the fewest pairs with which the exact sign-flip test can reject at `level`.

    The most extreme of the 2**n sign patterns and its mirror have a share of 2/2**n; this must not be above
    1 - level. For 95 % that is 6 pairs, for 90 % 5, for 99 % 8.
    """
    return math.ceil(1 - math.log2(1 - level) - 1e-9)


def precise_enough(change: PairedChange, within: float = 0.03) -> bool:
    """Tell whether the interval is at most ±`within` (relative) wide: then no more replicates are needed."""
    if change.low is None or change.high is None:
        return False
    return change.high / change.ratio <= 1 + within and change.low / change.ratio >= 1 - within


def _log_ratios(a: Sequence[float], b: Sequence[float], higher_is_better: bool) -> NDArray[np.float64]:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"replicates must come in pairs, not {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.concatenate([first, second])
    if not np.all(np.isfinite(both) & (both > 0)):
        raise ValueError("replicates must be positive numbers")
    logs = np.log(first) - np.log(second)
    return np.round(logs if higher_is_better else -logs, _DIGITS)


def student_t(logs: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """Return low, high (log scale) and the p-value of Student's one-sample t on the log-ratios."""
    n = len(logs)
    mean = float(np.mean(logs))
    error = float(np.std(logs, ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * error
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    return mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean) / error))


def _permutation(logs: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """Return low, high (log scale) and the p-value of the exact sign-flip test.

    Under "no difference" each log-ratio is as likely to have the other sign. Hartigan's theorem: the means
    of the 2**n - 1 non-empty subsets cut the line into 2**n pieces, and the centre of symmetry lies in each
    with the same probability; leaving out k pieces on either side gives coverage 1 - 2k/2**n >= level.
    """
    n = len(logs)
    if n > MAX_PERMUTATION_N:
        raise ValueError(f"the exact test enumerates 2**n patterns; {n} pairs are too many")
    patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    sums = np.abs((2 * patterns - 1) @ logs)
    observed = abs(float(np.sum(logs)))
    p_value = float(np.mean(sums >= observed - 10.0**-_DIGITS))
    subsets = patterns[1:]
    means = np.sort(subsets @ logs / subsets.sum(axis=1))
    k = max(1, math.floor((1 - level) / 2 * 2**n + 1e-9))
    return float(means[k - 1]), float(means[-k]), p_value
