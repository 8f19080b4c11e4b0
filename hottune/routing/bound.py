"""The bound: how long one token takes at least, from bytes, bandwidths and the distribution of misses.

    t_token = fixed + (dense + KV) / BW_hbm
            + sum over layers in RAM [ t_sync + E_m[ max( m b / BW_cpu + t_cpu_fixed (if m > 0),
                                                          (U - m) b / BW_hbm ) ] ]
            + sum over layers in VRAM [ U b / BW_hbm ]

with U experts used, b bytes of one expert and m misses of a token in a layer. The mean over m is taken
outside the maximum, for E[max] > max(E). Uploads run beside all this and slow the CPU down while they do:
with f, the share of the token's time in which PCIe is busy (bytes uploaded for a token / BW_pcie_overlapped /
t_token, at most 1), BW_cpu is the harmonic mean of its value alone and its value beside PCIe, weighted by
1 - f and f.

Everything here is decoding of single tokens; the device computes hot and cold experts of a layer at the same
time, and layers one after the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from hottune.routing.replay import ReplayResult

_GB = 1e9
_BISECTIONS = 60  # more than a double has bits


class Bandwidths(BaseModel):
    """What the bound needs to know about a machine. GB are 10^9 bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: float = Field(gt=0, description="GB/s at which the CPU gets through expert weights in RAM")
    hbm: float = Field(gt=0, description="GB/s at which the GPU gets through weights in VRAM")
    pcie_h2d: float = Field(gt=0, description="GB/s from host memory to the GPU, alone")
    cpu_overlapped: float = Field(gt=0, description="GB/s of the CPU while PCIe is busy too")
    pcie_overlapped: float = Field(gt=0, description="GB/s of PCIe while the CPU is busy too")
    t_sync_us: float = Field(default=0, ge=0, description="a layer's hand-over between GPU and CPU, us")
    t_cpu_fixed_us: float = Field(
        default=0, ge=0, description="what a layer with any miss takes beside its bytes (threads' start), us"
    )
    t_token_fixed_us: float = Field(
        default=0, ge=0, description="what a token takes beside all that (sampling, launches), us"
    )


class LayerLoad(BaseModel):
    """The experts of one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expert_bytes: float = Field(ge=0, description="of one expert, all its weights")
    n_used: int = Field(ge=1, description="experts a token")
    misses: tuple[float, ...] = Field(
        description="weight of 0, 1, 2, .. misses of a token, any scale; empty = the layer lies in VRAM whole"
    )


class TokenLoad(BaseModel):
    """What one token needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense_bytes: float = Field(ge=0, description="weights that every token reads from VRAM")
    kv_bytes: float = Field(default=0, ge=0, description="KV cache read for a token, at its mean length")
    layers: tuple[LayerLoad, ...]
    uploaded_bytes: float = Field(default=0, ge=0, description="experts uploaded for a token, mean")


class Prediction(BaseModel):
    """Where the time of a token goes, in milliseconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total_ms: float
    fixed_ms: float
    dense_ms: float
    sync_ms: float
    experts_ms: float
    cpu_gbps: float = Field(description="the CPU's bandwidth, slowed by uploads")
    pcie_share: float = Field(description="share of the time in which uploads are under way; 1 = saturated")

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second; infinite for a token that takes no time."""
        return 1000 / self.total_ms if self.total_ms else math.inf


class Measured(BaseModel):
    """One placement that was measured, to fit the constants to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: TokenLoad
    ms_per_token: float = Field(gt=0)


class Fit(BaseModel):
    """Constants fitted to measurements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidths: Bandwidths
    relative_errors: tuple[float, ...] = Field(description="predicted / measured - 1, for each measurement")


def token_load(
    result: ReplayResult,
    *,
    expert_bytes: Sequence[float],
    dense_bytes: float,
    kv_bytes: float = 0,
    layers_in_vram: Sequence[LayerLoad] = (),
) -> TokenLoad:
    """Return what a token needs with a replayed cache.

    Args:
        result: of the replay.
        expert_bytes: of one expert, for each layer of the replay.
        dense_bytes: weights that every token reads from VRAM.
        kv_bytes: KV cache read for a token.
        layers_in_vram: layers that no cache is needed for.
    """
    n_used = len(result.misses_of_tokens) - 1
    layers = [
        LayerLoad(expert_bytes=size, n_used=n_used, misses=layer.misses_of_tokens)
        for size, layer in zip(expert_bytes, result.layers, strict=True)
    ]
    uploaded = sum(size * one.uploads for size, one in zip(expert_bytes, result.layers, strict=True))
    return TokenLoad(
        dense_bytes=dense_bytes,
        kv_bytes=kv_bytes,
        layers=(*layers, *layers_in_vram),
        uploaded_bytes=uploaded / max(1, result.tokens),
    )


