"""How many rounds the confirm stage takes; a file of its own, for options are read without Optuna."""

from __future__ import annotations

from dataclasses import dataclass

#: Rounds at most, when no number was asked for.
MOST_ROUNDS = 8


@dataclass(frozen=True)
class Rounds:
    """Fresh servers of each arm.

    Args:
        most: rounds at most.
        precise: stop before that when every deciding interval is within ±3 %.
    """

    most: int
    precise: bool = False
