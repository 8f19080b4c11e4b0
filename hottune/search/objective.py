"""What a study optimises: one measured number, never a weighted sum of several."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from hottune.outcomes import Measurement


class Objective(StrEnum):
    """`TURN`: wall-clock of a warm request (s). `DECODE`, `PREFILL`: speed of one phase (tok/s)."""

    TURN = "turn"
    DECODE = "decode"
    PREFILL = "prefill"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Which way is better, in Optuna's words."""
        return "minimize" if self is Objective.TURN else "maximize"

    def measured(self, measurement: Measurement) -> float:
        """Return the number that is optimised."""
        match self:
            case Objective.TURN:
                return measurement.turn_s
            case Objective.DECODE:
                return measurement.decode_tok_s
            case Objective.PREFILL:
                return measurement.prefill_tok_s

    def cost(self, measurement: Measurement) -> float:
        """Return a number to sort by: lower is better for every objective."""
        value = self.measured(measurement)
        return value if self is Objective.TURN else -value

    def describe(self, workload: str) -> str:
        """Return the report's wording, for example `turn_s (document)`."""
        field = {"turn": "turn_s", "decode": "decode_tok_s", "prefill": "prefill_tok_s"}[self]
        return f"{field} ({workload})"
