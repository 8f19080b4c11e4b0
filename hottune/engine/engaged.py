"""Proof that an arrangement took effect: what was asked for against what log and counters show.

A row without this proof is `NotEngaged`, never a measurement: a library that fails to load is one log line to
llama.cpp, and the numbers of such a server look fine.
"""

from __future__ import annotations

from hottune.engine import fitlog
from hottune.engine.loadlog import LoadLog
from hottune.machine.facts import Gpu
from hottune.outcomes import HotStats, NotEngaged
from hottune.placement import Placement


def check_loaded(log: LoadLog, placement: Placement, gpu: Gpu | None) -> NotEngaged | None:
    """Compare what was asked for with what the load log proves; None when all of it took effect."""
    if gpu is not None and not log.gpu_device:
        reason = log.not_loaded[0] if log.not_loaded else "llama.cpp found no GPU (is its back-end built in?)"
        return NotEngaged(detail=f"no GPU in use: {reason}")
    if gpu is not None and gpu.virtual != log.gpu_device.startswith("VGPU"):
        wanted = "the virtual GPU" if gpu.virtual else gpu.name
        return NotEngaged(detail=f"{wanted} was asked for, but {log.gpu_device} is in use")
    if placement.fit:
        if log.fit_failure is not None:
            return NotEngaged(detail=f"fit gave up: {log.fit_failure}")
        if log.fit() is None:
            return NotEngaged(detail="the log has no line of fit")
        if log.offloaded is None or log.offloaded[0] == 0:
            return NotEngaged(detail="fit placed no layer on the GPU")
        n_on_gpu, n_layers = log.offloaded
        if n_on_gpu < n_layers and fitlog.changed_nothing(log.fit_lines):
            # fit starts from "all layers" and would have had to move some: another setting moved them.
            return NotEngaged(
                detail=f"fit changed nothing, yet {n_on_gpu} of {n_layers} layers are on the GPU: something "
                "else (-ngl, LLAMA_ARG_N_GPU_LAYERS) placed them"
            )
        if placement.hot_k > 0 and log.fit_left_no_experts:
            return NotEngaged(
                detail="fit put every expert into VRAM beside the cache's room: there is nothing to cache"
            )
    if placement.hot_k > 0 and not log.hot_ready:
        reason = log.not_loaded[0] if log.not_loaded else "its line 'device ready' is not in the log"
        return NotEngaged(detail=f"the hot-expert device was not loaded: {reason}")
    if placement.spec_type != "none" and not log.speculating:
        return NotEngaged(detail=f"llama-server did not set up speculative decoding ({placement.spec_type})")
    return None


def check_engaged(placement: Placement, stats: HotStats | None) -> NotEngaged | None:
    """Say whether the cache really worked, from its final counters; None when it did or none was asked for.

    Fewer experts in VRAM than asked for is no failure (the counters show it); none at all is.
    """
    if placement.hot_k == 0 or placement.engine:  # another engine's cache: its log proved it
        return None
    if stats is None:
        return NotEngaged(detail="the hot-expert device left no statistics")
    if stats.slots == 0:
        return NotEngaged(detail="the hot-expert device got no place in VRAM")
    if stats.hits + stats.misses == 0:
        return NotEngaged(detail="the hot-expert device was loaded but saw no expert: its counters are zero")
    return None
