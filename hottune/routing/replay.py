"""Replay: what the device's cache would have done on a recorded routing, by the device's own policies.

The loop over the trace runs in C++ (`vendor/llama.cpp/ggml-hot/replay/replay.cpp`), compiled together with
the policies of the device itself; see docs/routing.md for what is exact and what is assumed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, computed_field

from hottune.placement import LARGEST_BYPASS, Policy
from hottune.routing.trace import Layer, Trace
from hottune.units import MIB


@dataclass(frozen=True, eq=False)
class Routing:
    """A routing as the replay needs it: block by block, in the order in which they were computed.

    Attributes:
        layers: what is known about each layer; layer 0 begins a batch.
        blocks: int32 array [n_blocks, 3] of layer, tokens, experts a token; a layer of -1 - n means a block
            of layer n that was computed alone, as the cache sees it of prompts that are too long for it.
        experts: int32, the experts of the first block, token by token, then those of the next.
    """

    layers: tuple[Layer, ...]
    blocks: npt.NDArray[np.int32]
    experts: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        """Check what the C++ side relies on.

        Raises:
            ValueError: blocks and experts do not match, or one is out of range.
        """
        for array in (self.blocks, self.experts):
            if array.dtype != np.int32 or not array.flags.c_contiguous:
                raise ValueError("blocks and experts must be contiguous int32 arrays")
        layer, tokens, used = self.blocks.T
        if not len(layer) or layer[0] > 0:
            raise ValueError("a routing begins with a block of layer 0")
        layer = self.layer_of_block
        if layer.min() < 0 or layer.max() >= len(self.layers) or tokens.min() < 1 or used.min() < 1:
            raise ValueError("a block's layer, tokens or experts are out of range")
        sizes = tokens.astype(np.int64) * used
        if sizes.sum() != len(self.experts):
            raise ValueError(f"the blocks have {sizes.sum()} choices, not {len(self.experts)}")
        n_expert = np.array([one.n_expert for one in self.layers], dtype=np.int64)
        most = np.maximum.reduceat(self.experts, np.cumsum(sizes) - sizes)
        if (most >= n_expert[layer]).any() or self.experts.min() < 0:
            raise ValueError("an expert is out of range")

    @property
    def layer_of_block(self) -> npt.NDArray[np.int32]:
        """The layer of each block, lone or not."""
        layer: npt.NDArray[np.int32] = self.blocks[:, 0]
        return np.where(layer < 0, -1 - layer, layer)

    @classmethod
    def from_trace(cls, trace: Trace) -> Routing:
        """Take the routing out of a trace.

        Raises:
            ValueError: the trace has no blocks.
        """
        numbers = sorted(trace.layers)
        renumbered = np.zeros(max(numbers, default=0) + 1, dtype=np.int32)
        renumbered[numbers] = np.arange(len(numbers))
        table = trace.blocks[:, [0, 2, 3]].astype(np.int32)
        table[:, 0] = renumbered[table[:, 0]]
        before, lone = trace.lone_blocks[:, 0], trace.lone_blocks[:, 1:].astype(np.int32)
        lone[:, 0] = -1 - renumbered[lone[:, 0]]
        begins = np.concatenate([[0], np.cumsum(table[:, 1].astype(np.int64) * table[:, 2])])
        places = np.repeat(begins[before], lone[:, 1].astype(np.int64) * lone[:, 2])
        experts = np.insert(trace.choices.expert, places, trace.lone_experts)
        table = np.insert(table, before, lone, axis=0)
        layers = tuple(trace.layers[number] for number in numbers)
        return cls(layers, np.ascontiguousarray(table), np.ascontiguousarray(experts))

    @classmethod
    def from_choices(cls, experts: npt.NDArray[np.integer], n_expert: int) -> Routing:
        """Make a routing of single tokens, as in decoding, from an array [tokens, layers, experts]."""
        n_tokens, n_layers, n_used = experts.shape
        blocks = np.ones((n_tokens * n_layers, 3), dtype=np.int32)
        blocks[:, 0] = np.tile(np.arange(n_layers), n_tokens)
        blocks[:, 2] = n_used
        layers = tuple(Layer(f"blk.{index}.ffn_up_exps.weight", n_expert) for index in range(n_layers))
        return cls(layers, blocks, np.ascontiguousarray(experts, dtype=np.int32).reshape(-1))

    def uses(self, *, bypass: int = LARGEST_BYPASS) -> npt.NDArray[np.int64]:
        """Count how often each expert was used, over blocks of up to `bypass` tokens: [layers, experts]."""
        layer, (_, tokens, used) = self.layer_of_block, self.blocks.T
        sizes = tokens.astype(np.int64) * used
        ends = np.cumsum(sizes)
        width = max(one.n_expert for one in self.layers)
        counts = np.zeros(len(self.layers) * width, dtype=np.int64)
        at_once = 1 << 16
        for first in range(0, len(layer), at_once):
            part = slice(first, first + at_once)
            begin = ends[first] - sizes[first]
            of_layer = np.repeat(layer[part].astype(np.int64), sizes[part])
            kept = np.repeat(tokens[part] <= bypass, sizes[part])
            key = of_layer * width + self.experts[begin : begin + len(of_layer)]
            counts += np.bincount(key[kept], minlength=len(counts))
        return counts.reshape(len(self.layers), width)


class ReplaySettings(BaseModel):
    """The cache to re-enact: the fields of a Placement that matter to it, and what a trace does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Policy = "window"
    slots: int = Field(ge=0, description="experts of each layer that have a place in VRAM")
    interval: int = Field(default=60, ge=1, le=1_000_000, description="tokens, see Placement")
    hysteresis: int = Field(default=1, ge=0, le=1_000_000, description="uses (window)")
    upload_mib: int = Field(default=128, ge=1, description="most that is uploaded for a batch, MiB")
    bypass: int = Field(
        default=LARGEST_BYPASS, ge=1, description="larger blocks of the trace, tokens, pass the cache by"
    )
    arrival: int = Field(default=1, ge=1, description="batches until an uploaded expert may be read")
    quantized: bool = Field(default=True, description="whether the experts' weights are quantized")
    last_layer_first: bool = Field(
        default=True,
        description="whether the device met the last layer before all others, as after a prompt that passed "
        "the cache by; shifts the windows",
    )
    slots_from_start: bool = Field(
        default=False,
        description="whether the slots were there, empty, when the trace began: settings changed in a "
        "running server; else they are taken when a layer comes round again",
    )
    cold_tokens: int = Field(default=64, ge=0, description="first tokens, counted apart")


