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
import numpy.typing as npt

from hottune.routing import statistics
from hottune.routing.generator import RoutingModel, draw_layer
from hottune.routing.statistics import LayerRouting

#: A figure is the mean over so many prompts at least, however few it was published for.
PROMPTS = 4
#: Late layers are alike, so a few stand for all.
LATE_LAYERS = 3
#: The tokens that count as a request's first.
FIRST_TOKENS = 64


@dataclass(frozen=True)
class Figure:
    """A published number.

    Attributes:
        statistic: what it is; a key of `STATISTICS`.
        at: its argument: tokens, experts in the cache, or percent served; 0 where it has none.
        published: the number, as a share.
        run: prompts and tokens of each for which it was published; caches are empty at the beginning.
        source: who published it.
        layer: of one layer; None = mean over all.
        by: prompts, of those of the run, by which a static set is chosen that serves the others.
        tolerance: how far the generator may be from it; wider where no fit comes closer (docs/routing.md).
    """

    statistic: str
    at: int
    published: float
    run: tuple[int, int]
    source: str
    layer: int | None = None
    by: int = 0
    tolerance: float = 0.03

    def label(self) -> str:
        """Return what the number is, in words."""
        where = "" if self.layer is None else f", layer {self.layer}"
        return STATISTICS[self.statistic].label.format(at=self.at, by=self.by) + where


@dataclass(frozen=True)
class Statistic:
    """How a published number is computed from one run of a layer."""

    label: str
    compute: Callable[[LayerRouting, Figure], float]


@dataclass(frozen=True)
class Preset:
    """A generator and what it was fitted to."""

    model: RoutingModel
    figures: tuple[Figure, ...]


def _distances(layer: LayerRouting) -> npt.NDArray[np.int32]:
    # The engines that published fetch one expert after the other (docs/routing.md).
    return statistics.stack_distances(layer, one_by_one=True)


def _lru(layer: LayerRouting, figure: Figure) -> float:
    return float(statistics.lru_curve(_distances(layer), layer.n_expert)[figure.at])


def _misses(layer: LayerRouting, figure: Figure) -> tuple[float, float]:
    return statistics.misses_early_and_later(layer, _distances(layer), figure.at, first=FIRST_TOKENS)


def _static(layer: LayerRouting, figure: Figure) -> float:
    seen = figure.by * figure.run[1]
    chosen_by = statistics.uses(_part(layer, 0, seen)) if seen else None
    served = _part(layer, seen, len(layer.token))
    return float(statistics.static_curve(served, chosen_by)[figure.at])


def _part(layer: LayerRouting, begin: int, end: int) -> LayerRouting:
    some = slice(begin, end)
    return LayerRouting(layer.experts[some], layer.token[some], layer.n_expert)


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "repeat": Statistic("repeats within {at} tokens", lambda one, f: statistics.repeats(one, f.at)),
        "lru": Statistic("LRU of {at} hits", _lru),
        "lru-miss": Statistic("LRU of {at} misses", lambda one, f: 1 - _lru(one, f)),
        "first-miss": Statistic(
            f"LRU of {{at}} misses in the first {FIRST_TOKENS} tokens", lambda one, f: _misses(one, f)[0]
        ),
        "later-miss": Statistic("LRU of {at} misses later", lambda one, f: _misses(one, f)[1]),
        "static": Statistic("its best {at} experts serve", _static),
        "static-other": Statistic("the best {at} experts of {by} prompts serve others", _static),
        "static-size": Statistic(
            "share of the experts that serves {at} %",
            lambda one, f: statistics.static_size(one, f.at / 100) / one.n_expert,
        ),
        "touched": Statistic(
            "share of the experts ever chosen", lambda one, f: 1 - statistics.unused_share(one)
        ),
        "entropy": Statistic("evenness of use (entropy)", lambda one, f: statistics.usage_entropy(one)),
    }
)