def predict(load: TokenLoad, machine: Bandwidths) -> Prediction:
    """Return the least time that a token can take (the module's formula)."""
    dense_ms = (load.dense_bytes + load.kv_bytes) / (machine.hbm * _GB) * 1e3
    fixed_ms = machine.t_token_fixed_us / 1e3
    sync_ms = machine.t_sync_us / 1e3 * sum(bool(layer.misses) for layer in load.layers)
    upload_ms = load.uploaded_bytes / (machine.pcie_overlapped * _GB) * 1e3
    alike = Counter(load.layers)  # most layers of most models are

    def at(share: float) -> tuple[float, float, float]:
        """Return the CPU's bandwidth, the experts' time and the token's, with uploads for `share` of it."""
        cpu = 1 / ((1 - share) / machine.cpu + share / machine.cpu_overlapped)
        experts_ms = sum(count * _experts_ms(layer, cpu, machine) for layer, count in alike.items())
        return cpu, experts_ms, fixed_ms + dense_ms + sync_ms + experts_ms

    low, high = 0.0, 1.0  # upload_ms / t_token(share) falls as share rises: one crossing
    if upload_ms >= at(1.0)[2]:
        low = high if upload_ms else low
    else:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if upload_ms > middle * at(middle)[2] else (low, middle)
    cpu, experts_ms, total_ms = at(low)
    return Prediction(
        total_ms=total_ms,
        fixed_ms=fixed_ms,
        dense_ms=dense_ms,
        sync_ms=sync_ms,
        experts_ms=experts_ms,
        cpu_gbps=cpu,
        pcie_share=low,
    )


def _experts_ms(layer: LayerLoad, cpu_gbps: float, machine: Bandwidths) -> float:
    hot_ms_each = layer.expert_bytes / (machine.hbm * _GB) * 1e3
    total = sum(layer.misses)
    if not total:
        return layer.n_used * hot_ms_each
    cold_ms_each = layer.expert_bytes / (cpu_gbps * _GB) * 1e3
    mean = 0.0
    for misses, weight in enumerate(layer.misses):
        cold_ms = misses * cold_ms_each + machine.t_cpu_fixed_us / 1e3 * (misses > 0)
        mean += weight / total * max(cold_ms, max(0, layer.n_used - misses) * hot_ms_each)
    return mean


#: What `fit` can find, and how large it may become.
_FITTED = {"cpu": 1e5, "t_sync_us": 1e4, "t_cpu_fixed_us": 1e4, "t_token_fixed_us": 1e6}
_LEAST_US = 0.01
_PRIOR = 0.02  # relative error that a factor of e between start and result is worth


def fit(measured: Sequence[Measured], start: Bandwidths) -> Fit:
    """Fit the CPU's bandwidth and the three fixed times to measurements, by least squares of log ratios.

    What the measurements do not tell apart stays near `start`: t_sync and t_token_fixed, for example, when
    all have the same number of layers in RAM. The CPU's bandwidth beside PCIe keeps its ratio to that alone.

    Args:
        measured: placements with the time that a token really took; two at least.
        start: measured bandwidths and a first guess of the fixed times.

    Raises:
        ValueError: fewer than two measurements.
    """
    from scipy.optimize import least_squares

    if len(measured) < 2:
        raise ValueError("a fit needs two measurements at least")
    names = list(_FITTED)
    first = np.log([max(_LEAST_US, getattr(start, name)) for name in names])

    def machine(logs: npt.NDArray[np.float64]) -> Bandwidths:
        found = dict(zip(names, np.exp(logs).tolist(), strict=True))
        overlapped = found["cpu"] * start.cpu_overlapped / start.cpu
        return start.model_copy(update={**found, "cpu_overlapped": overlapped})

    def errors(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        here = machine(logs)
        ratios = [predict(one.load, here).total_ms / one.ms_per_token for one in measured]
        return np.concatenate([np.log(ratios), _PRIOR * (logs - first)])

    top = np.maximum(np.log(list(_FITTED.values())), first + 1)
    found = least_squares(errors, first, bounds=(np.minimum(math.log(_LEAST_US), first) - 1, top))
    best = machine(found.x)
    return Fit(
        bandwidths=best,
        relative_errors=tuple(predict(one.load, best).total_ms / one.ms_per_token - 1 for one in measured),
    )
