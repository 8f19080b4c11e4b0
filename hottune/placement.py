"""The noun every room shares: a Placement, one complete arrangement of a model to measure."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


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


#: How the device chooses the experts that it keeps: the most used of the last tokens, the last used, the most
#: used where older uses count less, or those that a profile names.
Policy = Literal["window", "lru", "lfru", "static"]

#: Policies to which `rebalance_interval` means something.
INTERVAL_POLICIES: frozenset[Policy] = frozenset({"window", "lfru"})

#: Speculative decoding of llama-server without a draft model (`--spec-type`): drafts come from n-grams of the
#: text so far.
SpecType = Literal["none", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache"]

#: Most tokens that llama.cpp (b11434) drafts at once by default.
_DRAFT_DEFAULT: dict[SpecType, int] = {
    "none": 0,
    "ngram-simple": 48,
    "ngram-map-k": 48,
    "ngram-map-k4v": 48,
    "ngram-mod": 64,
    "ngram-cache": 8,
}

#: The largest batch, in tokens, that the device can be asked to take.
LARGEST_BYPASS = 64

#: Batches of so many tokens use nearly every expert of most models: from here on the device is asked to bring
#: them all to the GPU itself. Of smaller batches (from 32 tokens on) llama.cpp brings those that are used.
STREAM_FROM = 256


class Placement(BaseModel):
    """One complete arrangement to measure. Frozen; equal placements hash equal.

    Layers `0 .. n_cpu_moe-1` keep their experts in host memory; the rest lie whole in VRAM. With `hot_k` > 0
    the hot-expert device also keeps `hot_k` experts of each of those first layers in VRAM.

    `fit` hands the placing to llama.cpp's `--fit` under the ceiling, and `n_cpu_moe` is not passed. With
    `hot_k` > 0, VRAM for `hot_k` experts of every layer is kept from fit, and the device spreads it over the
    layers that fit then leaves in host memory: each of those gets `hot_k` experts or more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_cpu_moe: int = Field(ge=0, description="layers, counted from the first, whose experts stay in RAM")
    hot_k: int = Field(default=0, ge=0, description="experts of each such layer kept in VRAM; 0 = no device")
    rebalance_interval: int = Field(
        default=60,
        ge=1,
        description="tokens between rebalances of the cache (window), or four half-lives of a use (lfru)",
    )
    policy: Policy = Field(
        default="lfru",
        description="which experts are kept: window, the most used of the last tokens; lru, the last used; "
        "lfru, the most used, older uses counting less; static, those of the profile",
    )
    shared_budget: bool = Field(
        default=False, description="one budget over all layers: those that miss more get more of it"
    )
    upload_mib: int = Field(
        default=128, ge=1, description="most that is uploaded to the cache for a batch, MiB"
    )
    hot_profile: Path | None = Field(
        default=None, description="file whose counts fill the cache first: a saved profile or an imatrix GGUF"
    )
    prefill_bypass: int = Field(
        default=1,
        ge=1,
        le=LARGEST_BYPASS,
        description="largest batch, in tokens, that goes through the cache",
    )
    stream_from: int = Field(
        default=0,
        ge=0,
        description="batches of so many tokens and more pass all experts through VRAM; 0 = none do",
    )
    fit: bool = Field(default=False, description="let llama.cpp's --fit place everything")
    ubatch: int = Field(default=512, ge=1, description="physical batch, tokens (-ub)")
    batch: int = Field(default=2048, ge=1, description="logical batch, tokens (-b)")
    threads: int = Field(ge=1, description="CPU threads (-t)")
    load_mode: LoadMode = LoadMode.NONE
    kv_type_k: KvType = KvType.F16
    kv_type_v: KvType = KvType.F16
    context: int = Field(default=4096, ge=1, description="context length of each parallel slot, tokens")
    parallel: int = Field(
        default=1, ge=1, le=64, description="requests that the server works on at once (-np)"
    )
    spec_type: SpecType = Field(
        default="none", description="speculative decoding without a draft model (--spec-type)"
    )
    spec_ngram: int | None = Field(
        default=None, ge=1, le=1024, description="tokens that must repeat for a draft; None = llama.cpp's own"
    )
    engine: str = Field(
        default="", description="name of another engine that serves this; '' = hottune's own llama.cpp"
    )

    @model_serializer(mode="wrap")
    def _without_own_engine(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the own engine unsaid: what is stored of it stays what it was before there were others."""
        dumped: dict[str, Any] = dump(self)
        if not self.engine:
            dumped.pop("engine", None)
        return dumped

    @property
    def draft_max(self) -> int:
        """Most tokens drafted at once: llama.cpp's default, or what the cache can take for all slots.

        A batch holds a token and its draft for each slot; it goes through the cache up to `LARGEST_BYPASS`.
        """
        if self.spec_type in ("none", "ngram-cache"):  # llama.cpp has no flag for the latter
            return _DRAFT_DEFAULT[self.spec_type]
        return min(_DRAFT_DEFAULT[self.spec_type], max(1, LARGEST_BYPASS // self.parallel - 1))

    @property
    def decode_batch(self) -> int:
        """Largest batch of decoding, in tokens: one token of every slot with its draft."""
        return self.parallel * (1 + self.draft_max)

    def label(self) -> str:
        """Return a short human name, for tables and progress lines: `ncmoe 31 + hot 16/60 ub 512`.

        What is not the default stands in it: `ncmoe 31 + hot 16 lru shared ub 512 np 4 ngram-mod`.
        """
        words = [f"{self.engine}:"] * bool(self.engine)
        words += ["--fit"] if self.fit else [f"ncmoe {self.n_cpu_moe}"]
        if self.hot_k:
            by_interval = self.policy in INTERVAL_POLICIES
            words.append(f"+ hot {self.hot_k}" + (f"/{self.rebalance_interval}" if by_interval else ""))
            words += [self.policy] * (self.policy != "lfru") + ["shared"] * self.shared_budget
            words += ["profile"] * (self.hot_profile is not None)
            words += [f"bypass {self.prefill_bypass}"] * (self.prefill_bypass != 1)
            words += [f"stream {self.stream_from}"] * (self.stream_from not in (0, STREAM_FROM))
        words += [f"ub {self.ubatch}"] * (not self.fit)
        words += [f"np {self.parallel}"] * (self.parallel > 1)
        words += [self.spec_type] * (self.spec_type != "none")
        return " ".join(words)


#: Fields that a running server can change without a restart (through the device's control socket).
LIVE_FIELDS: frozenset[str] = frozenset(
    {"hot_k", "rebalance_interval", "policy", "shared_budget", "upload_mib", "prefill_bypass"}
)


def needs_restart(old: Placement, new: Placement) -> bool:
    """Tell whether going from `old` to `new` needs a fresh server.

    It does when a field outside `LIVE_FIELDS` differs; when a cache comes or goes, because off means that the
    device is not even loaded; when either is a `fit` placement, whose rest was placed around its cache; and
    with another engine, which has no control socket.
    """
    changed = {name for name in Placement.model_fields if getattr(old, name) != getattr(new, name)}
    if changed and (old.fit or new.fit or (old.hot_k > 0) != (new.hot_k > 0)):
        return True
    if changed and (old.engine or new.engine):
        return True
    return bool(changed - LIVE_FIELDS)
