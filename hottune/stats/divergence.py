"""How far one next-token distribution is from another, when only the most probable tokens of each are known.

KL(P || Q) = sum of p log(p / q) over the vocabulary, in nats. Merging tokens into cells can only lower it
(the data-processing inequality: Cover and Thomas, Elements of Information Theory, 2nd ed., section 2.8), so
what is computed here from the top K of both sides is a lower bound of the true divergence. The cells:

- each token that is among the top K of both, on its own;
- the tokens that only P has among its top K, together. What Q gives them is not known, only that it gives
  none of them more than the least probable of its own top K, and all of them no more than what its top K
  leave. Of the values that this allows, the one with the smallest divergence counts;
- the rest, together.

Without the second cell, two distributions that share no token at all would look equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Token id -> log-probability (natural logarithm) of the most probable tokens, the most probable one first.
Top = Mapping[int, float]

#: Probabilities come from a softmax in single precision and are stored rounded: less than this is no news.
_LEAST = 1e-6


@dataclass(frozen=True)
class Divergence:
    """Of two servers that scored the same positions of the same text."""

    kld: float  #: mean lower bound of KL(P || Q), nats a position
    same_top: float  #: share of positions with the same most probable token, 0 to 1
    positions: int


def divergence(reference: Sequence[Top], other: Sequence[Top]) -> Divergence:
    """Compare two servers position by position.

    Args:
        reference: P of each position.
        other: Q of the same positions.

    Raises:
        ValueError: there are no positions, or not the same number of them.
    """
    if not reference or len(reference) != len(other):
        raise ValueError(f"{len(reference)} positions against {len(other)}")
    pairs = list(zip(reference, other, strict=True))
    return Divergence(
        kld=math.fsum(kl_bound(p, q) for p, q in pairs) / len(pairs),
        same_top=sum(next(iter(p)) == next(iter(q)) for p, q in pairs) / len(pairs),
        positions=len(pairs),
    )


def kl_bound(reference: Top, other: Top) -> float:
    """Return a lower bound of KL(P || Q) in nats, 0 or more (see the module's text).

    Args:
        reference: the top tokens of P.
        other: the top tokens of Q.

    Raises:
        ValueError: one of them is empty.
    """
    if not reference or not other:
        raise ValueError("a distribution without tokens")
    shared = [token for token in reference if token in other]
    alone = [math.exp(log_p) for token, log_p in reference.items() if token not in other]
    p_shared = math.fsum(math.exp(reference[token]) for token in shared)
    q_shared = math.fsum(math.exp(other[token]) for token in shared)
    q_top = math.fsum(math.exp(log_q) for log_q in other.values())
    p_alone = math.fsum(alone)
    p_rest = max(0.0, 1 - p_shared - p_alone)
    q_left = max(0.0, 1 - q_shared)

    # Convex in q_alone, with its minimum where both cells have the same ratio: up to there, more is less.
    allowed = min(len(alone) * math.exp(min(other.values())), max(0.0, 1 - q_top))
    even = q_left * p_alone / (p_alone + p_rest) if p_alone else 0.0
    q_alone = min(allowed, even)

    terms = [math.exp(reference[token]) * (reference[token] - other[token]) for token in shared]
    terms += [_term(p_alone, q_alone), _term(p_rest, q_left - q_alone)]
    return max(0.0, math.fsum(terms))


def _term(p: float, q: float) -> float:
    """Return p log(p / q); a q that rounding may have brought to nothing counts as the least there can be."""
    return p * math.log(p / max(q, _LEAST)) if p > 0 else 0.0
