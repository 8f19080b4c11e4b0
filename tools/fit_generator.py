"""Fit the generator's presets to the published figures: `python tools/fit_generator.py [PRESET ...]`.

With `--table`, nothing is fitted, and the table for docs/routing.md is printed.

Nelder-Mead over the deviations and correlations, from where the presets are now, with the same random numbers
at every step; equal starts give equal fits. What is printed goes into hottune/routing/presets.py.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.optimize import minimize

from hottune.routing.generator import RoutingModel
from hottune.routing.presets import PRESETS, Figure, Preset, evaluate

#: Two seeds, so that a fit is not to the accidents of one; the tests use others.
SEEDS = (101, 102)
#: The table's and the tests'.
TABLE_SEED = 7
STEPS = 220
#: What is fitted; the rest says nothing about the figures, or the figures nothing about it.
_ALL = ("sigma_g", "sigma_s", "sigma_a", "rho_a", "sigma_b", "rho_b")
FREE = {
    "qwen3-30b-a3b": _ALL,
    "qwen3.8-flash-next": (*_ALL, "early_scale"),
    "ornith-35b": (*_ALL[1:], "early_share", "early_scale"),
    "glm-4.7-flash": ("sigma_s",),
}
SHARES = ("rho_a", "rho_b", "early_share", "early_scale")


def moved(model: RoutingModel, names: tuple[str, ...], x: np.ndarray) -> RoutingModel:
    """Return the model at a point: logarithms of deviations, log-odds of what lies between 0 and 1."""
    values = {
        name: float(1 / (1 + np.exp(-one)) if name in SHARES else np.exp(one))
        for name, one in zip(names, x, strict=True)
    }
    return model.model_copy(update=values)


def start(model: RoutingModel, names: tuple[str, ...]) -> np.ndarray:
    """Return the point at which a model lies."""
    found = [getattr(model, name) for name in names]
    return np.array(
        [np.log(v / (1 - v)) if name in SHARES else np.log(v) for name, v in zip(names, found, strict=True)]
    )


def errors(model: RoutingModel, figures: tuple[Figure, ...]) -> np.ndarray:
    """Return by how much the generator misses each figure."""
    found = np.mean([evaluate(model, figures, seed) for seed in SEEDS], axis=0)
    return found - np.array([figure.published for figure in figures])


def fit(name: str, preset: Preset) -> None:
    """Fit one preset and print it."""
    names = FREE[name]

    def loss(x: np.ndarray) -> float:
        return float((errors(moved(preset.model, names, x), preset.figures) ** 2).sum())

    first = start(preset.model, names)
    simplex = np.vstack([first, *(first + 0.35 * np.eye(len(first)))])
    best = minimize(loss, first, method="Nelder-Mead", options={"maxfev": STEPS, "initial_simplex": simplex})
    model = moved(preset.model, names, best.x)
    model = model.model_copy(update={one: round(getattr(model, one), 3) for one in names})
    print(f"{name}: " + ", ".join(f"{one}={getattr(model, one)}" for one in names))
    for figure, error in zip(preset.figures, errors(model, preset.figures), strict=True):
        print(f"  {figure.label():<60} published {figure.published:.3f}, here {figure.published + error:.3f}")


def table() -> None:
    """Print what the presets give for each figure, with a seed that no fit used, as Markdown."""
    print("| model | figure | published | generator | source |\n| --- | --- | ---: | ---: | --- |")
    for name, preset in PRESETS.items():
        for figure, value in zip(
            preset.figures, evaluate(preset.model, preset.figures, TABLE_SEED), strict=True
        ):
            off = " (!)" if abs(value - figure.published) > 0.03 else ""
            print(
                f"| {name} | {figure.label()} | {figure.published:.3f} | {value:.3f}{off} | {figure.source} |"
            )


if __name__ == "__main__":
    if "--table" in sys.argv[1:]:
        table()
    else:
        for chosen in sys.argv[1:] or PRESETS:
            fit(chosen, PRESETS[chosen])
