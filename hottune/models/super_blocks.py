"""Codecs of the types whose block is 256 weights: Q2_K to Q6_K and IQ4_XS.

Where all groups in a block have one scale, the block's own can be theirs: Q4_K, Q5_K and Q6_K then hold Q4_0
weights exactly, Q2_K and Q3_K do with both terms of a sum. Different scales share a block only approximately.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from hottune.models.codecs import (
    GROUP,
    Codec,
    Fidelity,
    Raw,
    Terms,
    nibbles,
    nonlinear_codes,
    random_scales,
)
from hottune.models.sums import IQ4_MULTIPLES, iq4_terms

Floats = NDArray[np.float32]


class _Super(Codec):
    """A block of 256: where its float16 scales lie; all other bytes may be random."""

    scales: ClassVar[slice]

    def filler(self, rng: np.random.Generator, n_blocks: int) -> Raw:
        blocks = rng.integers(0, 256, (n_blocks, self.n_bytes), dtype=np.uint8)
        n_scales = (self.scales.stop - self.scales.start) // 2
        blocks[:, self.scales] = random_scales(rng, n_blocks, n_scales)
        return blocks

    def _set_scales(self, blocks: Raw, *values: NDArray[Any]) -> None:
        blocks[:, self.scales] = np.stack(values, axis=1).astype("<f2").view(np.uint8)


class _Affine(_Super):
    """Weights are scale * q - minimum, scales and minimums being small multiples of two float16."""

    levels: ClassVar[int]  # highest q
    steps: ClassVar[int]  # highest multiple
    part: ClassVar[int]  # weights that share a multiple

    def put(self, blocks: Raw, groups: Sequence[int], d: NDArray[Any], q: NDArray[Any]) -> None:
        if self.fidelity is Fidelity.EXACT and _shared(d):
            for group in range(self.groups):
                self._set_parts(blocks, group, np.ones((len(blocks), 1), int), np.full((len(blocks), 1), 8))
            for at, group in enumerate(groups):
                self._set_quants(blocks, group, q[:, at].astype(np.int16) + 8)
            self._set_scales(blocks, d[:, 0], d[:, 0])
        else:
            self._put_several(blocks, groups, d, q)

    def _put_several(self, blocks: Raw, groups: Sequence[int], d: NDArray[Any], q: NDArray[Any]) -> None:
        values = _values(d, q).reshape(len(blocks), len(groups) * GROUP // self.part, self.part)
        if self.fidelity is Fidelity.EXACT:  # at least 15 levels: the small model's own grid
            wanted = np.abs(d.astype(np.float32))
            low = np.where(d < 0, np.float32(-7), np.float32(-8)) * wanted
        else:
            low = np.minimum(values.min(axis=2), 0)
            wanted = (np.maximum(values.max(axis=2), 0) - low) / self.levels
        unit, low_unit = _unit(wanted, self.steps), _unit(-low, self.steps)
        scales, minimums = _multiples(wanted, unit, self.steps), _multiples(-low, low_unit, self.steps)
        step = np.maximum(unit[:, None] * scales, np.float32(1e-30))
        quants = np.rint((values + (low_unit[:, None] * minimums)[..., None]) / step[..., None])
        quants = np.clip(quants, 0, self.levels).astype(np.int16).reshape(len(blocks), len(groups), GROUP)
        each = GROUP // self.part
        for at, group in enumerate(groups):
            mine = slice(at * each, (at + 1) * each)
            self._set_parts(blocks, group, scales[:, mine], minimums[:, mine])
            self._set_quants(blocks, group, quants[:, at])
        self._set_scales(blocks, unit, low_unit)

    def clear(self, blocks: Raw, groups: Sequence[int]) -> None:
        none = np.zeros((len(blocks), GROUP // self.part), int)
        for group in groups:
            self._set_parts(blocks, group, none, none)

    @abstractmethod
    def _set_parts(self, blocks: Raw, group: int, scales: NDArray[Any], minimums: NDArray[Any]) -> None:
        """Write the multiples of one group."""

    @abstractmethod
    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        """Write the 32 quants of one group."""


class _Q2K(_Affine):
    fidelity, sum_fidelity = Fidelity.REQUANTIZED, Fidelity.EXACT
    levels, steps, part = 3, 15, 16
    scales = slice(80, 84)

    def put_terms(self, blocks: Raw, places: Terms, d: NDArray[Any], q: NDArray[Any]) -> None:
        # d (4 a - 8) and d b; where several scales share the block, -d (4 a - 7) and -d b for negative ones.
        terms = np.array([term for _, term in places])
        scale, low = np.where(terms == 0, 4, 1), np.where(terms == 0, 8, 0)
        if _shared(d):
            unit = low_unit = d[:, 0].astype(np.float32)
            scales, minimums = (np.broadcast_to(each, d.shape) for each in (scale, low))
            whole = q.astype(np.int16) + 8
        else:
            size, negative = np.abs(d.astype(np.float32)), d < 0
            lowest = np.where(negative & (terms == 0), np.float32(7), low.astype(np.float32)) * size
            unit, low_unit = _unit(scale * size, self.steps), _unit(lowest, self.steps)
            scales = _multiples(scale * size, unit, self.steps)
            minimums = _multiples(lowest, low_unit, self.steps)
            whole = np.where(negative[..., None], 7 - q.astype(np.int16), q.astype(np.int16) + 8)
        for at, (group, term) in enumerate(places):
            self._set_parts(blocks, group, scales[:, [at]], minimums[:, [at]])
            self._set_quants(blocks, group, whole[:, at] >> 2 if term == 0 else whole[:, at] & 3)
        self._set_scales(blocks, unit, low_unit)

    def _set_parts(self, blocks: Raw, group: int, scales: NDArray[Any], minimums: NDArray[Any]) -> None:
        blocks[:, 2 * group : 2 * group + 2] = scales | (minimums << 4)

    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        half, quarter = divmod(group, 4)
        _set_bits(blocks[:, 16 + 32 * half : 48 + 32 * half], 2 * quarter, 2, q)


class _Q4K(_Affine):
    levels, steps, part = 15, 63, 32
    scales = slice(0, 4)
    quants = 16  # byte where they begin

    def _set_parts(self, blocks: Raw, group: int, scales: NDArray[Any], minimums: NDArray[Any]) -> None:
        packed = blocks[:, 4:16]
        scale, minimum = scales[:, 0], minimums[:, 0]
        if group < 4:
            _set_bits(packed[:, group], 0, 6, scale)
            _set_bits(packed[:, group + 4], 0, 6, minimum)
        else:
            packed[:, group + 4] = (scale & 15) | ((minimum & 15) << 4)
            _set_bits(packed[:, group - 4], 6, 2, scale >> 4)
            _set_bits(packed[:, group], 6, 2, minimum >> 4)

    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        at = self.quants + 32 * (group // 2)
        _set_bits(blocks[:, at : at + 32], 4 * (group % 2), 4, q & 15)


class _Q5K(_Q4K):
    levels = 31
    quants = 48

    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        super()._set_quants(blocks, group, q)
        _set_bits(blocks[:, 16:48], group, 1, q >> 4)


class _Symmetric(_Super):
    """Weights are d * multiple * q, the multiple with a sign."""

    steps: ClassVar[int]

    def put(self, blocks: Raw, groups: Sequence[int], d: NDArray[Any], q: NDArray[Any]) -> None:
        scale = self._scale_of(d, q)
        if (self.fidelity is Fidelity.EXACT and _shared(d)) or scale.shape[1] == 1:
            unit, multiples = scale[:, 0], np.ones(scale.shape, int)
            for group in range(self.groups):
                self._set_part(blocks, group, np.ones((len(blocks), 1), int))
        else:
            unit = _unit(np.abs(scale), self.steps)
            multiples = _multiples(scale, unit, self.steps)
        self._set_scales(blocks, unit)
        each = scale.shape[1] // len(groups)
        step = unit[:, None] * multiples
        for at, group in enumerate(groups):
            mine = slice(at * each, (at + 1) * each)
            self._set_part(blocks, group, multiples[:, mine])
            self._set_quants(blocks, group, self._codes(d[:, at], q[:, at], step[:, mine]))

    def clear(self, blocks: Raw, groups: Sequence[int]) -> None:
        for group in groups:
            self._set_part(blocks, group, np.zeros((len(blocks), 1), int))

    def _scale_of(self, d: NDArray[Any], q: NDArray[Any]) -> Floats:
        """Return the scale that each group (or half of one) wants, blocks x scales."""
        return d.astype(np.float32)

    @abstractmethod
    def _codes(self, d: NDArray[Any], q: NDArray[Any], step: Floats) -> NDArray[Any]:
        """Return the stored quants of one group, with `step` as its scales (or those of its halves)."""

    @abstractmethod
    def _set_part(self, blocks: Raw, group: int, multiples: NDArray[Any]) -> None:
        """Write the multiples of one group: one, or one for each half."""

    @abstractmethod
    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        """Write the 32 quants of one group."""


class _Q6K(_Symmetric):
    steps = 127
    scales = slice(208, 210)

    def _codes(self, d: NDArray[Any], q: NDArray[Any], step: Floats) -> NDArray[Any]:
        return q.astype(np.int16) + 32

    def _set_part(self, blocks: Raw, group: int, multiples: NDArray[Any]) -> None:
        blocks[:, 192 + 2 * group : 194 + 2 * group] = multiples.astype(np.int8).view(np.uint8)

    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        half, quarter = divmod(group, 4)
        low = 64 * half + 32 * (quarter % 2)
        _set_bits(blocks[:, low : low + 32], 4 * (quarter // 2), 4, q & 15)
        _set_bits(blocks[:, 128 + 32 * half : 160 + 32 * half], 2 * quarter, 2, q >> 4)


class _Summed(_Symmetric):
    """A symmetric type that holds a weight in two groups of a block, with different multiples."""

    term_multiples: ClassVar[tuple[int, int]]

    def put_terms(self, blocks: Raw, places: Terms, d: NDArray[Any], q: NDArray[Any]) -> None:
        multiple = np.array([self.term_multiples[term] for _, term in places])
        scale, codes = self._terms()
        base = d.astype(np.float32) * scale
        if _shared(d):
            unit, multiples = base[:, 0], np.broadcast_to(multiple, d.shape)
        else:
            wanted = base * multiple.astype(np.float32)
            unit = _unit(np.abs(wanted), self.steps)
            multiples = _multiples(wanted, unit, self.steps)
        self._set_scales(blocks, unit)
        for at, (group, term) in enumerate(places):
            self._set_part(blocks, group, multiples[:, [at]])
            self._set_quants(blocks, group, codes[term][q[:, at].astype(np.int16) + 8])

    @abstractmethod
    def _terms(self) -> tuple[np.float32, NDArray[np.uint8]]:
        """Return the scale of multiple 1, in units of the small model's, and the quants, terms x 16."""


