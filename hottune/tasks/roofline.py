"""How fast a placement could decode at most on this machine, with the hit rates that were measured.

The bound is that of hottune/routing/bound.py, with the machine's measured bandwidths (`hottune machine`) and
nothing else: no constants for what kernels waste, so the share reached says what is left to gain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, repeat
from statistics import fmean

from hottune.engine.fitlog import OVERFLOW
from hottune.machine.bandwidth import bandwidths
from hottune.models.shape import MoeShape
from hottune.outcomes import FitPlacement, HotStats, Measurement
from hottune.placement import Placement
from hottune.progress import Progress
from hottune.report.schema import Arm, Roofline
from hottune.routing.bound import Bandwidths, LayerLoad, TokenLoad, predict
from hottune.routing.published import independent_misses
from hottune.search.journal import Journal
from hottune.tasks.foresight import layer_loads, machine_bandwidths
from hottune.tasks.prepare import Plan
from hottune.workload.facts import Workload

VIRTUAL = "a virtual GPU computes on the CPU and has no bandwidths of its own"
#: Share of a layer's expert bytes that each of fit's patterns leaves in RAM: up, gate and down are equal.
_SHARE_IN_RAM = {"": 1.0, "ATTN": 1.0, "UP": 2 / 3, "GATE": 1 / 3}
_OVERRIDE = re.compile(r"blk\\\.(\d+)\\\.(.*)=CPU")


def noted_roofline(plan: Plan, journal: Journal, ui: Progress) -> Roofline:
    """Return the machine's bandwidths, measured once in a study (and kept for the machine).

    Measuring takes about ten seconds, before the first server. On a virtual GPU there is nothing to measure.
    """
    noted = journal.noted("roofline")
    if noted is not None:
        return Roofline.model_validate(noted)
    if plan.gpu.virtual:
        roofline = Roofline(reason=VIRTUAL)
    else:
        found = bandwidths(plan.machine, plan.config.cache_dir, gpu=plan.gpu, progress=ui)
        used = machine_bandwidths(found, None)
        roofline = Roofline(bandwidths=used, reason="" if used else found.gpu_reason)
    journal.note("roofline", roofline.model_dump(mode="json"))
    return roofline


def with_bound(arm: Arm, shape: MoeShape, workload: Workload, machine: Bandwidths | None) -> Arm:
    """Return the arm with the bound on its decode speed and the share that it reached, where there is one."""
    found = [one.outcome for one in arm.replicates if isinstance(one.outcome, Measurement)]
    if not found or arm.decode_tok_s is None:
        return arm
    bound = decode_bound(shape, arm.placement, found, workload, machine)
    if bound is None:
        return arm
    return arm.model_copy(
        update={"bound_decode_tok_s": bound, "bound_share": arm.decode_tok_s / bound if bound else None}
    )


def decode_bound(
    shape: MoeShape,
    placement: Placement,
    found: Sequence[Measurement],
    workload: Workload,
    machine: Bandwidths | None,
) -> float | None:
    """Return the most tokens a second that bytes and bandwidths allow (hottune/routing/bound.py).

    None without measured bandwidths, where the log does not tell what `--fit` moved, with another engine's
    cache (its hit rate is not known), and with drafts or several requests in flight (a batch of several
    tokens shares its experts).

    Args:
        shape: of the model.
        placement: what was measured.
        found: its replicates; the first one's hit rates and fit placement count.
        workload: for the length of the KV cache.
        machine: bandwidths.
    """
    if machine is None or placement.spec_type != "none" or placement.parallel > 1:
        return None
    if placement.engine and placement.hot_k:
        return None
    engagement = found[0].engagement
    if placement.fit and (engagement.fit is None or engagement.fit.n_gpu_layers is None):
        return None
    lengths = [one.prompt_tokens + one.output_tokens / 2 for one in workload.requests]
    kv_bytes = shape.kv_bytes(round(fmean(lengths)), placement.kv_type_k, placement.kv_type_v)
    load = token_load(shape, placement, engagement.hot, engagement.fit, kv_bytes=kv_bytes)
    return predict(load, machine).tokens_per_second


def token_load(
    shape: MoeShape,
    placement: Placement,
    hot: HotStats | None,
    fit: FitPlacement | None = None,
    *,
    kv_bytes: float,
) -> TokenLoad:
    """Return what a token needs; misses within a layer are taken as independent of each other.

    Args:
        shape: of the model.
        placement: what was measured.
        hot: the cache's counters; None = every expert in RAM is a miss.
        fit: what `--fit` decided, for a fit placement.
        kv_bytes: KV cache read for a token.
    """
    rates = chain(hot.layer_hit_rate if hot else (), repeat(hot.hit_rate if hot else 0.0))
    misses = (independent_misses(shape.n_used, rate) for rate in rates)
    tokens = (hot.hits + hot.misses) / max(1, hot.layers * shape.n_used) if hot else 0.0
    n_below = fit_layers_in_ram(fit) if placement.fit and fit else 0
    dense_below = sum(shape.layer_dense_bytes[:n_below])
    kv_below = kv_bytes * n_below / shape.n_layers
    layers = layer_loads(shape, experts_in_ram(shape, placement, fit), misses)
    # A layer that fit left to the CPU altogether reads its other weights from RAM: one miss of all of them.
    whole = LayerLoad(expert_bytes=dense_below + kv_below, n_used=1, misses=(0.0, 1.0))
    return TokenLoad(
        dense_bytes=shape.dense_bytes - dense_below,
        kv_bytes=kv_bytes - kv_below,
        layers=(*layers, whole) if n_below else layers,
        uploaded_bytes=hot.uploaded_bytes / tokens if hot and tokens else 0.0,
    )


def fit_layers_in_ram(fit: FitPlacement) -> int:
    """Return how many first layers fit left to the CPU altogether; its numbers count the output layer."""
    return max(0, (fit.layers_total or 0) - (fit.n_gpu_layers or 0))


def experts_in_ram(shape: MoeShape, placement: Placement, fit: FitPlacement | None) -> list[float]:
    """Return the share of each layer's experts that lies in RAM, 0 to 1."""
    if not placement.fit:
        return [float(layer < placement.n_cpu_moe) for layer in range(shape.n_layers)]
    shares = [0.0] * shape.n_layers
    if fit is None:
        return shares
    below = fit_layers_in_ram(fit)
    shares[:below] = [1.0] * min(below, shape.n_layers)
    patterns = {pattern: _SHARE_IN_RAM[kind] for kind, pattern in OVERFLOW.items()}
    for override in fit.overrides:
        if (match := _OVERRIDE.fullmatch(override)) and int(match[1]) < shape.n_layers:
            shares[int(match[1])] = patterns.get(match[2], 1.0)
    return shares
