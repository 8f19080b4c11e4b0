"""Space: every placement that the memory model allows under the VRAM ceiling, and how to choose among them.

The ceiling is a hard constraint, not a penalty: placements that do not fit are never started. The memory
model is corrected by what was measured (`Correction`), so the bounds get truer as a study goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hottune.errors import CeilingTooSmallError
from hottune.models.shape import MoeShape
from hottune.outcomes import Outcome
from hottune.placement import INTERVAL_POLICIES, STREAM_FROM, Placement, Policy
from hottune.search.correction import NO_CORRECTION, Correction, NeedMib
from hottune.units import mib

INTERVALS = (8, 512)
DEFAULT_INTERVAL = 60
#: Policies worth searching; "static" wants a profile.
POLICIES: tuple[Policy, ...] = ("lfru", "window", "lru")
#: Share of the room for the cache that the sampler uses: below, a cache would waste VRAM that is free.
CACHE_SHARE = (0.8, 1.0)


class Foresee(Protocol):
    """The cost model: what a placement is expected to be worth by the objective, more is better."""

    @property
    def trusted(self) -> bool:
        """Whether measurements bear it out so far that a placement may be left out for what it says."""

    def __call__(self, placement: Placement) -> float:
        """Return the expected worth; only ratios count."""

    def learnt(self, history: Iterable[tuple[Placement, Outcome]]) -> Foresee | None:
        """Return the model corrected by what was measured; None when nothing tells yet."""


class Suggest(Protocol):
    """The part of `optuna.Trial` that the space needs to draw a placement."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Draw an integer."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """Draw a float."""

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        """Draw one of the choices."""


