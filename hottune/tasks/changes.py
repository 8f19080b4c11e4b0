"""Changes of speed between arms, as the result file has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hottune.outcomes import Measurement
from hottune.report.schema import METRICS, Arm, ArmName, Change, Metric
from hottune.search.baselines import BASELINES
from hottune.search.confirm import HOT_ARMS
from hottune.stats import Contest, PairedChange, paired_change
from hottune.workload.summary import same_text


def as_change(found: PairedChange) -> Change:
    """Return a change as the result file has it."""
    return Change.model_validate(vars(found))


def compared(
    arms: list[Arm],
    contests: Mapping[Metric, Contest],
    best: str | None,
    measured: Mapping[ArmName, list[Measurement]],
    engines: Sequence[ArmName] = (),
) -> list[Arm]:
    """Add the arms' changes against every measured baseline, and whether their text is the all-cpu arm's.

    The changes of candidates against other engines stand beside those against baselines. The text of another
    engine is not compared: its kernels round otherwise, and its stream may tell no token ids.

    Verdicts of the search's candidates are by Holm's method over all of them and all baselines, for each of
    the three speeds by itself; baselines are compared with each other one by one.
    """
    adjusted = {metric: one.verdicts() for metric, one in contests.items()}
    rows = []
    for arm in arms:
        ratios: dict[ArmName, dict[Metric, Change]] = {}
        is_candidate = arm.name in HOT_ARMS
        for base in (*BASELINES, *(engines if is_candidate else ())):
            if arm.name == base or not {arm.name, base} <= measured.keys():
                continue
            found: dict[Metric, PairedChange | None] = {
                metric: adjusted[metric].get((arm.name, base)) or contests[metric].change(arm.name, base)
                for metric in METRICS
            }
            changes = {metric: as_change(one) for metric, one in found.items() if one is not None}
            ratios |= {base: changes} if changes else {}
        update: dict[str, object] = {"ratios": ratios}
        for base in ratios:
            if base == best:
                update |= {"versus_arm": base}
                update |= {f"versus_{metric}": one for metric, one in ratios[base].items()}
        if "all-cpu" in measured and arm.name in measured and not arm.placement.engine:
            first = measured["all-cpu"][0].requests
            update["text_equal"] = all(same_text(one.requests, first) for one in measured[arm.name])
        rows.append(arm.model_copy(update=update))
    return rows


def paired_replicates(arm: Arm, base: Arm) -> list[tuple[Measurement, Measurement]]:
    """Pair the n-th replicates of two arms: each arm is measured once a round, so they share a round."""
    both = zip(arm.replicates, base.replicates, strict=False)
    return [
        (one.outcome, other.outcome)
        for one, other in both
        if isinstance(one.outcome, Measurement) and isinstance(other.outcome, Measurement)
    ]


def change_of(
    pairs: list[tuple[Measurement, Measurement]],
    read: Callable[[Measurement], float],
    higher_is_better: bool,
) -> Change:
    """Return the change that paired replicates show in what `read` reads, with its interval and verdict."""
    return as_change(
        paired_change(
            [read(one) for one, _ in pairs],
            [read(other) for _, other in pairs],
            higher_is_better=higher_is_better,
        )
    )
