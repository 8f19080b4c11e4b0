"""Values that do not belong to the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Iglewicz and Hoaglin's recommended limit for the modified z-score.
OUTLIER_LIMIT = 3.5

#: Fewest values of which one can be called an outlier: of fewer, any may be what the rest is far from.
LEAST_VALUES = 5

#: Smallest relative excess of the first run that is worth a warning.
FIRST_RUN_EXCESS = 0.03


def modified_z_scores(values: Sequence[float]) -> list[float]:
    """Return each value's modified z-score: 0.6745 (x - median) / MAD.

    Iglewicz and Hoaglin (1993), "How to Detect and Handle Outliers", ASQC Quality Press. 0.6745
    is the third quartile of the normal distribution. Where more than half of the values are equal, the MAD
    is 0 and the mean absolute deviation stands in, times 1.2533 (the square root of pi/2).
    """
    if not len(values):
        return []
    data = np.asarray(values, dtype=np.float64)
    distance = data - np.median(data)
    mad = float(np.median(np.abs(distance)))
    scale = mad / 0.6745 if mad else float(np.mean(np.abs(distance))) * float(np.sqrt(np.pi / 2))
    if scale == 0:
        return [0.0] * len(data)
    return [float(score) for score in distance / scale]


def outliers(values: Sequence[float], limit: float = OUTLIER_LIMIT) -> list[int]:
    """Return the positions of the values whose modified z-score is beyond `limit`, on either side.

    None of fewer than `LEAST_VALUES`.
    """
    if len(values) < LEAST_VALUES:
        return []
    return [index for index, score in enumerate(modified_z_scores(values)) if abs(score) > limit]


def first_run_slower(seconds: Sequence[float]) -> float | None:
    """Return by what share the first of at least 3 runs took longer than the median of the others, or None.

    None unless the first is an outlier among all and the excess is at least 3 %: caches that were cold.
    """
    if len(seconds) < 3:
        return None
    excess = seconds[0] / float(np.median(np.asarray(seconds[1:], dtype=np.float64))) - 1
    if excess < FIRST_RUN_EXCESS or modified_z_scores(seconds)[0] <= OUTLIER_LIMIT:
        return None
    return excess
