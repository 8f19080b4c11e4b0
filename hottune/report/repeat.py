"""Shell commands that repeat a study on a fresh clone of hottune, from what the report alone says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from hottune.models.inflation import Inflation
from hottune.models.shape import ModelFile, MoeShape
from hottune.report.schema import Report
from hottune.report.wording import is_virtual
from hottune.units import format_bytes

PROGRAM = ".venv/bin/hottune"
#: Options with a value: what goes where on the first machine, and what only that machine has.
_PLACES = {"--reports", "--storage", "--worker", "--port", "--sdist", "--gpu"}
_LOCAL = {"--trace", "--source", "--llama-bin", "--headers", "--engine-bin"}
_SHOWS = {"--json", "--quiet", "-q"}
_HUB = re.compile(r"[\w.-]+/[\w.-]+?(:[\w.-]+)?")
_NUMBERS = re.compile(r"(\d+) layers, (\d+) experts of (\d+), width (\d+), (\w+)")


def repeat(report: Report) -> list[str]:
    """Return lines for a shell: set up, get the model where hottune can make it, run.

    What another machine would decide otherwise is said: the ceiling, and the virtual GPU. What lies on the
    first machine alone (a trace, a llama.cpp of its own) is left out, and a comment says so.
    """
    try:
        words = shlex.split(report.command)
    except ValueError:
        words = []
    if words[:2] != ["hottune", "run"]:  # the project's own benchmarks
        return [report.command] if report.command else []
    kept: list[str] = []
    left: list[str] = []
    for option, value in _pairs(words[2:], report.model):
        if option in _PLACES or option in _SHOWS:
            continue
        if option in _LOCAL or (option == "--recipe" and value.endswith(".toml")):
            left.append(f"{option} {Path(value).name}")
        else:
            kept += [option] if option else []
            kept += [value] if value else []
    given = {word.partition("=")[0] for word in kept}
    if "--vram" not in given:
        kept += ["--vram", f"{report.ceiling_mib:.0f}MiB"]
    if is_virtual(report) and "--backend" not in given:
        kept += ["--backend", "cpu"]
    model, made = _model(report.model)
    comments = [f"# left out, what only the first machine has: {', '.join(left)}"] if left else []
    return ["make setup", *made, *comments, shlex.join([PROGRAM, "run", model, *kept])]


def _pairs(words: list[str], model: ModelFile) -> Iterator[tuple[str, str]]:
    """Return options with their values, the model left out; a word by itself has no option."""
    place, found = 0, False
    names = {model.argument, Path(model.argument).name, model.path.name}
    while place < len(words):
        word = words[place]
        place += 1
        option, equals, value = word.partition("=")
        if option.startswith("--") and equals:
            yield option, value
        elif word in _PLACES | _LOCAL | {"--recipe"}:
            yield word, words[place] if place < len(words) else ""
            place += 1
        elif not found and _is_model(words, place - 1, names):
            found = True
        elif word.startswith("-"):
            yield word, ""
        else:
            yield "", word


def _is_model(words: list[str], place: int, names: set[str]) -> bool:
    """Whether a word is the model: the first one, or one of its names that is not the study's name."""
    word = words[place]
    if place == 0:
        return not word.startswith("-")
    return (word in names or Path(word).name in names) and words[place - 1] != "--study"


def _model(model: ModelFile) -> tuple[str, list[str]]:
    """Return the MODEL argument for another machine, and the lines that get the model there."""
    if model.argument == "demo" or (_HUB.fullmatch(model.argument) and not _is_file(model.argument)):
        return model.argument, []
    name = model.path.name
    if model.inflated is not None:
        return name, _inflate(model.inflated, model.shape, name)
    what = f"{format_bytes(model.size_bytes)}, fingerprint {model.fingerprint}"
    return name, [f"# {name} ({what}) belongs into this folder; `hottune models inspect` shows both"]


def _is_file(argument: str) -> bool:
    return argument.startswith(("/", ".", "~")) or argument.lower().endswith(".gguf")


def _inflate(found: Inflation, shape: MoeShape, name: str) -> list[str]:
    lines = []
    if found.base != "demo":
        lines.append(f"# {found.base}.gguf has sha256 {found.base_sha256}")
    base = found.base if found.base == "demo" else f"{found.base}.gguf"
    options = list(found.options)
    if not options and (match := _NUMBERS.fullmatch(found.like)):  # made before it was kept with the model
        names = ("--layers", "--experts", "--ff", "--embd", "--quant")
        options = [word for pair in zip(names, match.groups(), strict=True) for word in pair]
        options += ["--used", str(shape.n_used)]
    if not options:
        return [*lines, f"# {name} is {base} inflated to the shape of {found.like}: hottune models inflate"]
    return [*lines, shlex.join([PROGRAM, "models", "inflate", base, name, *options])]
