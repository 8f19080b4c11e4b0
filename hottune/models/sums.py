"""A weight as a sum of two, for types that are too coarse to hold it in one.

Where the small model's channels lie twice in a row (layout.py), a matrix may hold a weight in two places that
meet the same activation. The 16 values of Q4_0 are then

    q = 2 a + b,         a from -4 to 3, b 0 or 1             Q3_K, exactly
    q = (4 a - 8) + b,   a and b from 0 to 3                  Q2_K, exactly
    q ~ (12 v(a) + v(b)) / 197, v: the type's 16 values       IQ4_NL and IQ4_XS, within 0.025
    q m ~ 2^i v(a) + 2^j v(b), m: the scale's mantissa        MXFP4, 1.1 % in the mean over m

The last two are found by search among all pairs, once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from gguf.quants import IQ4_NL
from numpy.typing import NDArray

STEPS = np.arange(-8, 8, dtype=np.float64)  # Q4_0's values, in units of the scale
USUAL = np.exp(-((STEPS / 3.5) ** 2) / 2)  # how often each occurs, about
IQ4_MULTIPLES = (12, 1)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # MXFP4's values, by code
_MANTISSAS = 256  # classes of a scale's mantissa, each with a table of its own


@cache
def iq4_terms() -> tuple[np.float32, NDArray[np.uint8]]:
    """Return the unit by which IQ4's values times IQ4_MULTIPLES give -8 ... 7, and the codes, terms x 16."""
    values = np.array(IQ4_NL.kvalues, dtype=np.float64)
    first, second = IQ4_MULTIPLES
    sums = first * values[:, None] + second * values

    def error(unit: float) -> float:
        return float(np.abs(sums.ravel() * unit - STEPS[:, None]).min(axis=1).max())

    unit = min(np.linspace(1 / 220, 1 / 180, 400), key=error)
    best = np.abs(sums.ravel() * unit - STEPS[:, None]).argmin(axis=1)
    return np.float32(unit), np.stack(np.divmod(best, len(values))).astype(np.uint8)


@cache
def mxfp4_terms() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return exponents of two, mantissas x terms, and codes, mantissas x terms x 16.

    The n-th mantissa is 1 + (n + 1/2) / 256; the exponents are relative to the scale's own.
    """
    exponents = np.empty((_MANTISSAS, 2), dtype=np.int16)
    codes = np.empty((_MANTISSAS, 2, len(STEPS)), dtype=np.uint8)
    pairs = [(high, high - below) for high in range(-1, 4) for below in range(6)]
    sums = {(i, j): (E2M1[:, None] * 2.0**i + E2M1 * 2.0**j).ravel() for i, j in pairs}
    for number in range(_MANTISSAS):
        wanted = STEPS * (1 + (number + 0.5) / _MANTISSAS)
        tried = {}
        for pair in pairs:
            distance = np.abs(sums[pair] - wanted[:, None])
            best = distance.argmin(axis=1)
            tried[pair] = float((USUAL * distance.min(axis=1) ** 2).sum()), best
        exponents[number] = found = min(tried, key=lambda pair: tried[pair][0])
        codes[number] = np.stack(np.divmod(tried[found[0], found[1]][1], len(E2M1)))
    return exponents, codes


def mxfp4_block(d: NDArray[Any], q: NDArray[Any], term: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return one term's exponent byte (blocks x 1) and codes (blocks x 32).

    Args:
        d: scales, blocks x 1.
        q: whole numbers from -8 to 7, blocks x 32.
        term: 0 or 1.

    A block's scale is 2^(byte - 127), as in the OCP specification of microscaling formats; gguf's table of
    values is doubled and its scale halved, which is the same.
    """
    exponents, codes = mxfp4_terms()
    fraction, exponent = np.frexp(np.abs(d.astype(np.float64)))  # from 1/2 to 1
    number = np.minimum(((2 * fraction - 1) * _MANTISSAS).astype(int), _MANTISSAS - 1)[:, 0]
    number = np.maximum(number, 0)
    byte = np.clip(exponents[number, term][:, None] + exponent - 1 + 127, 1, 254)
    found = np.take_along_axis(codes[number, term], (q + 8).astype(int), axis=1)
    negative = (d < 0) & (found & 7 > 0)
    found = np.where(negative, found ^ 8, found)
    found = np.where(d == 0, 0, found)
    return byte.astype(np.uint8), found.astype(np.uint8)
