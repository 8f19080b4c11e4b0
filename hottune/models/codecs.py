"""How 32 weights of the small model are put into blocks of another type, and how blocks are made to be zero.

The small model's weights are Q4_0: 32 whole numbers `q` from -8 to 7 times one scale `d`. Every type below
can take such a group; most of them without any loss. A codec works on blocks as rows of bytes and changes
only the 32 weights it is told, so that the rest of a block can hold random weights (`filler`).

Layouts as in llama.cpp's ggml/src/ggml-common.h; the tests read every one back with gguf-py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import IQ4_NL, quantize
from numpy.typing import NDArray

from hottune.models.sums import IQ4_MULTIPLES, STEPS, USUAL, iq4_terms, mxfp4_block

GROUP = 32  # weights that share a scale in the small model
_FILLER_SCALE = 0.01  # of random blocks; they meet activations of zero, so that only "small" matters

Raw = NDArray[np.uint8]
Terms = Sequence[tuple[int, int]]


class Fidelity(StrEnum):
    """How exactly a type holds Q4_0 weights."""

    EXACT = "exact"
    ROUNDED = "rounded"  # to the type's mantissa: BF16 and F16
    NEAR = "near"  # as a sum of two of the type's values
    REQUANTIZED = "requantized"  # to the nearest that the type has


class Codec(ABC):
    """One ggml type: how groups of 32 weights lie in its blocks.

    Attributes:
        fidelity: of a weight in one place.
        sum_fidelity: of a weight as the sum of two (sums.py); None for types that need no second place.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    sum_fidelity: ClassVar[Fidelity | None] = None

    def __init__(self, kind: GGMLQuantizationType) -> None:
        self.kind = kind
        block, n_bytes = GGML_QUANT_SIZES[kind]
        self.weights = max(block, GROUP)  # of a block; numbers without a block count as blocks of 32
        self.n_bytes = n_bytes * (self.weights // block)

    @property
    def groups(self) -> int:
        """Groups of 32 in a block."""
        return self.weights // GROUP

    @abstractmethod
    def filler(self, rng: np.random.Generator, n_blocks: int) -> Raw:
        """Return random, finite blocks, one a row."""

    @abstractmethod
    def put(self, blocks: Raw, groups: Sequence[int], d: NDArray[Any], q: NDArray[Any]) -> None:
        """Write weights into `groups` of every block; the block's other groups keep random weights.

        Args:
            blocks: blocks x bytes, changed in place.
            groups: which groups of 32 of the block, from 0.
            d: scales, blocks x groups, float16.
            q: whole numbers from -8 to 7, blocks x groups x 32.
        """

    def put_terms(self, blocks: Raw, places: Terms, d: NDArray[Any], q: NDArray[Any]) -> None:
        """Write terms of weights as `put` writes weights; for types with a `sum_fidelity`.

        Args:
            blocks: as for `put`.
            places: pairs (group of 32 of the block, which of the two terms it gets).
            d: scales of the weights, blocks x places, float16.
            q: whole numbers of the weights, blocks x places x 32.
        """
        raise NotImplementedError(self.kind.name)

    @abstractmethod
    def clear(self, blocks: Raw, groups: Sequence[int]) -> None:
        """Make `groups` of every block exactly zero; as many bits as possible stay random."""


class _Single(Codec):
    """A type whose block is one group: `put` replaces the block."""

    zeroed: ClassVar[slice] = slice(0, 2)  # bytes of the scale; without it the block is zero

    def filler(self, rng: np.random.Generator, n_blocks: int) -> Raw:
        blocks = rng.integers(0, 256, (n_blocks, self.n_bytes), dtype=np.uint8)
        scales = (self.zeroed.stop - self.zeroed.start) // 2
        blocks[:, self.zeroed] = random_scales(rng, n_blocks, scales)
        return blocks

    def put(self, blocks: Raw, groups: Sequence[int], d: NDArray[Any], q: NDArray[Any]) -> None:
        blocks[:] = self.encoded(d.reshape(-1, 1).astype("<f2"), q.reshape(-1, GROUP).astype(np.int16))

    def clear(self, blocks: Raw, groups: Sequence[int]) -> None:
        blocks[:, self.zeroed] = 0

    @abstractmethod
    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        """Return whole blocks; `d` is blocks x 1, `q` blocks x 32."""


class _Q40(_Single):
    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return _joined(d, nibbles(q + 8))


class _Q41(_Single):
    zeroed = slice(0, 4)

    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return _joined(d, _lowest(d), nibbles(q + 8))


class _Q50(_Single):
    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return _joined(d, _fifth_bits(q + 16), nibbles((q + 16) & 15))


class _Q51(_Single):
    zeroed = slice(0, 4)

    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return _joined(d, _lowest(d), np.zeros((len(q), 4), np.uint8), nibbles(q + 8))


class _Q80(_Single):
    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return _joined(d, q.astype(np.int8))


class _Float(_Single):
    """F32, F16 and BF16, taken 32 at a time."""

    def __init__(self, kind: GGMLQuantizationType) -> None:
        super().__init__(kind)
        exact = kind is GGMLQuantizationType.F32
        self.fidelity = Fidelity.EXACT if exact else Fidelity.ROUNDED  # type: ignore[misc]

    def filler(self, rng: np.random.Generator, n_blocks: int) -> Raw:
        return self._bytes(rng.standard_normal((n_blocks, GROUP), dtype=np.float32) * np.float32(0.02))

    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return self._bytes(d.astype(np.float32) * q.astype(np.float32))

    def clear(self, blocks: Raw, groups: Sequence[int]) -> None:
        blocks[:] = 0

    def _bytes(self, values: NDArray[np.float32]) -> Raw:
        if self.kind is GGMLQuantizationType.BF16:
            return np.ascontiguousarray(quantize(values, self.kind)).view(np.uint8)
        return values.astype("<f4" if self.kind is GGMLQuantizationType.F32 else "<f2").view(np.uint8)


class _Summed(_Single):
    """A type that holds a weight in two blocks."""

    fidelity = Fidelity.REQUANTIZED
    sum_fidelity = Fidelity.NEAR

    def put_terms(self, blocks: Raw, places: Terms, d: NDArray[Any], q: NDArray[Any]) -> None:
        ((_, term),) = places
        blocks[:] = self.encoded_term(d, q.reshape(-1, GROUP).astype(np.int16), term)

    @abstractmethod
    def encoded_term(self, d: NDArray[Any], q: NDArray[Any], term: int) -> Raw:
        """Return whole blocks with one of two terms; `d` is blocks x 1, `q` blocks x 32."""


class _Iq4Nl(_Summed):
    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        factor, codes = nonlinear_codes()
        scale = (d.astype(np.float32) * factor).astype("<f2")
        return _joined(scale, nibbles(codes[q + 8]))

    def encoded_term(self, d: NDArray[Any], q: NDArray[Any], term: int) -> Raw:
        unit, codes = iq4_terms()
        scale = (d.astype(np.float32) * unit * IQ4_MULTIPLES[term]).astype("<f2")
        return _joined(scale, nibbles(codes[term][q + 8]))


class _Mxfp4(_Summed):
    def filler(self, rng: np.random.Generator, n_blocks: int) -> Raw:
        blocks = rng.integers(0, 256, (n_blocks, self.n_bytes), dtype=np.uint8)
        blocks[:, 0] = rng.integers(118, 122, n_blocks)  # powers of two about 2^-8
        return blocks

    def encoded(self, d: NDArray[Any], q: NDArray[Any]) -> Raw:
        return np.asarray(quantize(d.astype(np.float32) * q.astype(np.float32), self.kind), dtype=np.uint8)

    def encoded_term(self, d: NDArray[Any], q: NDArray[Any], term: int) -> Raw:
        exponent, codes = mxfp4_block(d, q, term)
        return _joined(exponent, nibbles(codes))

    def clear(self, blocks: Raw, groups: Sequence[int]) -> None:
        blocks[:, 1:] = 0


@cache
def nonlinear_codes() -> tuple[np.float32, NDArray[np.uint8]]:
    """Return the scale factor and the codes with which IQ4's uneven values come closest to -8 ... 7."""
    values = np.array(IQ4_NL.kvalues, dtype=np.float64)

    def error(factor: float) -> float:
        return float((USUAL * np.abs(values * factor - STEPS[:, None]).min(axis=1) ** 2).sum())

    best = min(np.linspace(1 / 20, 1 / 12, 400), key=error)
    codes = np.abs(values * best - STEPS[:, None]).argmin(axis=1).astype(np.uint8)
    return np.float32(best), codes


def random_scales(rng: np.random.Generator, n_blocks: int, n_scales: int) -> Raw:
    """Return float16 scales as bytes, blocks x 2 n_scales."""
    scales = rng.uniform(0.5, 1.5, (n_blocks, n_scales)) * _FILLER_SCALE
    return scales.astype("<f2").view(np.uint8)


def nibbles(q: NDArray[Any]) -> Raw:
    """Pack blocks x 32 numbers below 16 as ggml's 32-blocks do: weight i with weight i + 16."""
    packed: Raw = (q[:, :16] | (q[:, 16:] << 4)).astype(np.uint8)
    return packed


def _lowest(d: NDArray[Any]) -> NDArray[Any]:
    """Return -8 d, exactly: a power of two times a float16."""
    return (d.astype(np.float32) * -8).astype("<f2")


def _fifth_bits(q: NDArray[Any]) -> Raw:
    return np.packbits((q >> 4).astype(np.uint8), axis=1, bitorder="little")


def _joined(*parts: NDArray[Any]) -> Raw:
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def codec(kind: GGMLQuantizationType) -> Codec:
    """Return the codec of a type; KeyError for one that has none (see `writable_type`)."""
    return _codecs()[kind](kind)


def writable_type(kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the type itself, or for a type without a codec the one of nearest size whose rows are as free.

    Types without one are those with a codebook of vectors (IQ1 to IQ3) and the ternary ones.
    """
    known = _codecs()
    if kind in known:
        return kind
    block, n_bytes = GGML_QUANT_SIZES[kind]

    def distance(other: GGMLQuantizationType) -> float:
        other_block, other_bytes = GGML_QUANT_SIZES[other]
        return abs(other_bytes / other_block - n_bytes / block)

    return min((other for other in known if block % GGML_QUANT_SIZES[other][0] == 0), key=distance)


@cache
def _codecs() -> dict[GGMLQuantizationType, type[Codec]]:
    from hottune.models.super_blocks import SUPER_BLOCKS  # it builds on this module

    return _SINGLES | SUPER_BLOCKS


_T = GGMLQuantizationType
_SINGLES: dict[GGMLQuantizationType, type[Codec]] = {
    _T.F32: _Float,
    _T.F16: _Float,
    _T.BF16: _Float,
    _T.Q4_0: _Q40,
    _T.Q4_1: _Q41,
    _T.Q5_0: _Q50,
    _T.Q5_1: _Q51,
    _T.Q8_0: _Q80,
    _T.IQ4_NL: _Iq4Nl,
    _T.MXFP4: _Mxfp4,
}
