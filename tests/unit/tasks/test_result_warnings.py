"""Warnings that the model itself gives rise to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import planned

from hottune.models.inflation import Inflation
from hottune.tasks.result import _warnings

INFLATION = Inflation(
    base="demo",
    base_sha256="a" * 64,
    like="Big-30B",
    like_architecture="qwen3moe",
    exact=True,
    layers=2,
    trained_layers=1,
    layer_of=(0, 0),
    repeats=(0,),
    experts="one for one",
    inexact=(),
    not_carried=(),
    expert_bytes=1,
    like_expert_bytes=1,
    other_bytes=1,
    like_other_bytes=1,
    sentence="1 of 2 layers repeat another's routing.",
)


def test_an_inflated_model_is_warned_of_with_its_repeated_layers(tmp_path: Path) -> None:
    plan = planned.plan(tmp_path)
    model = plan.model.model_copy(update={"synthetic": True, "inflated": INFLATION})
    codes = {one.code: one.text for one in _warnings(replace(plan, model=model), [])}
    assert "layers repeat another's routing" in codes["inflated-model"]
    assert "synthetic-model" not in codes


def test_a_random_model_is_warned_of_as_before(tmp_path: Path) -> None:
    plan = planned.plan(tmp_path)
    model = plan.model.model_copy(update={"synthetic": True})
    codes = [one.code for one in _warnings(replace(plan, model=model), [])]
    assert "synthetic-model" in codes
    assert "inflated-model" not in codes
