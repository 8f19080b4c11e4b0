"""Recipes: named settings of a run, shipped as TOML files or written by the user."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import hottune
from hottune.errors import BadSettingError

#: RunConfig fields that a recipe may set; the rest belongs to one machine or one command.
ALLOWED = frozenset(
    {
        *("trials", "replicates", "confirm_top", "time_budget_s", "quick", "objective", "seed"),
        *("workload", "scale", "context", "load_mode", "ubatches", "headroom_mib"),
    }
)


def recipes_dir() -> Path:
    """Return the folder of the shipped recipes: inside the package, or the checkout's."""
    package = Path(hottune.__file__).parent
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "studies" / "recipes"


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in recipes_dir().glob("*.toml"))


def load_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a shipped recipe, or of a TOML file.

    Raises:
        BadSettingError: there is no such recipe, or it is no TOML, or it sets what a recipe cannot.
    """
    given = Path(name).expanduser()
    path = given if given.suffix == ".toml" else recipes_dir() / f"{name}.toml"
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettingError(
            f"There is no recipe '{name}'.", next_step=f"Known: {', '.join(names())}; or give a .toml file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettingError(f"The recipe {path} is not TOML.", str(error)) from error
    settings.pop("description", None)
    unknown = sorted(settings.keys() - ALLOWED)
    if unknown:
        raise BadSettingError(
            f"The recipe {path} sets {', '.join(unknown)}.",
            "A recipe holds only what is the same on every machine.",
            f"Allowed: {', '.join(sorted(ALLOWED))}.",
        )
    return settings
