"""What a study optimises: measured numbers, never a weighted sum of several; and limits it must keep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from hottune.outcomes import Measurement


class Objective(StrEnum):
    """`TURN`: wall-clock of a warm request (s). `DECODE`, `PREFILL`: speed of one phase (tok/s).

    `PARETO`: both speeds at once; all placements that no other beats in both are kept (the Pareto front), and
    among them the shortest turn is recommended.
    """

    TURN = "turn"
    DECODE = "decode"
    PREFILL = "prefill"
    PARETO = "pareto"

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Which way is better for each value, in Optuna's words."""
        if self is Objective.PARETO:
            return ["maximize", "maximize"]
        return ["minimize" if self is Objective.TURN else "maximize"]

    @property
    def names(self) -> list[str]:
        """What each value is, with its unit: fields of `Measurement`."""
        match self:
            case Objective.TURN:
                return ["turn_s"]
            case Objective.DECODE:
                return ["decode_tok_s"]
            case Objective.PREFILL:
                return ["prefill_tok_s"]
            case Objective.PARETO:
                return ["prefill_tok_s", "decode_tok_s"]

    def values(self, measurement: Measurement) -> list[float]:
        """Return the numbers that are optimised."""
        return [float(getattr(measurement, name)) for name in self.names]

    def measured(self, measurement: Measurement) -> float:
        """Return the number that decides what is recommended: of a front, the turn (see `metric`)."""
        return measurement.turn_s if self is Objective.PARETO else self.values(measurement)[0]

    def cost(self, measurement: Measurement) -> float:
        """Return a number to sort by: lower is better for every objective."""
        value = self.measured(measurement)
        return value if self.metric == "turn" else -value

    @property
    def metric(self) -> Literal["turn", "decode", "prefill"]:
        """Return which change decides what is recommended; of a front, the turn does."""
        if self is Objective.DECODE:
            return "decode"
        return "prefill" if self is Objective.PREFILL else "turn"

    def describe(self, workload: str) -> str:
        """Return the report's wording, for example `turn_s (document)`."""
        return f"{' and '.join(self.names)} ({workload})"


@dataclass(frozen=True)
class Limits:
    """What a placement must keep to be recommended, beside the VRAM ceiling.

    Args:
        min_prefill_tok_s: least prefill speed; None = any.
        ceiling_mib: of VRAM; None = not looked at again (a peak above it is no measurement anyway).
        headroom_mib: VRAM that must stay free below the ceiling at the peak.
    """

    min_prefill_tok_s: float | None = None
    ceiling_mib: float | None = None
    headroom_mib: float = 0.0

    def violations(self, measurement: Measurement) -> dict[str, float]:
        """Return how far each limit is missed, relative to it; 0 or less is kept (Optuna's convention)."""
        found = {}
        if self.min_prefill_tok_s is not None:
            found["prefill"] = 1 - measurement.prefill_tok_s / self.min_prefill_tok_s
        if self.ceiling_mib is not None and self.headroom_mib > 0:
            found["headroom"] = (measurement.vram_peak_mib + self.headroom_mib) / self.ceiling_mib - 1
        return found

    def kept(self, measurement: Measurement) -> bool:
        """Tell whether a measurement keeps every limit."""
        return all(violation <= 0 for violation in self.violations(measurement).values())


NO_LIMITS = Limits()


def front(measurements: list[Measurement]) -> list[int]:
    """Return the indices of the Pareto front of prefill and decode speed: those that no other beats in both.

    Ties stay in: of two with equal speeds, both are on the front.
    """

    def beaten(one: Measurement) -> bool:
        return any(
            other.prefill_tok_s >= one.prefill_tok_s
            and other.decode_tok_s >= one.decode_tok_s
            and (other.prefill_tok_s > one.prefill_tok_s or other.decode_tok_s > one.decode_tok_s)
            for other in measurements
        )

    return [index for index, one in enumerate(measurements) if not beaten(one)]
