"""The order in which replicates are measured."""

from __future__ import annotations

from collections.abc import Sequence


def interleaved(names: Sequence[str], rounds: int) -> list[str]:
    """Return every name once a round, forward and backward in turn: A B, B A, A B, ...

    Over an even number of rounds all names have the same mean position, so a linear drift of the machine
    touches all alike (the ABBA order; Cox 1951, "Some systematic experimental designs", Biometrika 38).

    Raises:
        ValueError: a name occurs twice (its replicates could not be paired), or `rounds` is negative.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"names must differ: {', '.join(names)}")
    if rounds < 0:
        raise ValueError(f"there cannot be {rounds} rounds")
    order: list[str] = []
    for index in range(rounds):
        order += names if index % 2 == 0 else reversed(names)
    return order
