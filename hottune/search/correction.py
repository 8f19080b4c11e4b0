"""Correction: what measured VRAM says about the memory model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hottune.outcomes import Engagement, Measurement, Outcome, OutOfMemory, Rejected
from hottune.placement import Placement

#: A placement that ran out of memory needed at least this share of the ceiling more than was predicted.
OOM_STEP = 0.01

#: Predicted VRAM of a placement, MiB.
NeedMib = Callable[[Placement], float]


@dataclass(frozen=True, order=True)
class Surprise:
    """How much more VRAM than predicted placements of one kind took."""

    hot: bool
    ubatch: int
    n_cpu_moe: int
    mib: float

    @property
    def kind(self) -> tuple[bool, int, int]:
        """What it is told of."""
        return self.hot, self.ubatch, self.n_cpu_moe


@dataclass(frozen=True)
class Correction:
    """What measured VRAM says about the memory model: measured - predicted, in MiB.

    Kept apart for placements with and without the hot-expert cache (the device has its own overhead on the
    GPU), by ubatch (the compute buffers grow with it) and by `n_cpu_moe`.
    """

    surprises: tuple[Surprise, ...] = ()

    @classmethod
    def learn(
        cls, history: Iterable[tuple[Placement, Outcome]], need_mib: NeedMib, ceiling_mib: float
    ) -> Correction:
        """Read the largest surprise of each kind from everything measured so far.

        `--fit` rows teach nothing: their placement is not ours; neither do reused servers and other engines.
        An out-of-memory placement is taken to have needed just over the ceiling, so neither it nor anything
        larger is planned again.
        """
        learnt = cls()
        for placement, outcome in history:
            learnt = learnt.after(placement, outcome, need_mib, ceiling_mib)
        return learnt

    def after(
        self, placement: Placement, outcome: Outcome, need_mib: NeedMib, ceiling_mib: float
    ) -> Correction:
        """Return what is known with one more outcome."""
        not_ours = placement.fit or bool(placement.engine)
        found = None if not_ours else _surprise_mib(placement, outcome, need_mib, ceiling_mib)
        if found is None:
            return self
        one = Surprise(placement.hot_k > 0, placement.ubatch, placement.n_cpu_moe, found)
        others = [known for known in self.surprises if known.kind != one.kind]
        same = [known for known in self.surprises if known.kind == one.kind]
        return Correction(tuple(sorted([*others, max([*same, one], key=lambda known: known.mib)])))

    def offset_mib(self, placement: Placement) -> float:
        """Return what to add to the memory model's answer for a placement.

        From the placements most like it: the same kind and `n_cpu_moe`; else, for a cache, the worst of other
        caches and of the same `n_cpu_moe` without one; else the worst of its ubatch; else the worst of all.
        """
        hot = placement.hot_k > 0
        alike = [one for one in self.surprises if one.ubatch == placement.ubatch]
        here = [one for one in alike if one.n_cpu_moe == placement.n_cpu_moe]
        same = [one.mib for one in here if one.hot == hot]
        near = [one.mib for one in alike if one.hot] + [one.mib for one in here] if hot else []
        kind = [one.mib for one in alike if not one.hot]
        return max(same or near or kind or [one.mib for one in self.surprises], default=0.0)


#: Before anything was measured.
NO_CORRECTION = Correction()


def _surprise_mib(
    placement: Placement, outcome: Outcome, need_mib: NeedMib, ceiling_mib: float
) -> float | None:
    """Return how much more VRAM a placement took than predicted, or None when it does not tell."""
    predicted = need_mib(placement)
    match outcome:
        case Measurement(reused_server=True):
            # It holds what CUDA took for the placements before, and may have got fewer places for that.
            return None
        case Measurement(engagement=Engagement(hot=hot)) if hot and hot.slots < placement.hot_k:
            # The device took fewer experts than asked for: one more than it took would not have fitted.
            one_more = placement.model_copy(update={"hot_k": hot.slots + 1})
            return max(ceiling_mib + 1 - need_mib(one_more), outcome.vram_peak_mib - predicted)
        case Measurement():
            return outcome.vram_peak_mib - predicted
        case Rejected(vram_peak_mib=peak) if peak is not None:
            return peak - predicted
        case OutOfMemory():
            return max(ceiling_mib, predicted) + OOM_STEP * ceiling_mib - predicted
    return None