class LayerReplay(BaseModel):
    """What the replay counted in one layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="of the layer's first expert weight")
    slots: int
    hits: int = Field(description="choices found in a slot")
    misses: int = Field(description="choices computed from host memory")
    cold_hits: int = Field(description="of the first tokens")
    cold_misses: int
    uploads: int = Field(description="experts copied to VRAM")
    evictions: int = Field(description="of which took the place of another")
    uploaded_bytes: int | None = Field(description="None when the size of an expert is not known")
    misses_of_tokens: tuple[int, ...] = Field(description="tokens with 0, 1, 2, .. misses")


class ReplayResult(BaseModel):
    """What the replay of one cache counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: ReplaySettings
    layers: tuple[LayerReplay, ...]

    def _sum(self, field: str) -> int:
        return sum(getattr(layer, field) for layer in self.layers)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hit_rate(self) -> float:
        """Share of all choices found in a slot; 0 when there were none."""
        return _share(self._sum("hits"), self._sum("misses"))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cold_hit_rate(self) -> float:
        """The same of the first `settings.cold_tokens` tokens."""
        return _share(self._sum("cold_hits"), self._sum("cold_misses"))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def warm_hit_rate(self) -> float:
        """The same of all later tokens; 0 when there were none."""
        hits = self._sum("hits") - self._sum("cold_hits")
        return _share(hits, self._sum("misses") - self._sum("cold_misses"))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens(self) -> int:
        """Tokens that went through the cache in most layers (the last one sees more than others)."""
        return min(sum(layer.misses_of_tokens) for layer in self.layers)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def uploads(self) -> int:
        """Experts copied to VRAM, all layers."""
        return self._sum("uploads")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def uploaded_bytes(self) -> int | None:
        """Bytes of those; None when the size of an expert is not known."""
        known = [layer.uploaded_bytes for layer in self.layers if layer.uploaded_bytes is not None]
        return sum(known) if len(known) == len(self.layers) else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def misses_of_tokens(self) -> tuple[int, ...]:
        """How many (layer, token) pairs had 0, 1, 2, .. misses."""
        return tuple(
            sum(counts) for counts in zip(*(one.misses_of_tokens for one in self.layers), strict=True)
        )


