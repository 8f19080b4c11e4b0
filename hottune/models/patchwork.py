"""A large matrix with a small one in it, made piece by piece: random blocks with the small model's let in."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from hottune.models.base_model import Groups
from hottune.models.codecs import GROUP, Codec, Fidelity, Raw, codec
from hottune.models.layout import Places

_PIECE_BYTES = 8 << 20
_POOL = 1 << 14  # blocks to draw from, with replacement
_WORKERS = min(8, os.cpu_count() or 1)


class Pools:
    """Random blocks of each type to draw from, some with groups that are zero."""

    def __init__(self, seed: int = 1) -> None:
        self._seed = seed
        self._rows: dict[tuple[GGMLQuantizationType, tuple[int, ...]], NDArray[Any]] = {}

    def draw(self, rng: np.random.Generator, one: Codec, zero: tuple[int, ...], n_blocks: int) -> Raw:
        """Return random blocks, one a row, in which the groups `zero` are zero."""
        rows = self.rows(one, zero)
        drawn = rows.take(rng.integers(0, _POOL, n_blocks, dtype=np.uint16), axis=0, mode="wrap")
        return drawn.view(np.uint8)

    def rows(self, one: Codec, zero: tuple[int, ...]) -> NDArray[Any]:
        """Return the blocks to draw from, as wide numbers, which copy faster; made when first asked for."""
        key = (one.kind, zero)
        if key not in self._rows:
            blocks = one.filler(np.random.default_rng([self._seed, one.kind]), _POOL)
            if zero:
                one.clear(blocks, zero)
            words = next(word for word in (8, 4, 2, 1) if one.n_bytes % word == 0)
            self._rows[key] = np.ascontiguousarray(blocks).view(f"u{words}")
        return self._rows[key]


@dataclass(frozen=True)
class Patchwork:
    """How a matrix is laid out; positions count groups of 32 in a row.

    Attributes:
        width: of a row, in weights.
        source: the small matrix.
        places: where the small matrix's groups lie. Types that hold a weight only as a sum of two have its
            second term at the second places; others are zero there.
        row_of: for each row, the small matrix's row, or -1 for a row whose result must be zero.
        live: positions whose activation is not zero; where nothing lies, they are zero in all rows.

    A row of -1 is zero at the places and at `live`. Everything else meets activations that are exactly zero,
    and is random.
    """

    name: str
    kind: GGMLQuantizationType
    width: int
    source: Groups
    places: Places
    row_of: NDArray[np.int64]
    live: Sequence[int] = ()

    @property
    def fidelity(self) -> Fidelity:
        """How exactly the small matrix is kept."""
        one = codec(self.kind)
        by_block = self._by_block(one)
        crowded = any(len({small for small, _ in groups.values()}) > 1 for groups in by_block.values())
        if crowded and (self.row_of >= 0).any():
            return Fidelity.REQUANTIZED
        return (self._as_sum(one) and one.sum_fidelity) or one.fidelity

    def _as_sum(self, one: Codec) -> bool:
        return bool(self.places.seconds) and one.sum_fidelity is not None

    def pieces(self, pools: Pools) -> Iterator[Raw]:
        """Return the matrix's bytes in pieces of some MiB, made by several threads, in order."""
        one = codec(self.kind)
        at_once = max(1, _PIECE_BYTES // (self.width // one.weights * one.n_bytes))
        pools.rows(one, ())
        for zero, _ in self._classes(one, self._silenced(one)):
            pools.rows(one, zero)  # before the threads, so that each is made once
        starts = range(0, len(self.row_of), at_once)
        return ahead([partial(self._piece, one, pools, start, at_once) for start in starts])

    def _piece(self, one: Codec, pools: Pools, start: int, at_once: int) -> Raw:
        rng = np.random.default_rng([*self.name.encode(), start])
        row_of = self.row_of[start : start + at_once]
        per_row = self.width // one.weights
        inside = np.flatnonzero(row_of >= 0)
        if len(inside) == len(row_of):
            return self._small_rows(one, pools, rng, row_of)
        rows = self._random_rows(one, pools, rng, len(row_of), self._silenced(one))
        if len(inside):
            rows[inside] = self._small_rows(one, pools, rng, row_of[inside])
        return rows.reshape(len(row_of), per_row, one.n_bytes)

    def _random_rows(
        self,
        one: Codec,
        pools: Pools,
        rng: np.random.Generator,
        n_rows: int,
        zero: dict[int, tuple[int, ...]],
    ) -> Raw:
        classes = self._classes(one, zero)
        if len(classes) == 1:
            ((groups, blocks),) = classes
            return pools.draw(rng, one, groups, n_rows * len(blocks)).reshape(n_rows, len(blocks), -1)
        rows = np.empty((n_rows, self.width // one.weights, one.n_bytes), dtype=np.uint8)
        for groups, blocks in classes:
            rows[:, blocks] = pools.draw(rng, one, groups, n_rows * len(blocks)).reshape(
                n_rows, len(blocks), -1
            )
        return rows

    def _small_rows(
        self, one: Codec, pools: Pools, rng: np.random.Generator, small_rows: NDArray[np.int64]
    ) -> Raw:
        """Return rows that hold the small model's: zero where they must be, random elsewhere."""
        taken = {position for position, _, _ in self._placed(one)}
        live = _per_block(one, [position for position in self._alive() if position not in taken])
        rows = self._random_rows(one, pools, rng, len(small_rows), live)
        alike: dict[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], list[int]] = {}
        by_block = self._by_block(one)
        for block, mine in by_block.items():
            terms = tuple(term for _, term in mine.values())
            alike.setdefault((tuple(mine), terms, live.get(block, ())), []).append(block)
        for (groups, terms, zero), blocks in alike.items():
            wanted = np.array([[by_block[block][group][0] for group in groups] for block in blocks])
            d = self.source.d[small_rows[:, None, None], wanted]
            q = self.source.q[small_rows[:, None, None], wanted]
            patch = np.ascontiguousarray(rows[:, blocks]).reshape(-1, one.n_bytes)
            d, q = d.reshape(-1, len(groups)), q.reshape(-1, len(groups), GROUP)
            if self._as_sum(one):
                one.put_terms(patch, list(zip(groups, terms, strict=True)), d, q)
            else:
                one.put(patch, groups, d, q)
            if zero:
                one.clear(patch, zero)
            rows[:, blocks] = patch.reshape(len(small_rows), len(blocks), -1)
        return rows

    def _by_block(self, one: Codec) -> dict[int, dict[int, tuple[int, int]]]:
        """Return for each block its groups that hold the small model's: which of them, and which term."""
        found: dict[int, dict[int, tuple[int, int]]] = {}
        for position, small, term in sorted(self._placed(one)):
            found.setdefault(position // one.groups, {})[position % one.groups] = small, term
        return found

    def _placed(self, one: Codec) -> list[tuple[int, int, int]]:
        """Return what of the small model is written where: position, its group, which term."""
        terms = (self.places.first, self.places.seconds if self._as_sum(one) else ())
        return [(position, small, term) for term, places in enumerate(terms) for position, small in places]

    def _alive(self) -> list[int]:
        """Return all positions whose activation is not zero."""
        return [*(position for position, _ in self.places.everywhere), *self.live]

    def _silenced(self, one: Codec) -> dict[int, tuple[int, ...]]:
        """Return for each block the groups that are zero in a row whose result must be zero."""
        return _per_block(one, self._alive())

    def _classes(
        self, one: Codec, zero: dict[int, tuple[int, ...]]
    ) -> list[tuple[tuple[int, ...], list[int]]]:
        """Return the blocks of a row, put together by which of their groups are zero."""
        classes: dict[tuple[int, ...], list[int]] = {}
        for block in range(self.width // one.weights):
            classes.setdefault(zero.get(block, ()), []).append(block)
        return list(classes.items())


def _per_block(one: Codec, positions: Sequence[int]) -> dict[int, tuple[int, ...]]:
    found: dict[int, list[int]] = {}
    for position in sorted(set(positions)):
        found.setdefault(position // one.groups, []).append(position % one.groups)
    return {block: tuple(groups) for block, groups in found.items()}


def ahead(makers: Sequence[Callable[[], Raw]]) -> Iterator[Raw]:
    """Call the makers in threads, a few ahead of the reader, and return their results in order."""
    if len(makers) < 2 or _WORKERS < 2:
        yield from (make() for make in makers)
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting: deque[Future[Raw]] = deque()
        rest = iter(makers)
        try:
            for make in rest:
                waiting.append(pool.submit(make))
                if len(waiting) >= 2 * _WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