def evaluate(model: RoutingModel, figures: tuple[Figure, ...], seed: int = 0) -> list[float]:
    """Return what a generator gives for each figure. Late layers are alike: `LATE_LAYERS` stand for all."""

    @cache
    def runs(layer: int, prompts: int, tokens: int) -> list[LayerRouting]:
        n_runs, each = max(1, PROMPTS // prompts), prompts * tokens
        experts = draw_layer(model, layer, n_runs * each, tokens, seed)
        count = np.arange(each, dtype=np.int64)
        return [
            LayerRouting(experts[begin : begin + each], count, model.experts)
            for begin in range(0, len(experts), each)
        ]

    def value(figure: Figure, layer: int) -> float:
        compute = STATISTICS[figure.statistic].compute
        return float(np.mean([compute(one, figure) for one in runs(layer, *figure.run)]))

    early = [layer for layer in range(model.layers) if model.scale(layer) < 1]
    late = range(len(early), model.layers)
    found = []
    for figure in figures:
        if figure.layer is not None:
            found.append(value(figure, figure.layer))
            continue
        of_late = float(np.mean([value(figure, layer) for layer in late[:LATE_LAYERS]])) if late else 0.0
        of_early = sum(value(figure, layer) for layer in early)
        found.append((of_early + of_late * len(late)) / model.layers)
    return found


_IMP = "github.com/kekzl/imp, pull request "
_FREETOKEN = "github.com/FlashML-org/FreeToken, pull request 231"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "qwen3-30b-a3b": Preset(
            RoutingModel(
                layers=48,
                experts=128,
                used=8,
                sigma_g=1.22,
                sigma_s=1.152,
                sigma_a=1.387,
                rho_a=0.744,
                sigma_b=0.896,
                rho_b=0.987,
                early_scale=0.5,
            ),
            (
                Figure("repeat", 1, 0.45, (3, 512), _IMP + "1359"),
                Figure("repeat", 8, 0.80, (3, 512), _IMP + "1359"),
                Figure("first-miss", 51, 0.138, (1, 512), _IMP + "1359"),
                Figure("later-miss", 51, 0.053, (1, 512), _IMP + "1359", tolerance=0.045),
                Figure("lru", 8, 0.366, (1, 256), _IMP + "1374", tolerance=0.05),
                Figure("lru", 24, 0.741, (1, 256), _IMP + "1374"),
                Figure("lru", 49, 0.894, (1, 256), _IMP + "1374"),
                Figure("lru", 81, 0.962, (1, 256), _IMP + "1374"),
                Figure("static", 51, 0.921, (1, 512), _IMP + "1358"),
                Figure("static-other", 51, 0.676, (9, 512), _IMP + "1358", by=1),
                Figure("static-other", 51, 0.726, (9, 512), _IMP + "1358", by=8),
                Figure("static-size", 90, 61.5 / 128, (3, 512), _IMP + "1356"),
            ),
        ),
        "qwen3.8-flash-next": Preset(
            RoutingModel(
                layers=48,
                experts=512,
                used=10,
                sigma_g=0.615,
                sigma_s=0.442,
                sigma_a=2.722,
                rho_a=0.261,
                sigma_b=3.128,
                rho_b=0.98,
                early_scale=0.827,
            ),
            (
                Figure("lru", 31, 0.435, (1, 300), _IMP + "2061"),
                Figure("lru", 62, 0.62, (1, 300), _IMP + "2061"),
                Figure("lru", 93, 0.72, (1, 300), _IMP + "2061"),
                Figure("lru", 124, 0.789, (1, 300), _IMP + "2061"),
                Figure("lru", 171, 0.85, (1, 300), _IMP + "2061", tolerance=0.06),
                Figure("touched", 0, 384 / 512, (1, 300), _IMP + "2061", layer=0, tolerance=0.05),
                Figure("static", 64, 0.41, (1, 300), _IMP + "2061", layer=0, tolerance=0.11),
                Figure("static-other", 32, 0.10, (8, 128), "llama.cpp, discussion 27861", by=4),
            ),
        ),
        "ornith-35b": Preset(
            RoutingModel(
                layers=40,
                experts=256,
                used=8,
                sigma_g=0.5,
                sigma_s=1.417,
                sigma_a=1.535,
                rho_a=0.651,
                sigma_b=0.839,
                rho_b=0.976,
                early_share=0.281,
                early_scale=0.247,
            ),
            (
                Figure("lru", 57, 0.741, (1, 256), _FREETOKEN),
                Figure("static", 57, 0.764, (1, 256), _FREETOKEN),
                Figure("lru-miss", 57, 0.498, (1, 256), _FREETOKEN, layer=0),
                Figure("lru-miss", 57, 0.446, (1, 256), _FREETOKEN, layer=1),
                Figure("lru-miss", 57, 0.441, (1, 256), _FREETOKEN, layer=2, tolerance=0.05),
                Figure("lru-miss", 57, 0.361, (1, 256), _FREETOKEN, layer=3),
                Figure("lru-miss", 57, 0.326, (1, 256), _FREETOKEN, layer=4),
                Figure("touched", 0, 173.1 / 256, (1, 256), _FREETOKEN),
                Figure("static-size", 90, 92.3 / 256, (1, 256), _FREETOKEN),
                Figure("entropy", 0, 0.813, (1, 256), _FREETOKEN),
            ),
        ),
        "glm-4.7-flash": Preset(
            RoutingModel(
                layers=46,
                experts=64,
                used=4,
                sigma_g=0.6,
                sigma_s=0.674,
                sigma_a=0.6,
                rho_a=0.6,
                sigma_b=0.4,
                rho_b=0.97,
                early_scale=0.7,
            ),
            (Figure("repeat", 1, 0.257, (1, 512), "mlx-lm, issue 1485"),),
        ),
    }
)
