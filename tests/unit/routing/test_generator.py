"""The generator: the model it is said to draw from, and the published figures it is fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hottune.routing import generator, statistics
from hottune.routing.generator import RoutingModel, generate
from hottune.routing.presets import PRESETS, evaluate

#: None that `tools/fit_generator.py` used.
SEED = 7


def model(**changes: float) -> RoutingModel:
    values = {"layers": 3, "experts": 32, "used": 4, "sigma_g": 0.5, "sigma_s": 1, "sigma_a": 1, "rho_a": 0.6}
    return RoutingModel.model_validate(values | changes)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.9]))
def test_every_token_has_distinct_experts_in_every_layer(
    n_tokens: int, prompt_tokens: int, used: int, repetition: float
) -> None:
    drawn = generate(
        model(used=used, experts=5), n_tokens, prompt_tokens=prompt_tokens, repetition=repetition
    )
    assert drawn.experts.shape == (n_tokens, 3, used)
    ordered = np.sort(drawn.experts, axis=2)
    assert (ordered[..., -1] < 5).all()
    assert (np.diff(ordered.astype(int), axis=2) > 0).all()
    assert drawn.starts.tolist() == list(range(0, n_tokens, prompt_tokens))


def test_equal_seeds_give_equal_routing_with_any_number_of_workers() -> None:
    one = generate(model(), 200, seed=5, prompt_tokens=64)
    assert (one.experts == generate(model(), 200, seed=5, prompt_tokens=64, workers=3).experts).all()
    assert (one.experts != generate(model(), 200, seed=6, prompt_tokens=64).experts).any()
    assert (one.experts[:, 0] != one.experts[:, 1]).any(), "layers are drawn apart"


def test_the_processes_have_the_deviation_and_correlation_that_they_are_said_to_have() -> None:
    drawn = generator._autoregressive(np.random.default_rng(0), (400, 2000), 1.7, 0.9)
    for at in (0, 20, 399):
        assert drawn[at].std() == pytest.approx(1.7, rel=0.08)
    assert np.corrcoef(drawn[100], drawn[101])[0, 1] == pytest.approx(0.9, abs=0.02)
    assert np.corrcoef(drawn[100], drawn[110])[0, 1] == pytest.approx(0.9**10, abs=0.06)


def test_noise_alone_is_a_random_choice() -> None:
    plain = model(sigma_g=0, sigma_s=0, sigma_a=0, experts=64, layers=1)
    drawn = generate(plain, 6000).layer(0)
    assert statistics.repeats(drawn) == pytest.approx(4 / 64, abs=0.006)
    assert statistics.lru_curve(statistics.stack_distances(drawn), 64)[16] == pytest.approx(0.25, abs=0.02)


def test_what_belongs_to_the_model_outlasts_a_prompt_and_what_belongs_to_a_prompt_does_not() -> None:
    def kept(**sigma: float) -> float:
        none = {"sigma_g": 0, "sigma_s": 0, "sigma_a": 0, "layers": 1}
        drawn = generate(model(**(none | sigma)), 800, prompt_tokens=400)
        counts = [np.bincount(half.ravel(), minlength=32) for half in np.split(drawn.experts[:, 0], 2)]
        return float(np.corrcoef(*counts)[0, 1])

    assert kept(sigma_g=2) > 0.95
    assert abs(kept(sigma_s=2)) < 0.5


def test_early_layers_repeat_less() -> None:
    early = model(layers=10, early_share=0.4, early_scale=0.2)
    assert [round(early.scale(layer), 3) for layer in range(5)] == [0.2, 0.4, 0.6, 0.8, 1]
    drawn = generate(early, 1500)
    found = [statistics.repeats(drawn.layer(layer)) for layer in (0, 2, 9)]
    assert found == sorted(found)
    assert found[0] < 0.7 * found[2]


def test_looping_text_repeats_its_routing_and_only_its_own_prompts() -> None:
    drawn = generate(model(), 2000, prompt_tokens=500, repetition=0.6, seed=1)
    source = generator._sources(np.random.default_rng((1, 3)), 2000, 500, 0.6)
    assert (drawn.experts == drawn.experts[source]).all()
    assert (source // 500 == np.arange(2000) // 500).all()
    assert (source <= np.arange(2000)).all()
    assert np.mean(source != np.arange(2000)) == pytest.approx(0.6, abs=0.12)
    plain = generate(model(), 2000, prompt_tokens=500, seed=1)
    hits = [statistics.lru_curve(statistics.stack_distances(one.layer(1)), 32)[12] for one in (plain, drawn)]
    assert hits[1] > hits[0]


@pytest.mark.parametrize(
    "wrong",
    [{"n_tokens": 0}, {"prompt_tokens": 0}, {"repetition": 1.0}, {"repetition": -0.1}, {"used": 33}],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, float]) -> None:
    asked = {"n_tokens": 10, "prompt_tokens": 5, "repetition": 0.0} | wrong
    used = int(asked.pop("used", 4))
    with pytest.raises(ValueError, match="must be positive"):
        generate(model(used=used), **asked)  # type: ignore[arg-type]


def test_a_correlation_of_one_is_no_model() -> None:
    with pytest.raises(ValidationError):
        model(rho_a=1)


# --- the presets against what is published ------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_gives_the_published_figures(name: str) -> None:
    preset = PRESETS[name]
    found = evaluate(preset.model, preset.figures, SEED)
    wrong = [
        f"{figure.label()}: {value:.3f}, published {figure.published:.3f} ({figure.source})"
        for figure, value in zip(preset.figures, found, strict=True)
        if abs(value - figure.published) > figure.tolerance
    ]
    assert not wrong


def test_a_wider_tolerance_is_the_exception() -> None:
    figures = [figure for preset in PRESETS.values() for figure in preset.figures]
    assert all(figure.source for figure in figures)
    assert sum(figure.tolerance > 0.03 for figure in figures) <= len(figures) / 5


@pytest.mark.parametrize("name", list(PRESETS))
def test_routing_without_locality_gives_none_of_the_published_hit_rates(name: str) -> None:
    preset = PRESETS[name]
    none = {"sigma_g": 0, "sigma_s": 0, "sigma_a": 0, "sigma_b": 0}
    figures = tuple(one for one in preset.figures if one.statistic in ("repeat", "lru", "lru-miss", "static"))
    found = evaluate(preset.model.model_copy(update=none), figures, SEED)
    for figure, value in zip(figures, found, strict=True):
        if figure.at < preset.model.experts / 3:  # nearly everything fits into larger caches
            assert abs(value - figure.published) > figure.tolerance, figure.label()