@dataclass(frozen=True)
class Space:
    """The placements to choose from.

    `base` holds every setting that all arms share (context, load mode, KV types, batch), with all experts on
    the CPU. `threads` are the numbers of CPU threads worth trying, most first; that of `base` is the first
    choice.
    `foresee` is the cost model as the study began with it, `calibrated` what measurements made of it.
    """

    shape: MoeShape
    base: Placement
    ceiling_mib: float
    ubatches: tuple[int, ...]
    bypasses: tuple[int, ...]
    need_mib: NeedMib = field(repr=False)
    threads: tuple[int, ...] = ()
    foresee: Foresee | None = field(default=None, repr=False)
    calibrated: Foresee | None = field(default=None, repr=False)
    correction: Correction = NO_CORRECTION
    #: Answers of `max_hot_k`, which every draw asks for many times.
    _rooms: dict[tuple[int, int], int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def corrected(self, history: Iterable[tuple[Placement, Outcome]]) -> Space:
        """Return the space with bounds and cost model corrected by what was measured."""
        known = list(history)
        return replace(
            self,
            correction=Correction.learn(known, self.need_mib, self.ceiling_mib),
            calibrated=self.foresee.learnt(known) if self.foresee else None,
        )

    def predicted_mib(self, placement: Placement) -> float:
        """Return the VRAM that the placement is expected to take at its peak."""
        return self.need_mib(placement) + self.correction.offset_mib(placement)

    def fits(self, placement: Placement) -> bool:
        """Tell whether the placement is expected to stay under the ceiling (`--fit` always does)."""
        return placement.fit or self.predicted_mib(placement) <= self.ceiling_mib

    # --- baselines ---

    def all_cpu(self, ubatch: int, threads: int | None = None) -> Placement:
        """Return the placement with every expert in host memory."""
        return self._plain(self.shape.n_layers, ubatch, threads)

    def fit(self, ubatch: int, threads: int | None = None) -> Placement:
        """Return the placement that leaves everything to llama.cpp's `--fit`."""
        return self._plain(self.shape.n_layers, ubatch, threads).model_copy(update={"fit": True})

    def layers(self, n_cpu_moe: int, ubatch: int, threads: int | None = None) -> Placement:
        """Return layer offload: the experts of the first `n_cpu_moe` layers in RAM, the rest in VRAM."""
        return self._plain(n_cpu_moe, ubatch, threads)

    def fewest_cpu_layers(self, ubatch: int) -> int:
        """Return the smallest `n_cpu_moe` of layer offload that fits; `n_layers` when no layer does."""
        fits = (n for n in range(self.shape.n_layers) if self.fits(self._plain(n, ubatch)))
        fewest = next(fits, self.shape.n_layers)
        return fewest if any(self.shape.layer_expert_bytes[fewest:]) else self.shape.n_layers

    def layer_mib(self, layer: int) -> float:
        """Return the size of all routed experts of one layer."""
        return mib(self.shape.layer_expert_bytes[layer])

    # --- hot placements ---

    def max_hot_k(self, n_cpu_moe: int, ubatch: int) -> int:
        """Return the most experts of a layer that the cache can hold beside everything else; 0 = none."""
        if (n_cpu_moe, ubatch) not in self._rooms:
            self._rooms[n_cpu_moe, ubatch] = self._max_hot_k(n_cpu_moe, ubatch)
        return self._rooms[n_cpu_moe, ubatch]

    def _max_hot_k(self, n_cpu_moe: int, ubatch: int) -> int:
        if not any(self.shape.layer_expert_bytes[:n_cpu_moe]):
            return 0
        low, high = 0, self.shape.n_experts
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(self._hot(n_cpu_moe, middle, ubatch)):
                low = middle
            else:
                high = middle - 1
        return low

    def min_n_cpu_moe(self, ubatch: int) -> int | None:
        """Return the fewest layers on the CPU that leave room for a cache of one expert, or None."""
        return next((n for n in range(1, self.shape.n_layers + 1) if self.max_hot_k(n, ubatch) > 0), None)

    def hot(
        self,
        n_cpu_moe: int,
        ubatch: int,
        *,
        share: float = 1.0,
        threads: int | None = None,
        interval: int = DEFAULT_INTERVAL,
        bypass: int | None = None,
        policy: Policy = "lfru",
        shared: bool = False,
    ) -> Placement | None:
        """Return the placement whose cache takes `share` of the room that is left, or None without room."""
        room = self.max_hot_k(n_cpu_moe, ubatch)
        if room == 0:
            return None
        cached = self._hot(n_cpu_moe, max(1, round(share * room)), ubatch)
        return cached.model_copy(
            update={
                "threads": threads or self.base.threads,
                "rebalance_interval": interval,
                "prefill_bypass": bypass or self.bypasses[0],
                "policy": policy,
                "shared_budget": shared,
            }
        )

    def mixed(self, layer_share: float, ubatch: int) -> int:
        """Return the n_cpu_moe that spends `layer_share` of the room for experts on whole layers."""
        moved = self.shape.n_layers - self.fewest_cpu_layers(ubatch)
        return self.shape.n_layers - round(layer_share * moved)

    def fullest(self, n_cpu_moe: int, ubatch: int) -> int:
        """Return the fewest layers on the CPU that leave room for as large a cache: no VRAM stays unused.

        A cache grows by an expert of every layer at once, so what is left over may hold a whole layer.
        """
        room = self.max_hot_k(n_cpu_moe, ubatch)
        while n_cpu_moe > 1 and room > 0 and self.max_hot_k(n_cpu_moe - 1, ubatch) >= room:
            n_cpu_moe -= 1
        return n_cpu_moe

    def sample(self, draw: Suggest) -> Placement | None:
        """Draw a hot placement that fits, or None when the drawn ubatch leaves no room for a cache."""
        ubatch = draw.suggest_categorical("ubatch", self.ubatches)
        fewest = self.min_n_cpu_moe(ubatch)
        if fewest is None:
            return None
        n_cpu_moe = draw.suggest_int("n_cpu_moe", fewest, self.shape.n_layers)
        share = draw.suggest_float("cache_share", *CACHE_SHARE)
        threads = draw.suggest_categorical("threads", self.threads) if self.threads else self.base.threads
        shared = draw.suggest_categorical("shared_budget", (False, True))
        policy = draw.suggest_categorical("policy", POLICIES)
        interval = DEFAULT_INTERVAL  # it means something to some policies only
        if policy in INTERVAL_POLICIES:
            interval = draw.suggest_int("rebalance_interval", *INTERVALS, log=True)
        bypass = draw.suggest_categorical("prefill_bypass", self.bypasses)
        return self.hot(
            n_cpu_moe,
            ubatch,
            share=share,
            threads=threads,
            interval=interval,
            bypass=bypass,
            policy=policy,
            shared=shared,
        )

    def parameters(self, placement: Placement) -> dict[str, int | float | str]:
        """Return what `sample` would have drawn for a hot placement; empty for any other."""
        room = self.max_hot_k(placement.n_cpu_moe, placement.ubatch)
        if placement.fit or placement.hot_k == 0 or room == 0:
            return {}
        low, high = CACHE_SHARE
        drawn: dict[str, int | float | str] = {
            "ubatch": placement.ubatch,
            "n_cpu_moe": placement.n_cpu_moe,
            "cache_share": min(high, max(low, placement.hot_k / room)),
            "policy": placement.policy,
            "prefill_bypass": placement.prefill_bypass,
            "shared_budget": placement.shared_budget,
        }
        if self.threads:
            drawn["threads"] = placement.threads
        if placement.policy in INTERVAL_POLICIES:
            drawn["rebalance_interval"] = placement.rebalance_interval
        return drawn

    def _plain(self, n_cpu_moe: int, ubatch: int, threads: int | None = None) -> Placement:
        changes = {"n_cpu_moe": n_cpu_moe, "ubatch": ubatch, "threads": threads or self.base.threads}
        return self.base.model_copy(update=changes)

    def _hot(self, n_cpu_moe: int, hot_k: int, ubatch: int) -> Placement:
        changes = {"hot_k": hot_k, "stream_from": STREAM_FROM}
        return self._plain(n_cpu_moe, ubatch).model_copy(update=changes)


def plan(
    shape: MoeShape,
    base: Placement,
    ceiling_mib: float,
    *,
    ubatches: tuple[int, ...],
    bypasses: tuple[int, ...] = (1,),
    threads: tuple[int, ...] = (),
    need_mib: NeedMib | None = None,
    foresee: Foresee | None = None,
) -> Space:
    """Make the space of a model under a ceiling.

    Args:
        shape: counts and bytes of the model.
        base: settings shared by all arms; its `n_cpu_moe`, `hot_k` and `ubatch` do not matter.
        ceiling_mib: VRAM that a server may use.
        ubatches: physical batch sizes to try; those that cannot fit are dropped.
        bypasses: largest batches, in tokens, that may go through the cache.
        threads: numbers of CPU threads to try, most first; () = those of `base` alone.
        need_mib: predicted VRAM of a placement; by default the memory model of the `models` room.
        foresee: the cost model; None = the search begins without an idea.

    Raises:
        CeilingTooSmallError: the model's dense part, KV cache and buffers alone do not fit.
    """
    if need_mib is None:
        from hottune.models.memory import estimate

        def need_mib(placement: Placement) -> float:
            return estimate(shape, placement).vram_mib

    clean = base.model_copy(update={"n_cpu_moe": shape.n_layers, "hot_k": 0, "fit": False})
    whole = Space(
        shape,
        clean,
        ceiling_mib,
        tuple(dict.fromkeys(ubatches)),
        bypasses,
        need_mib,
        threads=tuple(sorted({*threads, base.threads}, reverse=True)) if threads else (),
        foresee=foresee,
    )
    fitting = tuple(ubatch for ubatch in whole.ubatches if whole.fits(whole.all_cpu(ubatch)))
    if not fitting:
        least = min(whole.predicted_mib(whole.all_cpu(ubatch)) for ubatch in whole.ubatches)
        raise CeilingTooSmallError(
            f"A VRAM ceiling of {ceiling_mib:.0f} MiB cannot hold this model, even with every expert in RAM.",
            f"Attention, KV cache ({clean.context} tokens) and buffers alone need about {least:.0f} MiB.",
            "Raise --vram, or lower --context or --ubatch.",
        )
    return replace(whole, ubatches=fitting)
