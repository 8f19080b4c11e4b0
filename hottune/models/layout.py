"""Where the parts of the small model lie in the large one: channels, heads, layers, experts.

All mappings are pure functions of counts, so that a reader of the file can repeat them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hottune.models.codecs import GROUP

SUPER = 256 // GROUP  # groups in the largest blocks


def spread(n_groups: int, width: int, terms: int = 1) -> list[tuple[int, ...]]:
    """Return where each of the small model's groups of 32 lies in a row of `width`, `terms` times each.

    Every block of 256 gets one group before any gets a second, because a block of Q4_K, Q5_K or Q6_K holds
    a single group exactly; the places of one group are neighbours in a block, whose scale they share.

    Raises:
        ValueError: the row is too short.
    """
    per_block = SUPER // terms
    units = sorted(range(width // (GROUP * terms)), key=lambda unit: (unit % per_block, unit // per_block))
    if len(units) < n_groups:
        raise ValueError(f"{n_groups} groups, {terms} times each, do not fit into {width}")
    return [tuple(unit * terms + term for term in range(terms)) for unit in units[:n_groups]]


def channels(groups: Sequence[int]) -> NDArray[np.intp]:
    """Return the channels of these groups of 32."""
    return (np.asarray(groups, dtype=np.intp)[:, None] * GROUP + np.arange(GROUP)).ravel()


@dataclass(frozen=True)
class Places:
    """Where groups of 32 of the small model lie: (position, the small model's group).

    Attributes:
        first: one place for each group.
        seconds: another one for each, with the same activation, or none.
    """

    first: Sequence[tuple[int, int]]
    seconds: Sequence[tuple[int, int]] = ()

    @classmethod
    def of(cls, positions: Sequence[tuple[int, ...]]) -> Places:
        """Return the places of groups that lie at these positions, once or twice each."""
        first = [(each[0], small) for small, each in enumerate(positions)]
        return cls(first, [(each[1], small) for small, each in enumerate(positions) if len(each) > 1])

    @property
    def everywhere(self) -> list[tuple[int, int]]:
        """All places, first and second."""
        return [*self.first, *self.seconds]

    def rows(self, width: int) -> NDArray[np.int64]:
        """Return for each of `width` channels the small model's, or -1."""
        rows = np.full(width, -1, dtype=np.int64)
        for position, small in self.everywhere:
            rows[channels([position])] = channels([small])
        return rows


@dataclass(frozen=True)
class Heads:
    """Which small head each large one is.

    Attributes:
        kv: for each key/value head, the small model's.
        q: for each query head, the small model's.
        delivers: pairs (group of 32 in a row of attn_output, the same in the small model's): only through
            these does attention reach the residual stream; all other weights of attn_output are zero.
        seconds: further copies of the same groups, one each, for types that need two places for a weight;
            empty where some head has no second copy.
    """

    kv: tuple[int, ...]
    q: tuple[int, ...]
    delivers: tuple[tuple[int, int], ...]
    seconds: tuple[tuple[int, int], ...]


def arrange_heads(small: tuple[int, int], large: tuple[int, int], head_dim: int) -> Heads:
    """Make every large head a copy of a small one, within the right group of grouped-query attention.

    Copies compute the same; each group of 32 of a small head's output is taken from one copy only, so that
    the sum is the small model's. Which copy: the one in whose block of 256 fewest groups are taken yet.

    Args:
        small: query heads and key/value heads.
        large: the same; see `heads_needed` for the least.
        head_dim: size of a head, of both.
    """
    (n_q, n_kv), (large_q, large_kv) = small, large
    per_kv, large_per_kv = n_q // n_kv, large_q // large_kv
    kv = tuple(head % n_kv for head in range(large_kv))
    fewest = min(kv.count(group) for group in range(n_kv)) * large_per_kv
    run = 2 if fewest >= 2 * per_kv else 1  # neighbours are copies of the same: two places in one block
    seen = [0] * n_kv
    q = []
    for head in range(large_q):
        group = kv[head // large_per_kv]
        q.append(group * per_kv + seen[group] // run % per_kv)
        seen[group] += 1
    parts = head_dim // GROUP
    taken: Counter[int] = Counter()
    delivers, seconds = [], []
    for wanted in range(n_q):
        copies = [head for head, is_copy_of in enumerate(q) if is_copy_of == wanted]
        for part in range(parts):
            places = [head * parts + part for head in copies]
            best = min(places, key=lambda place: (taken[place // SUPER], place))
            taken[best // SUPER] += 1
            delivers.append((best, wanted * parts + part))
            others = [place for place in places if place != best]
            if others:
                near = min(others, key=lambda place: (place // SUPER != best // SUPER, abs(place - best)))
                seconds.append((near, wanted * parts + part))
    if len(seconds) < len(delivers):
        seconds = []
    return Heads(kv, tuple(q), tuple(sorted(delivers)), tuple(sorted(seconds)))


def head_rows(heads: tuple[int, ...], head_dim: int) -> NDArray[np.int64]:
    """Return for each row of these heads the small model's."""
    return (np.array(heads, dtype=np.int64)[:, None] * head_dim + np.arange(head_dim)).ravel()


def heads_needed(small: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Return the wanted numbers of query and key/value heads, raised to what can hold the small model's."""
    (n_q, n_kv), (want_q, want_kv) = small, wanted
    kv = max(n_kv, want_kv)
    per_kv = max(1, -(-want_q // kv))
    while kv // n_kv * per_kv < n_q // n_kv:  # the key/value head with fewest copies
        per_kv += 1
    return kv * per_kv, kv


@dataclass(frozen=True)
class LayerRole:
    """What a large layer is: a layer of the small model, or one that routes like it and adds nothing."""

    of: int
    repeat: bool


def arrange_layers(n_small: int, n_large: int) -> tuple[LayerRole, ...]:
    """Spread the small layers evenly; each has its repeats around it, half before and half after.

    With fewer layers than the small model has, some of its layers are left out.
    """
    if n_large < n_small:
        last = max(1, n_large - 1)
        return tuple(LayerRole(round(layer * (n_small - 1) / last), False) for layer in range(n_large))
    roles = []
    for small in range(n_small):
        length = (small + 1) * n_large // n_small - small * n_large // n_small
        roles += [LayerRole(small, at != length // 2) for at in range(length)]
    return tuple(roles)


@dataclass(frozen=True)
class Experts:
    """Which small expert each large one is.

    Attributes:
        of: the small expert.
        copy: which of its copies, from 0.
        n_copies: most copies that an expert has; 1 = there are none.
    """

    of: NDArray[np.intp]
    copy: NDArray[np.intp]
    n_copies: int

    @property
    def n_teams(self) -> int:
        """Teams that choose their copies independently: as many as one group of 32 channels can steer."""
        return GROUP // self.n_copies


def arrange_experts(n_small: int, n_large: int) -> Experts:
    """Return the mapping: with more experts copies in turn; with fewer every so-manieth is kept."""
    large = np.arange(n_large, dtype=np.intp)
    if n_large < n_small:
        return Experts(large * n_small // n_large, np.zeros(n_large, dtype=np.intp), 1)
    return Experts(large % n_small, large // n_small, -(-n_large // n_small))


def chosen_copies(n_tokens: int, experts: Experts) -> NDArray[np.intp]:
    """Return which copy each token prefers in each team, tokens x teams.

    Copy r is preferred by a share of the tokens that halves from copy to copy; which tokens is a matter of
    their numbers alone (a fixed random draw), so that a token that comes again routes as before.
    """
    shares = 0.5 ** np.arange(experts.n_copies)
    limits = np.cumsum(shares / shares.sum())
    drawn = np.random.default_rng(20_240_607).random((n_tokens, experts.n_teams))
    return np.minimum(np.searchsorted(limits, drawn), experts.n_copies - 1)


def steering_weights(experts: Experts, layer: int, weight: float) -> NDArray[np.float32]:
    """Return what the router reads from the steering channels, experts x 32: `weight` or 0.

    Channel `team * n_copies + r` is on when the token prefers copy r in that team. Of each small expert
    exactly one copy is lifted, all by the same amount, which leaves the order of the small experts and the
    softmax over the used ones as they were. Teams are dealt anew in each layer.
    """
    n_small = int(experts.of.max()) + 1
    team = np.random.default_rng([20_240_607, layer]).permutation(n_small) % experts.n_teams
    counts = np.bincount(experts.of, minlength=n_small)
    weights = np.zeros((len(experts.of), GROUP), dtype=np.float32)
    for expert, (small, copy) in enumerate(zip(experts.of, experts.copy, strict=True)):
        mine = [r for r in range(experts.n_copies) if r % counts[small] == copy]
        weights[expert, team[small] * experts.n_copies + np.array(mine)] = weight
    return weights
