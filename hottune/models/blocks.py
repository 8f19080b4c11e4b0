"""Random weights as ready-made quantization blocks, drawn from a small pool.

Writing 16 GB of random weights by drawing and quantizing every number would take an hour. A pool of 16,384
valid blocks (4 million weights for Q4_K) is made once, and a tensor is made by drawing blocks from it with
replacement: every expert is different, and it runs at memory speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POOL = 1 << 14  # blocks: 2.3 MiB for Q4_K, which stays in the processor's cache


class WeightType(StrEnum):
    """Type of a synthetic model's matrices."""

    Q4_K = "Q4_K"
    Q8_0 = "Q8_0"
    F16 = "F16"

    @property
    def block(self) -> int:
        """Weights in a block; rows are multiples of it."""
        return 256 if self is WeightType.Q4_K else 32

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return {WeightType.Q4_K: 144, WeightType.Q8_0: 34, WeightType.F16: 64}[self]


@dataclass(frozen=True)
class BlockPool:
    """Blocks to draw from, one a row. The row's unit is a machine word, since wide items copy faster."""

    kind: WeightType
    rows: NDArray[Any]

    def draw(self, rng: np.random.Generator, n_blocks: int) -> NDArray[Any]:
        """Return `n_blocks` random blocks, one a row."""
        return self.rows.take(rng.integers(0, _POOL, n_blocks, dtype=np.uint16), axis=0, mode="wrap")

    def chunks(
        self, rng: np.random.Generator, n_blocks: int, at_once: int = 1 << 18
    ) -> Iterator[NDArray[Any]]:
        """Return `n_blocks` random blocks in pieces of at most `at_once`."""
        for start in range(0, n_blocks, at_once):
            yield self.draw(rng, min(at_once, n_blocks - start))


def make_pool(kind: WeightType, rng: np.random.Generator, deviation: float) -> BlockPool:
    """Return a pool of random weights with mean 0 and the given standard deviation."""
    if kind is WeightType.Q4_K:
        return BlockPool(kind, _q4_k(rng, deviation).view(np.uint64))
    values = rng.standard_normal((_POOL, kind.block), dtype=np.float32) * np.float32(deviation)
    if kind is WeightType.Q8_0:
        return BlockPool(kind, quantize_q8_0(values).view(np.uint16))
    return BlockPool(kind, values.astype("<f2").view(np.uint64))


def quantize_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return Q8_0 blocks (f16 scale, 32 signed bytes) of `values`, shaped blocks x 32."""
    scale = (np.abs(values).max(axis=1, keepdims=True) / 127).astype("<f2")
    safe = np.where(scale == 0, np.float16(1), scale).astype(np.float32)
    quants = np.clip(np.rint(values / safe), -127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), quants.view(np.uint8)], axis=1)


def _q4_k(rng: np.random.Generator, deviation: float) -> NDArray[np.uint8]:
    """Return random Q4_K blocks (ggml's block_q4_K: d, dmin, 12 bytes of 6-bit scales and mins, 128 nibbles).

    A weight is d * scale * q - dmin * min. With min = scale and dmin = 7.5 d that is d * scale * (q - 7.5):
    symmetric, uniform nibbles, never 0.
    """
    scales = rng.integers(32, 64, (_POOL, 8), dtype=np.uint8)
    nibbles = rng.integers(0, 256, (_POOL, 128), dtype=np.uint8)
    rms = np.sqrt(np.mean(scales.astype(np.float64) ** 2)) * np.sqrt((16**2 - 1) / 12)
    d = np.float16(deviation / rms)
    head = np.array([d, np.float16(7.5) * d], dtype="<f2").view(np.uint8)
    low, high = scales[:, :4], scales[:, 4:]
    top = low | ((high >> 4) << 6)  # bytes 0-3 and, since mins equal scales, 4-7 too
    rest = (high & 15) | ((high & 15) << 4)
    return np.concatenate([np.tile(head, (_POOL, 1)), top, top, rest, nibbles], axis=1)
