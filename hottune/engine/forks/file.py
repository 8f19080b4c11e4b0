"""The engine file: what a fork is, how it is built, and what a Placement means to it."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hottune.engine.facts import ENGINE_NAME, Backend
from hottune.engine.forks.words import FIELDS, fields_of
from hottune.errors import EngineFileError

Words = tuple[str, ...]

#: Arguments that every server gets, whatever the placement.
ALWAYS = "always"
#: What no arm can be compared without.
REQUIRED = ("model", "port", "n_cpu_moe", "ubatch", "threads", "context", "load_mode")
#: Names that mean an arm of hottune's own.
RESERVED = frozenset({"all-cpu", "layers", "fit", "hot", "hot-2", "hot-3", "probe", "hot+layers"})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BuildSection(_Section):
    """How its source becomes a server."""

    options: Words = Field(default=(), description="CMake options, NAME=VALUE, whatever the back-end")
    backends: dict[Backend, Words] = Field(min_length=1, description="back-end -> its CMake options")
    targets: Words = Field(default=("llama-server",), min_length=1)
    server: str = Field(default="bin/llama-server", description="the program, within the build folder")

    @field_validator("server")
    @classmethod
    def _within(cls, server: str) -> str:
        if Path(server).is_absolute() or ".." in Path(server).parts:
            raise ValueError("name a path within the build folder, say bin/llama-server")
        return server


class SupportsSection(_Section):
    """What it can serve."""

    architectures: Words = Field(default=(), description="of models, as GGUF names them; empty = all")
    plug_in: bool = Field(
        default=False,
        description="it loads ggml back-ends of the pinned llama.cpp's interface while it runs, so that "
        "hottune's virtual GPU works with it",
    )


class PlacementSection(_Section):
    """What kind of arm it is."""

    kind: Literal["layers", "hot"] = Field(
        description="layers: whole layers in VRAM, as many as fit; hot: a cache of hot experts of its own"
    )
    rebalance_interval: int = Field(default=60, ge=1)
    prefill_bypass: int = Field(default=64, ge=1, le=64)


class ProofSection(_Section):
    """What shows that a placement took effect: regular expressions, all of which must be found in the log."""

    lines: Words = Field(min_length=1)

    @field_validator("lines")
    @classmethod
    def _compile(cls, lines: Words) -> Words:
        for line in lines:
            _require_pattern(line)
        return lines


class LogSection(_Section):
    """How its log says things, where that differs from llama.cpp's."""

    device: str = Field(default="", description="regular expression with groups `name` and, maybe, `about`")
    weights: str = Field(default="", description="regular expression with groups `name` and `mib`")

    @model_validator(mode="after")
    def _groups(self) -> LogSection:
        for text, groups in ((self.device, {"name"}), (self.weights, {"name", "mib"})):
            missing = groups - set(_require_pattern(text).groupindex) if text else set()
            if missing:
                raise ValueError(f"'{text}' has no group (?P<{sorted(missing)[0]}>...)")
        return self


class AnswersSection(_Section):
    """What its /completion tells."""

    probabilities: bool = Field(
        default=False, description="completion_probabilities with n_probs, in llama.cpp's form"
    )
    token_counts: bool = Field(
        default=True, description="every event of a stream has tokens_predicted; else an event is a token"
    )


class EngineFile(_Section):
    """One other engine."""

    name: str = Field(pattern=ENGINE_NAME, description="also the name of its arm")
    git: str = Field(min_length=1, description="URL, or the path of a repository")
    ref: str = Field(default="HEAD", min_length=1, description="commit, tag or branch")
    homepage: str = ""
    license: str = ""
    note: str = ""
    build: BuildSection
    supports: SupportsSection = SupportsSection()
    placement: PlacementSection
    arguments: dict[str, Words | dict[str, Words]] = Field(
        description="field of the placement (or `always`) -> arguments, or value -> arguments"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="variable -> value")
    proof: ProofSection
    log: LogSection = LogSection()
    answers: AnswersSection = AnswersSection()

    @field_validator("name")
    @classmethod
    def _own_name(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"'{name}' is an arm of hottune's own")
        return name

    @field_validator("git", "ref")
    @classmethod
    def _no_option(cls, text: str) -> str:
        if text.startswith("-") or re.search(r"\s", text):
            raise ValueError("an address or a ref begins with no hyphen and has no spaces")
        return text

    @model_validator(mode="after")
    def _templates(self) -> EngineFile:
        for key in self.arguments:
            if key != ALWAYS and key not in FIELDS:
                raise ValueError(f"arguments: '{key}' is no field; there are {', '.join(sorted(FIELDS))}")
        if isinstance(self.arguments.get(ALWAYS), dict):
            raise ValueError(f"arguments: '{ALWAYS}' is a plain list")
        needed = [*REQUIRED, *(["hot_k"] if self.placement.kind == "hot" else [])]
        missing = [field for field in needed if field not in self.mapped]
        if missing:
            raise ValueError(f"neither arguments nor environment say what {', '.join(missing)} means")
        return self

    @property
    def mapped(self) -> set[str]:
        """The fields of a placement that it has arguments or variables for."""
        found = set(self.arguments) - {ALWAYS}
        for template in self._texts():
            found |= fields_of(template)
        return found

    def digest(self) -> str:
        """Return a short hash of everything in the file."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def _texts(self) -> Iterator[str]:
        for entry in self.arguments.values():
            for words in entry.values() if isinstance(entry, dict) else (entry,):
                yield from words
        yield from self.environment.values()


def _require_pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from error


def names() -> list[str]:
    """Return the names of the engine files that ship."""
    return sorted(
        item.name.removesuffix(".toml")
        for item in files("hottune.engine.forks").iterdir()
        if item.name.endswith(".toml")
    )


def load_engine_file(given: str) -> EngineFile:
    """Return a shipped engine file by its name, or any by its path.

    Raises:
        EngineFileError: there is none, or it is not TOML, or not an engine file.
    """
    path = Path(given).expanduser()
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8")
        else:
            text = files("hottune.engine.forks").joinpath(f"{Path(given).name}.toml").read_text("utf-8")
    except OSError as error:
        raise EngineFileError(
            f"There is no engine{' file' * (path.suffix == '.toml')} '{given}'.",
            next_step=f"Known: {', '.join(names())}; or give a .toml file.",
        ) from error
    except UnicodeDecodeError as error:
        raise EngineFileError(f"The engine file {given} is not UTF-8.", str(error)) from error
    return parse(text, given)


def parse(text: str, where: str) -> EngineFile:
    """Read the text of an engine file.

    Raises:
        EngineFileError: it is not TOML, has unknown or missing fields, or a template that names no field.
    """
    try:
        return EngineFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise EngineFileError(f"The engine file {where} is not TOML.", str(error)) from error
    except ValidationError as error:
        found = [_said(one["loc"], one["msg"]) for one in error.errors()[:4]]
        raise EngineFileError(
            f"The engine file {where} is wrong: {'; '.join(found)}.",
            next_step="docs/engines.md says what stands in one.",
        ) from error


def _said(place: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if message == "Extra inputs are not permitted":
        message = "there is no such field"
    return f"{'.'.join(str(part) for part in place)}: {message}" if place else message
