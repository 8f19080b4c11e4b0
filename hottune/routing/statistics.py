"""What a routing says about caches: repeats, the LRU curve, the best static set, evenness. All exact.

Everything works on one layer at a time (`LayerRouting`), so a long trace needs little memory beside itself.
Let S(t) be the k experts of row t, and a *selection* one of them. Rows are taken one after another; rows that
were computed together (a prompt) count like rows that were not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hottune.routing.trace import Trace

Experts = npt.NDArray[np.integer]

_ROWS_AT_ONCE = 2048  # of stack distances: bounds the temporary arrays to tens of MB


@dataclass(frozen=True, eq=False)
class LayerRouting:
    """The choices of one layer.

    Attributes:
        experts: array [n_rows, k] of the experts chosen, in the router's order.
        token: index of each row's token, rising.
        n_expert: experts that the layer has.
        name: of the layer's first expert weight.
    """

    experts: Experts
    token: npt.NDArray[np.int64]
    n_expert: int
    name: str = ""


def by_layer(trace: Trace) -> dict[int, LayerRouting]:
    """Return the choices of each layer of a trace that has any.

    Raises:
        ValueError: a layer does not use the same number of experts for every token.
    """
    found: dict[int, LayerRouting] = {}
    order = np.argsort(trace.choices.layer.astype(np.uint16), kind="stable")  # by radix
    ends = np.cumsum(np.bincount(trace.choices.layer, minlength=max(trace.layers, default=0) + 1))
    for index, layer in sorted(trace.layers.items()):
        mine = order[ends[index - 1] if index else 0 : ends[index]]
        if not len(mine):
            continue
        place = trace.choices.place[mine]
        k = int(place.max()) + 1
        if len(mine) % k or (place != np.tile(np.arange(k), len(mine) // k)).any():
            raise ValueError(f"layer {index} does not use {k} experts for every token")
        experts = trace.choices.expert[mine].reshape(-1, k)
        found[index] = LayerRouting(experts, trace.choices.token[mine][::k], layer.n_expert, layer.name)
    return found


def repeats(layer: LayerRouting, within: int = 1) -> float:
    """Return the share of selections whose expert was also used in one of the `within` tokens before.

    Mean over tokens t ≥ `within` and experts e of S(t) of [e ∈ S(t-1) ∪ … ∪ S(t-within)]. With `within` 1
    that is the mean overlap of adjacent tokens, |S(t) ∩ S(t-1)| / k. A row stands for its token only, so what
    llama.cpp did not compute in this layer counts as not repeated. NaN when there are no such tokens.
    """
    last = _last_use(layer.experts, layer.n_expert, layer.token)
    gap = layer.token[:, None] - last
    counted = layer.token >= layer.token[0] + within
    return float((gap[counted] <= within).mean()) if counted.any() else float("nan")


def stack_distances(layer: LayerRouting, *, one_by_one: bool = False) -> npt.NDArray[np.int32]:
    """Return for each selection how many other experts were used more recently; `n_expert` at its first.

    An LRU cache of C experts holds exactly those with a distance below C (Mattson and others, "Evaluation
    techniques for storage hierarchies", IBM Systems Journal 9(2), 1970), so all sizes come out of one pass.
    The cache is empty at the beginning.

    Args:
        layer: whose selections; the last of a token in the router's order is then the most recent.
        one_by_one: whether the experts of a token are fetched one after the other, so that one can push out
            another of the same token. As a rule they are all looked up before any of them moves to the front,
            as our device does: a cache of k experts then hits exactly what repeats at the next token.
            Published simulations are often of the other kind.
    """
    n_rows, k = layer.experts.shape
    found = np.empty((n_rows, k), dtype=np.int32)
    newest = np.full(layer.n_expert, -1, dtype=np.int64)  # stamp of each expert's last use
    for begin in range(0, n_rows, _ROWS_AT_ONCE):
        some = layer.experts[begin : begin + _ROWS_AT_ONCE]
        rows = np.arange(len(some))
        used = np.full((len(some) + 1, layer.n_expert), -1, dtype=np.int64)
        used[0] = newest
        used[rows[:, None] + 1, some] = (begin + rows[:, None]) * k + np.arange(k)
        np.maximum.accumulate(used, axis=0, out=used)
        before, newest = used[:-1], used[-1].copy()
        mine = np.take_along_axis(before, some.astype(np.intp), axis=1)
        for place in range(k):
            this = mine[:, place, None]
            newer = np.count_nonzero(before > this, axis=1)
            if one_by_one:  # those of this token that were older and now are not
                newer += np.count_nonzero(mine[:, :place] < this, axis=1)
            found[begin : begin + len(some), place] = np.where(this[:, 0] < 0, layer.n_expert, newer)
    return found


def lru_curve(distances: npt.NDArray[np.int32], n_expert: int) -> npt.NDArray[np.float64]:
    """Return the hit rate of LRU caches of 0, 1, … `n_expert` experts: the share of distances below each."""
    counts = np.bincount(distances.ravel(), minlength=n_expert + 1)[:n_expert]
    return np.concatenate([[0.0], np.cumsum(counts) / max(1, distances.size)])


def uses(layer: LayerRouting) -> npt.NDArray[np.int64]:
    """Return how often each expert was chosen: array [n_expert]."""
    return np.bincount(layer.experts.ravel(), minlength=layer.n_expert)


def static_curve(
    layer: LayerRouting, chosen_by: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """Return the share of selections that the best 0, 1, … `n_expert` experts serve if they never change.

    Args:
        layer: what is served.
        chosen_by: the uses (see `uses`) by which the set is chosen; None takes those of the layer itself,
        which is
            the oracle that no real profile reaches.
    """
    served = uses(layer)
    order = np.argsort(-(served if chosen_by is None else chosen_by), kind="stable")
    return np.concatenate([[0.0], np.cumsum(served[order]) / max(1, served.sum())])


def static_size(layer: LayerRouting, share: float) -> int:
    """Return how many experts the smallest static set has that serves `share` of the selections."""
    return int(np.argmax(static_curve(layer) >= share - 1e-12))


def misses_early_and_later(
    layer: LayerRouting,
    distances: npt.NDArray[np.int32],
    size: int,
    *,
    first: int = 64,
    starts: Sequence[int] = (),
) -> tuple[float, float]:
    """Return an LRU cache's miss rate in the first tokens of each request, and in all others.

    NaN stands for no tokens.

    Args:
        layer: of which the distances are.
        distances: see `stack_distances`; the cache is empty before the first request only.
        size: experts in the cache.
        first: how many tokens of a request count as the first.
        starts: tokens with which requests begin, rising; none means that there is one request.
    """
    begins = np.unique([layer.token[0], *(start for start in starts if start > layer.token[0])])
    since = layer.token - begins[np.searchsorted(begins, layer.token, side="right") - 1]
    missed = distances >= size
    early, later = missed[since < first], missed[since >= first]
    return float(early.mean()) if early.size else np.nan, float(later.mean()) if later.size else np.nan


def usage_entropy(layer: LayerRouting) -> float:
    """Return how even the uses are: -Σ p ln p / ln n_expert, from 0 (one expert) to 1 (all alike)."""
    counts = uses(layer)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum() / np.log(layer.n_expert)) if layer.n_expert > 1 else 1.0


def max_over_mean(layer: LayerRouting) -> float:
    """Return the uses of the most used expert, as a multiple of the mean: 1 when all are alike."""
    counts = uses(layer)
    return float(counts.max() / counts.mean())


def unused_share(layer: LayerRouting) -> float:
    """Return the share of experts that were never chosen. Short traces exaggerate it."""
    return float((uses(layer) == 0).mean())


def _last_use(experts: Experts, n_expert: int, token: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each selection the token of the expert's use before; far below 0 when there is none."""
    n_rows, k = experts.shape
    flat = experts.ravel().astype(np.uint16)  # which numpy sorts by radix
    order = np.argsort(flat, kind="stable")  # by expert, in time
    stamps = np.repeat(token, k)[order]
    last = np.empty(len(flat), dtype=np.int64)
    last[order[1:]] = np.where(flat[order][1:] == flat[order][:-1], stamps[:-1], -(1 << 40))
    if len(flat):
        last[order[0]] = -(1 << 40)
    return last.reshape(n_rows, k)
