from __future__ import annotations

from pathlib import Path

import pytest
from engine_builder import REAL_GPU, engine_build, model_file, placement

from hottune.engine.argv import Serving, server_command
from hottune.engine.facts import Backend
from hottune.engine.preset import preset
from hottune.errors import BadSettingError
from hottune.placement import KvType


def preset_of(model: str = "/m/big model.gguf", extra: tuple[str, ...] = (), name: str = "big") -> str:
    argv, env = server_command(
        engine_build(backend=Backend.CUDA),
        Path(model),
        placement(n_cpu_moe=31, hot_k=8, kv_type_k=KvType.Q8_0),
        shape=model_file(Path(model)).shape,
        port=1234,
        gpu=REAL_GPU,
        ceiling_mib=12000,
        serving=Serving(extra=extra),
    )
    return preset(name, argv, env)


def settings(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith(";")]
    return dict(line.split(" = ", 1) for line in lines)


def test_keys_are_long_flags_without_dashes() -> None:
    found = settings(preset_of())
    assert found["model"] == "/m/big model.gguf"
    assert found["n-gpu-layers"] == "99"
    assert found["n-cpu-moe"] == "31"
    assert found["ctx-size"] == "1024"
    assert found["cache-type-k"] == "q8_0"
    assert found["fit"] == "off"
    assert all(not key.startswith("-") for key in found)


def test_a_flag_without_a_value_is_true() -> None:
    assert settings(preset_of())["no-context-shift"] == "true"


def test_what_the_router_chooses_is_left_out() -> None:
    assert {"host", "port", "lv"}.isdisjoint(settings(preset_of()))


def test_more_arguments_come_in_and_the_last_of_two_counts() -> None:
    found = settings(preset_of(extra=("--jinja", "-c", "2048", "--seed", "-1")))
    assert found["jinja"] == "true"
    assert found["ctx-size"] == "2048"
    assert found["seed"] == "-1"


def test_comments_say_which_environment_the_router_needs() -> None:
    comments = [line for line in preset_of().splitlines() if line.startswith(";")]
    assert any("GGML_HOT_K=8" in line and "CUDA_VISIBLE_DEVICES=1" in line for line in comments)
    assert any("hold for all" in line for line in comments)


def test_the_sections_name_has_nothing_that_ends_it() -> None:
    assert "[my-model-v2:Q4_K]" in preset_of(name="my model] v2:Q4_K").splitlines()


@pytest.mark.parametrize("path", ["/m/a;b.gguf", "/m/a#b.gguf"])
def test_what_the_format_would_cut_off_is_refused(path: str) -> None:
    with pytest.raises(BadSettingError, match="cannot stand in a preset"):
        preset_of(model=path)