class Reference(BaseModel):
    """Hit rates to compare with, for one number of slots."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: int
    static_oracle: float = Field(description="if the most used experts of this very trace had lain there")
    random: float = Field(description="if any experts lay there: slots / experts")


def _share(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits + misses else 0.0


def references(routing: Routing, slots: Sequence[int], *, bypass: int = LARGEST_BYPASS) -> list[Reference]:
    """Return what fixed sets of experts would hit, for each number of slots a layer."""
    uses = np.sort(routing.uses(bypass=bypass), axis=1)[:, ::-1]
    n_expert = np.array([one.n_expert for one in routing.layers])
    of_layer, total = uses.sum(axis=1), max(1, int(uses.sum()))
    return [
        Reference(
            slots=k,
            static_oracle=float(uses[:, :k].sum() / total),
            random=float((of_layer * np.minimum(1.0, k / n_expert)).sum() / total),
        )
        for k in slots
    ]


class _Facts(ctypes.Structure):
    _fields_ = (
        ("n_expert", ctypes.c_int32),
        ("n_slots", ctypes.c_int32),
        ("phase", ctypes.c_int32),
        ("first_block", ctypes.c_int32),
        ("expert_bytes", ctypes.c_int64),
        ("uses", ctypes.POINTER(ctypes.c_double)),
    )


class _Settings(ctypes.Structure):
    _fields_ = (
        ("upload_bytes", ctypes.c_int64),
        ("policy", ctypes.c_int32),
        ("interval", ctypes.c_int32),
        ("hysteresis", ctypes.c_int32),
        ("bypass", ctypes.c_int32),
        ("arrival", ctypes.c_int32),
        ("rows_repeat", ctypes.c_int32),
        ("cold_tokens", ctypes.c_int32),
        ("most_used", ctypes.c_int32),
    )


class _Routing(ctypes.Structure):
    _fields_ = (("n_blocks", ctypes.c_int64), ("blocks", ctypes.c_void_p), ("experts", ctypes.c_void_p))


class Replay:
    """Re-enacts caches on one routing.

    Args:
        library: the compiled policies (`hottune.engine.replay_library`).
        routing: the trace.
        expert_bytes: bytes of one expert, all its weights, for each layer; without, uploads have no limit.
        profile: uses of each expert by the name of the layer's first weight; other names are ignored.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        routing: Routing,
        *,
        expert_bytes: Sequence[int] | None = None,
        profile: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if expert_bytes is not None and len(expert_bytes) != len(routing.layers):
            raise ValueError(f"{len(expert_bytes)} sizes of experts for {len(routing.layers)} layers")
        self._library = library
        self._routing = routing
        self._expert_bytes = expert_bytes
        self._stop = ctypes.c_int32(0)
        self._uses = [self._usable((profile or {}).get(one.name), one.n_expert) for one in routing.layers]

    @staticmethod
    def _usable(uses: Sequence[float] | None, n_expert: int) -> ctypes.Array[ctypes.c_double] | None:
        fits = uses is not None and len(uses) == n_expert
        return (ctypes.c_double * n_expert)(*uses) if fits and uses is not None else None

    @property
    def seeded_layers(self) -> int:
        """Layers for which the profile has something to say."""
        return sum(uses is not None for uses in self._uses)

    def run(self, settings: ReplaySettings) -> ReplayResult:
        """Re-enact one cache. The interpreter's lock is free meanwhile, so several can run at once.

        Raises:
            MemoryError: memory ran out.
        """
        routing, n_layers = self._routing, len(self._routing.layers)
        most_used = int(routing.blocks[:, 2].max())
        facts = (_Facts * n_layers)(*(self._facts(settings, layer) for layer in range(n_layers)))
        asked = _Settings(
            settings.upload_mib * MIB,
            self._library.hot_replay_policy(settings.policy.encode()),
            settings.interval,
            settings.hysteresis,
            settings.bypass,
            settings.arrival,
            settings.quantized,
            settings.cold_tokens,
            most_used,
        )
        trace = _Routing(len(routing.blocks), routing.blocks.ctypes.data, routing.experts.ctypes.data)
        counts = np.zeros((n_layers, 6), dtype=np.int64)
        misses_of = np.zeros((n_layers, most_used + 1), dtype=np.int64)
        failed = self._library.hot_replay(
            ctypes.byref(asked),
            ctypes.byref(trace),
            ctypes.c_int32(n_layers),
            facts,
            ctypes.c_void_p(counts.ctypes.data),
            ctypes.c_void_p(misses_of.ctypes.data),
            ctypes.byref(self._stop),
        )
        if failed:
            raise MemoryError("the replay ran out of memory")
        return ReplayResult(
            settings=settings,
            layers=tuple(self._layer(settings, index, counts, misses_of) for index in range(n_layers)),
        )

    def sweep(
        self,
        settings: Sequence[ReplaySettings],
        *,
        threads: int | None = None,
        on_done: Callable[[int], None] = lambda done: None,
    ) -> list[ReplayResult]:
        """Re-enact many caches, several at once; results come in the order of `settings`.

        Args:
            settings: the caches.
            threads: how many at once; None = one for each core that this process may use.
            on_done: called with the number of finished ones.
        """
        pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)))
        try:
            results = []
            for result in pool.map(self.run, settings):
                results.append(result)
                on_done(len(results))
            return results
        except BaseException:
            self._stop.value = 1  # Ctrl-C must not wait for the ones at work
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._stop.value = 0

    def _facts(self, settings: ReplaySettings, layer: int) -> _Facts:
        one, n_layers = self._routing.layers[layer], len(self._routing.layers)
        met = (layer + 1) % n_layers if settings.last_layer_first else layer  # as the device counts layers
        is_first_met = settings.last_layer_first and met == 0
        uses = self._uses[layer]
        return _Facts(
            one.n_expert,
            min(settings.slots, one.n_expert),
            met * settings.interval // n_layers,
            0 if is_first_met or settings.slots_from_start else 1,
            self._expert_bytes[layer] if self._expert_bytes is not None else 0,
            ctypes.cast(uses, ctypes.POINTER(ctypes.c_double)) if uses is not None else None,
        )

    def _layer(
        self,
        settings: ReplaySettings,
        index: int,
        counts: npt.NDArray[np.int64],
        misses_of: npt.NDArray[np.int64],
    ) -> LayerReplay:
        hits, misses, cold_hits, cold_misses, uploads, evictions = (int(n) for n in counts[index])
        layer = self._routing.layers[index]
        sizes = self._expert_bytes
        return LayerReplay(
            name=layer.name,
            slots=min(settings.slots, layer.n_expert),
            hits=hits,
            misses=misses,
            cold_hits=cold_hits,
            cold_misses=cold_misses,
            uploads=uploads,
            evictions=evictions,
            uploaded_bytes=None if sizes is None else uploads * sizes[index],
            misses_of_tokens=tuple(int(n) for n in misses_of[index]),
        )
