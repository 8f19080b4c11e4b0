"""Which arms keep the limits of a study (`--min-prefill`, `--keep-free`), by their confirmed replicates."""

from __future__ import annotations

from collections.abc import Mapping

from hottune.outcomes import Measurement
from hottune.report.schema import ArmName, Replicate
from hottune.search.objective import Limits
from hottune.stats import NoteCode, note

Replicates = Mapping[ArmName, list[Replicate]]


def broken_by(replicates: list[Replicate], limits: Limits) -> list[str]:
    """Say which limits an arm breaks in any of its replicates, with its worst number; empty = none."""
    found = [one.outcome for one in replicates if isinstance(one.outcome, Measurement)]
    broken = {name for one in found for name, miss in limits.violations(one).items() if miss > 0}
    said = []
    if "prefill" in broken:
        least = min(one.prefill_tok_s for one in found)
        said.append(f"prefill {least:.0f} tok/s, at least {limits.min_prefill_tok_s:.0f} asked for")
    if "headroom" in broken:
        free = (limits.ceiling_mib or 0.0) - max(one.vram_peak_mib for one in found)
        said.append(f"{free:.0f} MiB of VRAM free, {limits.headroom_mib:.0f} asked for")
    return said


def eligible(replicates: Replicates, limits: Limits) -> Replicates:
    """Return the arms that may be recommended: those that keep every limit, or all when none does."""
    kept = {arm: found for arm, found in replicates.items() if not broken_by(found, limits)}
    return kept or replicates


def limit_notes(replicates: Replicates, limits: Limits) -> list[tuple[str, str]]:
    """Return a warning for each arm that breaks a limit."""
    broken = {arm: said for arm, found in replicates.items() if (said := broken_by(found, limits))}
    none_left = len(broken) == len(replicates)
    effect = "No arm keeps the limits, so none is left out" if none_left else "It is not recommended"
    return [
        note(NoteCode.LIMIT_BROKEN, arm=arm, what="; ".join(said), effect=effect)
        for arm, said in broken.items()
    ]
