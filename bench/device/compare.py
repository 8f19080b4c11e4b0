"""Every row against the best static one under the same ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hottune.outcomes import Measurement
from hottune.report.schema import Against, Arm, ArmName
from hottune.tasks.changes import change_of, paired_replicates

STATIC: tuple[ArmName, ...] = ("all-cpu", "layers", "fit")

Read = Callable[[Arm | Measurement], float]


def decode(one: Arm | Measurement) -> float:
    """Return the decode speed, tok/s."""
    return one.decode_tok_s or 0.0


def prefill(one: Arm | Measurement) -> float:
    """Return the prefill speed, tok/s."""
    return one.prefill_tok_s or 0.0


def compared(arms: Sequence[Arm]) -> list[Arm]:
    """Return the rows with their changes against the best static row; a static row may be compared, too.

    Rows with another number of threads are compared among themselves.
    """
    return [_compared(arm, [one for one in arms if _comparable(one, arm)]) for arm in arms]


def best(arms: Iterable[Arm], read: Read) -> Arm | None:
    """Return the fastest row that was measured."""
    return max((arm for arm in arms if arm.outcome == "measurement"), key=read, default=None)


def _comparable(static: Arm, arm: Arm) -> bool:
    """Tell whether a static row stands under the ceiling of another; all-cpu does under any."""
    assert static.cell is not None
    assert arm.cell is not None
    same = static.cell.ceiling_percent in (None, arm.cell.ceiling_percent)
    return same and static.name in STATIC and static.placement.threads == arm.placement.threads


def _compared(arm: Arm, static: list[Arm]) -> Arm:
    if arm.outcome != "measurement" or arm.cell is None or arm.cell.ceiling_percent is None:
        return arm
    same_ubatch = [one for one in static if one.placement.ubatch == arm.placement.ubatch]
    cell = arm.cell.model_copy(
        update={
            "decode": _against(arm, best(static, decode), decode),
            "prefill": _against(arm, best(static, prefill), prefill),
            "prefill_same_ubatch": _against(arm, best(same_ubatch, prefill), prefill),
        }
    )
    return arm.model_copy(update={"cell": cell})


def _against(arm: Arm, other: Arm | None, read: Read) -> Against | None:
    """Compare the n-th replicates of two rows: each is measured once a round."""
    if other is None or other is arm:
        return None
    pairs = paired_replicates(arm, other)
    if not pairs:
        return None
    change = change_of(pairs, read, higher_is_better=True)
    return Against(arm=other.name, ubatch=other.placement.ubatch, change=change)
