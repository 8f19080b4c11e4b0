"""What no server ever said: measurements by formula, put together as those of real servers are."""

from __future__ import annotations

from hottune.outcomes import Engagement, HotStats, Measurement, RequestSample
from hottune.placement import Placement
from hottune.workload.summary import measurement


def measured(
    sample: RequestSample, vram_mib: float, hot: HotStats | None = None, *, load_s: float = 0.0
) -> Measurement:
    """Return the measurement of a server that answered one request, on a virtual GPU."""
    engagement = Engagement(
        gpu_device="VGPU0",
        vram_model_mib=1,
        vram_kv_mib=1,
        vram_compute_mib=1,
        host_model_mib=1,
        hot=hot,
    )
    return measurement(
        [sample], vram_peak_mib=vram_mib, vram_source="virtual", load_s=load_s, engagement=engagement
    )


def hot_stats(placement: Placement, hits: int, misses: int) -> HotStats | None:
    """Return the counters of a cache that got what was asked for; None for a placement without one."""
    if placement.hot_k == 0:
        return None
    return HotStats(
        slots=placement.hot_k,
        layers=placement.n_cpu_moe,
        hits=hits,
        misses=misses,
        uploads=1,
        uploaded_bytes=1,
        cache_bytes=1,
    )
