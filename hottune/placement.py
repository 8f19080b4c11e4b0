"""The noun every room shares: a Placement, one complete arrangement of a model to measure."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LoadMode(StrEnum):
    """How llama.cpp brings weights into host memory (`--load-mode`).

    `NONE` reads them into pinned memory where the GPU driver allows; `MMAP` maps the file, unpinned.
    """

    NONE = "none"
    MMAP = "mmap"


class KvType(StrEnum):
    """Element type of the KV cache (`-ctk`, `-ctv`)."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class Placement(BaseModel):
    """One complete arrangement to measure. Frozen; equal placements hash equal.

    Layers `0 .. n_cpu_moe-1` keep their experts in host memory; the rest lie whole in VRAM. With `hot_k` > 0
    the hot-expert device also keeps `hot_k` experts of each of those first layers in VRAM. `fit` hands the
    whole decision to llama.cpp's `--fit` under the ceiling; then `n_cpu_moe` and `hot_k` are not passed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_cpu_moe: int = Field(ge=0, description="layers, counted from the first, whose experts stay in RAM")
    hot_k: int = Field(default=0, ge=0, description="experts of each such layer kept in VRAM; 0 = no device")
    rebalance_interval: int = Field(default=60, ge=1, description="tokens between rebalances of the cache")
    policy: Literal["window"] = Field(default="window", description="which experts are kept")
    prefill_bypass: int = Field(
        default=1, ge=1, le=64, description="largest batch, in tokens, that goes through the cache"
    )
    fit: bool = Field(default=False, description="let llama.cpp's --fit place everything")
    ubatch: int = Field(default=512, ge=1, description="physical batch, tokens (-ub)")
    batch: int = Field(default=2048, ge=1, description="logical batch, tokens (-b)")
    threads: int = Field(ge=1, description="CPU threads (-t)")
    load_mode: LoadMode = LoadMode.NONE
    kv_type_k: KvType = KvType.F16
    kv_type_v: KvType = KvType.F16
    context: int = Field(default=4096, ge=1, description="context length, tokens (-c)")

    def label(self) -> str:
        """Return a short human name, for tables and progress lines: `ncmoe 31 + hot 16/60`."""
        if self.fit:
            return "--fit"
        hot = f" + hot {self.hot_k}/{self.rebalance_interval}" if self.hot_k else ""
        return f"ncmoe {self.n_cpu_moe}{hot} ub {self.ubatch}"


#: Fields that a running server can change without a restart (through the device's control socket).
#: None yet: the first device reads its settings from the environment at start.
LIVE_FIELDS: frozenset[str] = frozenset()


def needs_restart(old: Placement, new: Placement) -> bool:
    """Tell whether going from `old` to `new` needs a fresh server (any field outside `LIVE_FIELDS`)."""
    changed = {name for name in Placement.model_fields if getattr(old, name) != getattr(new, name)}
    return bool(changed - LIVE_FIELDS)
