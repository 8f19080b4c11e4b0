"""Synthetic routing with the published statistics of real models, for shapes that no trained model covers.

For each layer and token the k experts with the largest z are chosen (docs/routing.md, "Generator"):

    z = g + s + a + b + ε

g ~ N(0, σ_g²) belongs to the model; s ~ N(0, σ_s²) to the prompt and is drawn again for each; a and b are
AR(1) processes with deviations σ_a, σ_b and correlations ρ_a, ρ_b from token to token, a fast and a slow one,
begun anew with each prompt; ε ~ N(0, 1) belongs to the token. In the first layers s, a and b are smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.signal import lfilter

from hottune.routing.statistics import LayerRouting

#: Repetitive text goes round in loops of so many tokens, so many times, both ends included.
LOOP_TOKENS = (2, 16)
LOOP_ROUNDS = (3, 9)

Floats = npt.NDArray[np.float32]


class RoutingModel(BaseModel):
    """A shape, and the deviations from which its routing is drawn; ε's is 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1, description="layers with experts")
    experts: int = Field(ge=1, le=1 << 16, description="experts of a layer")
    used: int = Field(ge=1, description="experts chosen for a token")
    sigma_g: float = Field(ge=0, description="deviation of what is fixed for the model")
    sigma_s: float = Field(ge=0, description="deviation of what is fixed for a prompt")
    sigma_a: float = Field(ge=0, description="deviation of the fast process")
    rho_a: float = Field(ge=0, lt=1, description="its correlation from one token to the next")
    sigma_b: float = Field(default=0, ge=0, description="deviation of the slow process")
    rho_b: float = Field(default=0.98, ge=0, lt=1, description="its correlation from one token to the next")
    early_share: float = Field(default=0.1, ge=0, le=1, description="share of the layers that are early")
    early_scale: float = Field(
        default=1, ge=0, le=1, description="σ_s, σ_a and σ_b of layer 0, times this; rises to 1 evenly"
    )

    def scale(self, layer: int) -> float:
        """Return by what σ_s, σ_a and σ_b are multiplied in a layer."""
        early = self.early_share * self.layers
        return 1.0 if layer >= early else self.early_scale + (1 - self.early_scale) * layer / early


@dataclass(frozen=True, eq=False)
class Generated:
    """What was drawn.

    Attributes:
        experts: array [n_tokens, layers, used], those with the largest z first.
        n_expert: experts of a layer.
        starts: token with which each prompt begins.
    """

    experts: npt.NDArray[np.uint16]
    n_expert: int
    starts: npt.NDArray[np.int64]

    def layer(self, index: int) -> LayerRouting:
        """Return one layer, for the statistics."""
        tokens = np.arange(len(self.experts), dtype=np.int64)
        return LayerRouting(self.experts[:, index], tokens, self.n_expert, f"blk.{index}")


def generate(
    model: RoutingModel,
    n_tokens: int,
    *,
    prompt_tokens: int = 512,
    seed: int = 0,
    repetition: float = 0.0,
    workers: int = 1,
    on_layer: Callable[[int], None] | None = None,
) -> Generated:
    """Draw the routing of a text of several prompts.

    Args:
        model: what is drawn.
        n_tokens: how many, all prompts together.
        prompt_tokens: tokens of a prompt; the last one may be shorter.
        seed: equal seeds give equal routing, with any number of workers.
        repetition: share of the tokens that repeat a loop of the tokens before, as synthetic benchmarks and
            small models do; what repeats has the routing that it repeats.
        workers: layers that are drawn at once.
        on_layer: told after each layer how many are drawn.

    Raises:
        ValueError: a number is out of range, or more experts are used than there are.
    """
    if n_tokens < 1 or prompt_tokens < 1 or not 0 <= repetition < 1 or model.used > model.experts:
        raise ValueError("tokens must be positive, repetition from 0 to below 1, experts as many as are used")
    experts = np.empty((n_tokens, model.layers, model.used), dtype=np.uint16)

    def draw(layer: int) -> None:
        experts[:, layer] = draw_layer(model, layer, n_tokens, prompt_tokens, seed, repetition)

    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(draw, range(model.layers)), 1):
            if on_layer:
                on_layer(done)
    return Generated(experts, model.experts, np.arange(0, n_tokens, prompt_tokens))


def draw_layer(
    model: RoutingModel, layer: int, n_tokens: int, prompt_tokens: int, seed: int, repetition: float = 0.0
) -> npt.NDArray[np.uint16]:
    """Draw one layer of what `generate` draws: array [n_tokens, used]."""
    random = np.random.default_rng((seed, layer))
    source = _sources(np.random.default_rng((seed, model.layers)), n_tokens, prompt_tokens, repetition)
    g = random.standard_normal(model.experts, dtype=np.float32) * np.float32(model.sigma_g)
    experts = np.empty((n_tokens, model.used), dtype=np.uint16)
    for begin in range(0, n_tokens, prompt_tokens):
        some = slice(begin, min(begin + prompt_tokens, n_tokens))
        experts[some] = _prompt(random, model, g, layer, some.stop - begin)
    return experts[source]


def _prompt(
    random: np.random.Generator, model: RoutingModel, g: Floats, layer: int, n_tokens: int
) -> npt.NDArray[np.uint16]:
    """Draw one prompt in one layer: [n_tokens, used]."""
    scale = model.scale(layer)
    z = random.standard_normal((n_tokens, model.experts), dtype=np.float32)
    z += g + random.standard_normal(model.experts, dtype=np.float32) * np.float32(scale * model.sigma_s)
    for sigma, rho in ((model.sigma_a, model.rho_a), (model.sigma_b, model.rho_b)):
        if sigma > 0:
            z += _autoregressive(random, (n_tokens, model.experts), scale * sigma, rho)
    best = np.argpartition(-z, model.used - 1, axis=1)[:, : model.used]
    order = np.argsort(-np.take_along_axis(z, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1).astype(np.uint16)


def _autoregressive(random: np.random.Generator, shape: tuple[int, int], sigma: float, rho: float) -> Floats:
    """Draw stationary AR(1) processes along the first axis.

    x(t) = ρ x(t-1) + √(1-ρ²) σ ε(t) and x(0) = σ ε(0), with ε ~ N(0, 1).
    """
    drawn = random.standard_normal(shape, dtype=np.float32)
    drawn[0] *= np.float32(sigma)
    drawn[1:] *= np.float32(sigma * np.sqrt(1 - rho * rho))
    one, decay = np.ones(1, dtype=np.float32), np.array([1, -rho], dtype=np.float32)
    return np.asarray(lfilter(one, decay, drawn, axis=0), dtype=np.float32)


def _sources(
    random: np.random.Generator, n_tokens: int, prompt_tokens: int, repetition: float
) -> npt.NDArray[np.int64]:
    """Return for each token the one whose routing it has: itself, or one of its prompt that it repeats."""
    source = np.arange(n_tokens, dtype=np.int64)
    if repetition == 0:
        return source
    at = 0
    while at < n_tokens:
        end = min(n_tokens, (at // prompt_tokens + 1) * prompt_tokens)
        loop = int(random.integers(LOOP_TOKENS[0], LOOP_TOKENS[1] + 1))
        again = loop * int(random.integers(LOOP_ROUNDS[0], LOOP_ROUNDS[1] + 1))
        fresh = loop + round(max(0.0, again * (1 - repetition) / repetition - loop) * 2 * random.random())
        first = min(at + fresh, end)
        last = min(first + again, end)
        if first - loop >= at:
            source[first:last] = source[first - loop + np.arange(last - first) % loop]
        at = last
    return source
