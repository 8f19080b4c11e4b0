"""How fast a placement could decode at most, with the hit rates that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from statistics import fmean

from hottune.models.shape import MoeShape
from hottune.outcomes import HotStats, Measurement
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths, TokenLoad, predict
from hottune.routing.published import independent_misses
from hottune.tasks.foresight import layer_loads
from hottune.workload.facts import Workload


def decode_bound(
    shape: MoeShape,
    placement: Placement,
    found: Sequence[Measurement],
    workload: Workload,
    machine: Bandwidths | None,
) -> float | None:
    """Return the most tokens a second that bytes and bandwidths allow (hottune/routing/bound.py).

    None without measured bandwidths, for `--fit` (which tensors it moved is not followed), and with drafts
    (a batch of several tokens shares its experts).

    Args:
        shape: of the model.
        placement: what was measured.
        found: its replicates; the first one's hit rates count.
        workload: for the length of the KV cache.
        machine: bandwidths.
    """
    if machine is None or placement.fit or placement.spec_type != "none":
        return None
    lengths = [one.prompt_tokens + one.output_tokens / 2 for one in workload.requests]
    load = token_load(shape, placement, found[0].engagement.hot, kv_tokens=round(fmean(lengths)))
    return predict(load, machine).tokens_per_second


def token_load(shape: MoeShape, placement: Placement, hot: HotStats | None, *, kv_tokens: int) -> TokenLoad:
    """Return what a token needs; misses within a layer are taken as independent of each other."""
    rates = chain(hot.layer_hit_rate if hot else (), repeat(hot.hit_rate if hot else 0.0))
    misses = (independent_misses(shape.n_used, rate) for rate in rates)
    tokens = (hot.hits + hot.misses) / max(1, hot.layers * shape.n_used) if hot else 0.0
    return TokenLoad(
        dense_bytes=shape.dense_bytes,
        kv_bytes=shape.kv_bytes(kv_tokens, placement.kv_type_k, placement.kv_type_v),
        layers=layer_loads(shape, placement.n_cpu_moe, misses),
        uploaded_bytes=hot.uploaded_bytes / tokens if hot and tokens else 0.0,
    )
