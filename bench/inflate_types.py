"""How far from the small model's weights each type is: the table in docs/inflate.md.

    python bench/inflate_types.py

Normally distributed weights are made Q4_0, as the small model's are, put into each type's blocks and read
back with gguf-py. Printed is the root mean square of the error as a share of that of the weights, with one,
two, and as many groups in a block as it holds.
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from hottune.models.codecs import GROUP, Codec, codec

_T = GGMLQuantizationType
_TYPES = (_T.F32, _T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0, _T.Q6_K, _T.Q5_K, _T.Q4_K, _T.F16, _T.BF16)
_COARSE = (_T.Q3_K, _T.Q2_K, _T.IQ4_NL, _T.IQ4_XS, _T.MXFP4)
_GROUPS = 16_000


def main() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((_GROUPS, GROUP)).astype(np.float32) * np.float32(0.02)
    blocks = quantize(weights, _T.Q4_0)
    d = np.ascontiguousarray(blocks[:, :2]).view(np.float16)
    q = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.int8) - 8
    meant = d.astype(np.float32) * q
    print(f"Q4_0 itself: {_share(meant, weights)}\n")
    print("| type | places | one group in a block | 2 groups | full |\n| --- | ---: | ---: | ---: | ---: |")
    for kind in (*_TYPES, *_COARSE):
        one = codec(kind)
        for places in (1, 2) if kind in _COARSE else (1,):
            most = max(1, one.groups // places)
            shares = [
                _share(_read_back(one, d, q, n, places), meant) if n <= most else ""
                for n in (1, 2, most if most > 2 else 9)
            ]
            print(f"| {kind.name} | {places} | {' | '.join(shares)} |")


def _read_back(
    one: Codec, d: NDArray[np.float16], q: NDArray[np.int8], n: int, places: int
) -> NDArray[np.float32]:
    """Return the weights as stored with `n` groups in a block, each in one place or in two."""
    scales, quants = d.reshape(-1, n), q.reshape(-1, n, GROUP)
    blocks = one.filler(np.random.default_rng(1), len(scales))
    if places == 1:
        one.put(blocks, range(n), scales, quants)
        return _values(one, blocks)[:, :n].reshape(-1, GROUP)
    if one.groups == 1:
        total = np.zeros(q.shape, np.float32)
        for term in range(2):
            one.put_terms(blocks, [(0, term)], scales, quants)
            total += _values(one, blocks)[:, 0]
        return total
    where = [(group, group % 2) for group in range(2 * n)]
    one.put_terms(blocks, where, np.repeat(scales, 2, axis=1), np.repeat(quants, 2, axis=1))
    return _values(one, blocks)[:, : 2 * n].reshape(-1, 2, GROUP).sum(axis=1)


def _values(one: Codec, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    if one.kind in (_T.F32, _T.F16):
        return blocks.view(np.float32 if one.kind is _T.F32 else np.float16).astype(np.float32)[:, None]
    return np.asarray(dequantize(blocks, one.kind), dtype=np.float32).reshape(len(blocks), one.groups, GROUP)


def _share(found: NDArray[np.float32], meant: NDArray[np.float32]) -> str:
    error = float(np.sqrt(((found - meant) ** 2).mean() / (meant**2).mean()))
    return f"{100 * error:.2f} %" if error else "exact"


if __name__ == "__main__":
    main()
