"""What a trace holds and how its routing behaves, as one result."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hottune.routing import statistics
from hottune.routing.trace import Trace

#: Share of a layer's experts in the cache of the headline hit rate.
QUARTER = 0.25


class LayerSummary(BaseModel):
    """One layer; rates are shares of its choices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int
    name: str
    experts: int
    used: int
    tokens: int
    repeat_next: float = Field(description="choices that the token before made, too")
    repeat_8: float = Field(description="choices that one of the 8 tokens before made")
    lru_hit: float = Field(description="hit rate of an LRU cache of a quarter of the experts, empty at first")
    first_miss: float = Field(description="its miss rate in the first 64 tokens of each request")
    later_miss: float = Field(description="its miss rate afterwards; NaN without such tokens")
    static_share: float = Field(description="choices of the quarter of the experts that is used most")
    entropy: float = Field(description="evenness of use: 0 one expert, 1 all alike")
    max_over_mean: float = Field(description="uses of the most used expert, in means")
    unused: float = Field(description="share of the experts never chosen")


class TraceSummary(BaseModel):
    """A trace; rates are means over its layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    bytes: int
    tokens: int
    prompt_tokens: int = Field(description="tokens that were computed several at once")
    choices: int
    bytes_per_choice: float = Field(description="without router weights, which add 2")
    has_weights: bool
    truncated: bool
    repeat_next: float
    repeat_8: float
    lru_hit: float
    random_hit: float = Field(description="what a set of as many experts, drawn at random, would hit")
    first_miss: float
    later_miss: float
    static_share: float
    entropy: float
    max_over_mean: float
    unused: float
    layers: tuple[LayerSummary, ...]


_MEANS = (
    *("repeat_next", "repeat_8", "lru_hit", "first_miss", "later_miss"),
    *("static_share", "entropy", "max_over_mean", "unused"),
)


def summarize(trace: Trace, n_bytes: int, starts: tuple[int, ...] = ()) -> TraceSummary:
    """Describe a trace.

    Args:
        trace: what to describe.
        n_bytes: size of its file.
        starts: tokens with which requests begin; none means that there is one.

    Raises:
        ValueError: it has no choice at all, or a layer uses now more, now fewer experts.
    """
    routing = statistics.by_layer(trace)
    if not routing:
        raise ValueError("it has no choices")
    layers, random_hits = [], []
    for index, one in routing.items():
        size = max(1, round(QUARTER * one.n_expert))
        random_hits.append(size / one.n_expert)
        distances = statistics.stack_distances(one)
        early, later = statistics.misses_early_and_later(one, distances, size, starts=starts)
        layers.append(
            LayerSummary(
                layer=index,
                name=one.name,
                experts=one.n_expert,
                used=one.experts.shape[1],
                tokens=len(one.experts),
                repeat_next=statistics.repeats(one),
                repeat_8=statistics.repeats(one, 8),
                lru_hit=float(statistics.lru_curve(distances, one.n_expert)[size]),
                first_miss=early,
                later_miss=later,
                static_share=float(statistics.static_curve(one)[size]),
                entropy=statistics.usage_entropy(one),
                max_over_mean=statistics.max_over_mean(one),
                unused=statistics.unused_share(one),
            )
        )
    n_choices = len(trace.choices)
    of_layer_0 = trace.blocks[trace.blocks[:, 0] == 0]
    return TraceSummary(
        version=trace.version,
        bytes=n_bytes,
        tokens=trace.n_tokens,
        prompt_tokens=int(of_layer_0[of_layer_0[:, 2] > 1, 2].sum()),
        choices=n_choices,
        bytes_per_choice=n_bytes / n_choices - (2 if trace.has_weights else 0),
        has_weights=trace.has_weights,
        truncated=trace.truncated,
        random_hit=float(np.mean(random_hits)),
        layers=tuple(layers),
        **{name: float(np.mean([getattr(one, name) for one in layers])) for name in _MEANS},
    )