class _Q3K(_Summed):
    fidelity, sum_fidelity = Fidelity.REQUANTIZED, Fidelity.EXACT
    steps, term_multiples = 31, (2, 1)
    scales = slice(108, 110)

    def _scale_of(self, d: NDArray[Any], q: NDArray[Any]) -> Floats:
        # The weight of largest size becomes -4, the far end of the range.
        halves = _values(d, q).reshape(len(d), -1, 16)
        largest = np.abs(halves).argmax(axis=2)[..., None]
        return np.asarray(np.take_along_axis(halves, largest, axis=2)[..., 0] / -4, dtype=np.float32)

    def _codes(self, d: NDArray[Any], q: NDArray[Any], step: Floats) -> NDArray[Any]:
        safe = np.where(step == 0, np.float32(1), step)
        quants = np.rint(_values(d, q).reshape(len(d), 2, 16) / safe[..., None])
        return np.clip(quants, -4, 3).astype(np.int16).reshape(len(d), GROUP) + 4

    def _terms(self) -> tuple[np.float32, NDArray[np.uint8]]:
        halves = np.stack(np.divmod(np.arange(-8, 8), 2))
        return np.float32(1), (halves + 4).astype(np.uint8)

    def _set_part(self, blocks: Raw, group: int, multiples: NDArray[Any]) -> None:
        six_bits = np.broadcast_to(multiples + 32, (len(blocks), 2))
        for half in range(2):
            part = 2 * group + half
            _set_bits(blocks[:, 96 + part % 8], 4 * (part // 8), 4, six_bits[:, half] & 15)
            _set_bits(blocks[:, 104 + part % 4], 2 * (part // 4), 2, six_bits[:, half] >> 4)

    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        half, quarter = divmod(group, 4)
        _set_bits(blocks[:, 32 + 32 * half : 64 + 32 * half], 2 * quarter, 2, q & 3)
        _set_bits(blocks[:, :32], group, 1, q >> 2)


class _Iq4Xs(_Summed):
    fidelity, sum_fidelity = Fidelity.REQUANTIZED, Fidelity.NEAR
    steps, term_multiples = 31, IQ4_MULTIPLES
    scales = slice(0, 2)

    def _scale_of(self, d: NDArray[Any], q: NDArray[Any]) -> Floats:
        return d.astype(np.float32) * nonlinear_codes()[0]

    def _codes(self, d: NDArray[Any], q: NDArray[Any], step: Floats) -> NDArray[Any]:
        codes: NDArray[Any] = nonlinear_codes()[1][q + 8]
        return codes

    def _terms(self) -> tuple[np.float32, NDArray[np.uint8]]:
        return iq4_terms()

    def _set_part(self, blocks: Raw, group: int, multiples: NDArray[Any]) -> None:
        six_bits = multiples[:, 0] + 32
        _set_bits(blocks[:, 4 + group // 2], 4 * (group % 2), 4, six_bits & 15)
        _set_bits(blocks[:, 2 + group // 4], 2 * (group % 4), 2, six_bits >> 4)

    def _set_quants(self, blocks: Raw, group: int, q: NDArray[Any]) -> None:
        blocks[:, 8 + 16 * group : 24 + 16 * group] = nibbles(q)


def _shared(d: NDArray[Any]) -> bool:
    """Return whether all groups of a block have the same scale, in every block."""
    return bool((d == d[:, :1]).all())


def _values(d: NDArray[Any], q: NDArray[Any]) -> Floats:
    return np.asarray(d.astype(np.float32)[..., None] * q.astype(np.float32))


def _unit(sizes: Floats, steps: int) -> Floats:
    """Return the float16 (as float32) of which the largest size of each block is `steps` multiples."""
    unit: Floats = (sizes.max(axis=1) / steps).astype(np.float16).astype(np.float32)
    return unit


def _multiples(sizes: Floats, unit: Floats, steps: int) -> NDArray[np.int64]:
    """Return the sizes as whole multiples of their block's unit, `steps` at most."""
    safe = np.where(unit == 0, np.float32(1), unit)
    multiples = np.rint(sizes / safe[:, None])
    return np.asarray(np.clip(multiples, -steps, steps)).astype(np.int64)


def _set_bits(field: NDArray[np.uint8], shift: int, n_bits: int, values: NDArray[Any]) -> None:
    """Replace `n_bits` of each byte, from bit `shift` on."""
    mask = np.uint8(((1 << n_bits) - 1) << shift)
    field &= ~mask
    field |= (values.astype(np.uint8) << np.uint8(shift)) & mask


_T = GGMLQuantizationType
SUPER_BLOCKS: dict[GGMLQuantizationType, type[Codec]] = {
    _T.Q2_K: _Q2K,
    _T.Q3_K: _Q3K,
    _T.Q4_K: _Q4K,
    _T.Q5_K: _Q5K,
    _T.Q6_K: _Q6K,
    _T.IQ4_XS: _Iq4Xs,
}
