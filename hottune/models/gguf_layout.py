"""Whether a tensor list can be true: names once each, tensors one after another as llama.cpp wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

_LARGEST = (1 << 63) - 1


class Tensor(Protocol):
    """What the check needs to know of a tensor."""

    @property
    def name(self) -> str:
        """Name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def offset(self) -> int:
        """Bytes from the start of the data section."""

    @property
    def n_bytes(self) -> int:
        """Size."""


def contradiction(tensors: Iterable[Tensor], alignment: int) -> str:
    """Return what is wrong with a tensor list, in words; "" when nothing is.

    Each tensor begins where the one before ended, rounded up to the alignment: gguf_init_from_file in
    llama.cpp's ggml/src/gguf.cpp refuses everything else. So nothing overlaps, and the sizes add up.
    """
    names: set[str] = set()
    expected = 0
    for tensor in tensors:
        if tensor.name in names:
            return f"it has two tensors {tensor.name!r}"
        names.add(tensor.name)
        if math.prod(tensor.shape) > _LARGEST or max(tensor.shape, default=0) > _LARGEST:
            return f"tensor {tensor.name!r} claims {' x '.join(map(str, tensor.shape))} weights"
        if tensor.offset != expected:
            return f"tensor {tensor.name!r} has offset {tensor.offset}, where the sizes give {expected}"
        expected = -(-(tensor.offset + tensor.n_bytes) // alignment) * alignment
        if expected > _LARGEST:
            return f"its tensors claim {expected} bytes"
    return ""
