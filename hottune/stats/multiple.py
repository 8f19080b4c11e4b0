"""Several comparisons at once: the more arms are compared, the more often one looks better by luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hottune.stats.intervals import PairedChange


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm's step-down method, in the given order.

    Rejecting where an adjusted value is at most alpha keeps the chance of any false rejection among all of
    them at most alpha, whatever their dependence. Holm (1979), "A simple sequentially rejective multiple
    test procedure", Scandinavian Journal of Statistics 6, 65-70.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("p-values lie between 0 and 1")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def holm_changes(changes: Sequence[PairedChange], *, level: float = 0.95) -> list[PairedChange]:
    """Return the changes with adjusted p-values; a verdict that does not survive becomes "can't tell".

    The intervals stay those of each comparison alone, so one may exclude 1 although the verdict says "can't
    tell"; the method says how many comparisons there were. A change without a test counts as one of them.
    """
    if len(changes) < 2:
        return list(changes)
    adjusted = holm([1.0 if change.p_value is None else change.p_value for change in changes])
    result = []
    for change, p_value in zip(changes, adjusted, strict=True):
        survives = p_value <= 1 - level
        result.append(
            replace(
                change,
                p_value=None if change.p_value is None else p_value,
                verdict=change.verdict if survives else "can't tell",
                method=f"{change.method}, verdict by Holm over {len(changes)}",
            )
        )
    return result
