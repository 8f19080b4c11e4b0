"""Generators fitted to what is published about real models, each figure with its source.

The parameters come from `tools/fit_generator.py`. None of the figures was measured by us; docs/routing.md
says how each was read where its source leaves a choice, and where the fit does not reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np

from hottune.routing import statistics
from hottune.routing.generator import RoutingModel, draw_layer
from hottune.routing.statistics import LayerRouting

#: What a fit is judged by: this many prompts of this length, and for sets that serve other prompts many short
#: ones.
PROMPTS, PROMPT_TOKENS = 4, 512
SHORT_PROMPTS, SHORT_TOKENS = 64, 32
#: Late layers are alike, so a few stand for all.
LATE_LAYERS = 3
#: The tokens that count as a request's first.
FIRST_TOKENS = 64


@dataclass(frozen=True)
class Figure:
    """A published number.

    Attributes:
        statistic: what it is; a key of `STATISTICS`.
        at: its argument: tokens, experts in the cache, or percent served.
        published: the number, as a share.
        source: who published it.
        layer: of one layer; None = mean over all.
        tolerance: how far the generator may be from it.
    """

    statistic: str
    at: int
    published: float
    source: str
    layer: int | None = None
    tolerance: float = 0.03

    def label(self) -> str:
        """Return what the number is, in words."""
        where = "" if self.layer is None else f", layer {self.layer}"
        return STATISTICS[self.statistic].label.format(at=self.at) + where


@dataclass(frozen=True)
class Statistic:
    """How a published number is computed from a layer; `long` is of few long prompts, else of many short
    ones."""

    label: str
    compute: Callable[[LayerRouting, int], float]
    long: bool = True


@dataclass(frozen=True)
class Preset:
    """A generator and what it was fitted to."""

    model: RoutingModel
    figures: tuple[Figure, ...]


def _lru(layer: LayerRouting, size: int) -> float:
    # The published curves hit less at k experts than repeats at the next token: one by one (docs/routing.md).
    distances = statistics.stack_distances(layer, one_by_one=True)
    return float(statistics.lru_curve(distances, layer.n_expert)[size])


def _prompt_by_prompt(compute: Callable[[LayerRouting], float]) -> Callable[[LayerRouting], float]:
    def mean(layer: LayerRouting) -> float:
        parts = [slice(at, at + PROMPT_TOKENS) for at in range(0, len(layer.token), PROMPT_TOKENS)]
        return float(
            np.mean(
                [
                    compute(LayerRouting(layer.experts[part], layer.token[part], layer.n_expert))
                    for part in parts
                ]
            )
        )

    return mean


def _misses(layer: LayerRouting, size: int, which: int) -> float:
    distances = statistics.stack_distances(layer, one_by_one=True)
    return statistics.misses_early_and_later(layer, distances, size, first=FIRST_TOKENS)[which]


def _held_out(layer: LayerRouting, size: int) -> float:
    half = len(layer.token) // 2
    seen, other = (
        LayerRouting(layer.experts[part], layer.token[part], layer.n_expert)
        for part in (slice(half), slice(half, None))
    )
    return float(statistics.static_curve(other, statistics.uses(seen))[size])


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "repeat": Statistic("repeats within {at} tokens", lambda one, at: statistics.repeats(one, at)),
        "lru": Statistic("LRU of {at} hits", _lru),
        "lru-miss": Statistic("LRU of {at} misses", lambda one, at: 1 - _lru(one, at)),
        "first-miss": Statistic(
            f"LRU of {{at}} misses in the first {FIRST_TOKENS} tokens",
            lambda one, at: _prompt_by_prompt(lambda part: _misses(part, at, 0))(one),
        ),
        "later-miss": Statistic(
            "LRU of {at} misses later",
            lambda one, at: _prompt_by_prompt(lambda part: _misses(part, at, 1))(one),
        ),
        "static": Statistic(
            "the prompt's best {at} experts serve",
            lambda one, at: _prompt_by_prompt(lambda part: statistics.static_curve(part)[at])(one),
        ),
        "static-size": Statistic(
            "share of the experts that serves {at} % of a prompt",
            lambda one, at: (
                _prompt_by_prompt(lambda part: statistics.static_size(part, at / 100))(one) / one.n_expert
            ),
        ),
        "static-held-out": Statistic("the best {at} experts of other prompts serve", _held_out, long=False),
    }
)


def evaluate(model: RoutingModel, figures: tuple[Figure, ...], seed: int = 0) -> list[float]:
    """Return what a generator gives for each figure. Late layers are alike: `LATE_LAYERS` stand for all."""

    @cache
    def drawn(layer: int, long: bool) -> LayerRouting:
        prompts, tokens = (PROMPTS, PROMPT_TOKENS) if long else (SHORT_PROMPTS, SHORT_TOKENS)
        experts = draw_layer(model, layer, prompts * tokens, tokens, seed)
        return LayerRouting(experts, np.arange(len(experts), dtype=np.int64), model.experts)

    early = [layer for layer in range(model.layers) if model.scale(layer) < 1]
    late = range(len(early), model.layers)
    found = []
    for figure in figures:
        statistic = STATISTICS[figure.statistic]

        def value(layer: int, figure: Figure = figure, statistic: Statistic = statistic) -> float:
            return statistic.compute(drawn(layer, statistic.long), figure.at)

        if figure.layer is not None:
            found.append(value(figure.layer))
            continue
        of_late = float(np.mean([value(layer) for layer in late[:LATE_LAYERS]])) if late else 0.0
        found.append((sum(value(layer) for layer in early) + of_late * len(late)) / model.layers)
    return found


_IMP = "threads 1359 and 1374 of the engine imp, Qwen3-30B-A3B"
_IMP_FLASH = "thread 2061 of the engine imp, Qwen3.8-Flash-Next"
_FREETOKEN = "FreeToken issue 231, Ornith-35B"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "qwen3-30b-a3b": Preset(
            RoutingModel(
                layers=48,
                experts=128,
                used=8,
                sigma_g=0.75,
                sigma_s=2.06,
                sigma_a=1.83,
                rho_a=0.61,
                sigma_b=0.5,
                rho_b=0.97,
                early_scale=0.7,
            ),
            (
                Figure("repeat", 1, 0.45, _IMP),
                Figure("repeat", 8, 0.80, _IMP),
                Figure("lru", 8, 0.366, _IMP),
                Figure("lru", 24, 0.741, _IMP),
                Figure("lru", 49, 0.894, _IMP),
                Figure("lru", 81, 0.962, _IMP),
                Figure("first-miss", 70, 0.138, _IMP),
                Figure("later-miss", 70, 0.053, _IMP),
                Figure("static-size", 90, 61.5 / 128, _IMP),
            ),
        ),
        "qwen3.8-flash-next": Preset(
            RoutingModel(
                layers=48,
                experts=512,
                used=10,
                sigma_g=0.70,
                sigma_s=1.66,
                sigma_a=2.10,
                rho_a=0.80,
                sigma_b=0.5,
                rho_b=0.97,
                early_scale=0.7,
            ),
            (
                Figure("lru", 31, 0.435, _IMP_FLASH),
                Figure("lru", 62, 0.62, _IMP_FLASH),
                Figure("lru", 93, 0.72, _IMP_FLASH),
                Figure("lru", 124, 0.789, _IMP_FLASH),
                Figure("lru", 171, 0.85, _IMP_FLASH),
                Figure("static-held-out", 32, 0.10, "llama.cpp discussion 27861"),
            ),
        ),
        "ornith-35b": Preset(
            RoutingModel(
                layers=40,
                experts=256,
                used=8,
                sigma_g=1.0,
                sigma_s=2.5,
                sigma_a=1.5,
                rho_a=0.7,
                sigma_b=0.5,
                rho_b=0.97,
                early_share=0.15,
                early_scale=0.5,
            ),
            (
                Figure("lru", 57, 0.741, _FREETOKEN),
                Figure("static", 57, 0.764, _FREETOKEN),
                Figure("lru-miss", 57, 0.50, _FREETOKEN, layer=0),
                Figure("lru-miss", 57, 0.45, _FREETOKEN, layer=1),
                Figure("lru-miss", 57, 0.44, _FREETOKEN, layer=2),
                Figure("lru-miss", 57, 0.36, _FREETOKEN, layer=3),
                Figure("lru-miss", 57, 0.33, _FREETOKEN, layer=4),
            ),
        ),
        "glm-4.7-flash": Preset(
            RoutingModel(
                layers=46,
                experts=64,
                used=4,
                sigma_g=0.6,
                sigma_s=1.0,
                sigma_a=0.6,
                rho_a=0.6,
                sigma_b=0.4,
                rho_b=0.97,
                early_scale=0.7,
            ),
            (Figure("repeat", 1, 0.257, "mlx-lm issue 1485, GLM-4.7-Flash"),),
        ),
    }
)
