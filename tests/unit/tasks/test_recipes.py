from __future__ import annotations

from pathlib import Path

import pytest

from hottune.cli.options import run_config
from hottune.errors import BadSettingError
from hottune.tasks.recipes import load_recipe, names
from hottune.workload import workloads


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_makes_a_valid_run(name: str) -> None:
    config = run_config(model="demo", vram=None, recipe=name)
    assert config.workload in workloads.names()
    assert config.trials_wanted >= 10


def test_the_command_line_goes_before_the_recipe() -> None:
    assert run_config(model="demo", vram=None, recipe="thorough").trials == 40
    assert run_config(model="demo", vram=None, recipe="thorough", trials=3).trials == 3


def test_an_own_recipe_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('description = "mine"\nreplicates = 9\n')
    assert load_recipe(str(path)) == {"replicates": 9}


@pytest.mark.parametrize("text", ["cache_dir = '/tmp'", "trials = ", "tirals = 3"])
def test_a_recipe_that_sets_what_it_cannot_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BadSettingError):
        load_recipe(str(path))


def test_an_unknown_recipe_names_those_that_ship() -> None:
    with pytest.raises(BadSettingError, match="thorough"):
        load_recipe("nothing")
