"""Options that several commands share, each spelled once, and how they become a RunConfig."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hottune.cli.common import cache_dir, reports_dir, studies_dir
from hottune.engine.build import BuildOptions
from hottune.engine.facts import Backend
from hottune.errors import BadSettingError
from hottune.placement import KvType
from hottune.tasks.recipes import load_recipe
from hottune.tasks.settings import RunConfig
from hottune.units import mib, parse_size

Model = Annotated[str, typer.Argument(help="A .gguf file, owner/repo[:quant], or demo.")]
ModelOrNone = Annotated[
    str | None, typer.Argument(help="A .gguf file, owner/repo[:quant], or demo; none with --endpoint.")
]
Vram = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="VRAM ceiling of every arm, like 24GiB. Default: what is free."),
]
Headroom = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="VRAM left free when --vram is not given. Default: 512MiB."),
]
Ballast = Annotated[
    bool | None,
    typer.Option(
        "--ballast/--no-ballast",
        help="With --vram on a larger card: hold the rest of its memory. Default: yes, where CUDA is.",
    ),
]
Gpu = Annotated[
    int | None, typer.Option(metavar="N", help="Which GPU, by NVML's number. Default: most free.")
]
WorkloadName = Annotated[
    str | None,
    typer.Option("--workload", "-w", help="chat, document, code or mixed. Default: chat."),
]
Scale = Annotated[float | None, typer.Option(help="Shrink the workload's lengths, 0 to 1. Default: 1.")]
Context = Annotated[int | None, typer.Option(help="Context length, tokens.")]
LoadModeOption = Annotated[
    Literal["auto", "none", "mmap"] | None,
    typer.Option(
        "--load-mode",
        help="none: weights in pinned memory; mmap: mapped file; auto (default): none if they fit.",
    ),
]
KvOption = Annotated[
    KvType | None, typer.Option("--kv", help="Element type of the KV cache, in every arm. Default: f16.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", help="CPU threads. Default: cores less one; run tries fewer, too."),
]
Port = Annotated[int | None, typer.Option(help="Loopback port of llama-server. Default: a free one.")]
BackendOption = Annotated[
    Backend | None, typer.Option("--backend", help="GPU back-end of llama.cpp. Default: what is found.")
]
Source = Annotated[Path | None, typer.Option(metavar="DIR", help="Build this llama.cpp checkout.")]
Git = Annotated[str | None, typer.Option(metavar="URL[@REF]", help="Clone and build this repository.")]
LlamaBin = Annotated[
    Path | None, typer.Option("--llama-bin", metavar="DIR", help="Use this already built llama.cpp.")
]
Headers = Annotated[
    Path | None, typer.Option(metavar="DIR", help="With --llama-bin: the source it was built from.")
]
Sdist = Annotated[Path | None, typer.Option(metavar="FILE", help="The pinned source archive.")]
CmakeOption = Annotated[
    list[str] | None,
    typer.Option("--cmake-option", metavar="NAME=VALUE", help="One more CMake option; repeatable."),
]
Engine = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", metavar="NAME", help="Another engine: ik_llama, parmesan, or an engine file (.toml)."
    ),
]
EngineBin = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-bin", metavar="NAME=PATH", help="Of an --engine: its server or build folder, already built."
    ),
]
_ENDPOINT = "With --endpoint: "
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Measure this OpenAI-compatible server instead, like http://127.0.0.1:8080/v1."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"{_ENDPOINT}which of its models. Default: the only one."),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="VAR", help=f"{_ENDPOINT}the environment variable that holds its key."),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--completions",
        help=f"{_ENDPOINT}which route. Default: completions (no chat template), else chat.",
    ),
]
Label = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"{_ENDPOINT}its name in tables. Default: the model's.")
]
EndpointOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help=f"{_ENDPOINT}result. Default: reports/endpoint-LABEL.json."),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=1, help=f"{_ENDPOINT}seconds that a request may take.")
]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the result and errors.")]

StoredIn = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL", help="Optuna storage that has the study. Default: ./studies, ./reports."
    ),
]
Link = Annotated[
    str, typer.Option(metavar="URL", help="Address of the result file, for Markdown.", show_default=False)
]


def checked_link(link: str) -> None:
    """Take only a link that ends where it should in Markdown.

    Raises:
        BadSettingError: it does not.
    """
    if link and not re.fullmatch(r"https?://[^\s()<>\[\]|]+", link):
        raise BadSettingError(
            f"--link {link} is no address.", next_step="Give one like https://example.org/r.json."
        )


def engine_options(
    *,
    backend: Backend | None,
    source: Path | None,
    git: str | None,
    llama_bin: Path | None,
    headers: Path | None,
    sdist: Path | None,
    cmake_option: list[str] | None,
) -> BuildOptions:
    """Return which llama.cpp the engine options name."""
    return BuildOptions(
        backend=backend,
        source=absolute(source),
        git=git,
        llama_bin=absolute(llama_bin),
        headers=absolute(headers),
        sdist=absolute(sdist),
        cmake_options=tuple(cmake_option or ()),
    )


def engine_names(given: list[str] | None) -> tuple[str, ...]:
    """Return the engines that `--engine` names; paths of engine files as absolute ones."""
    return tuple(str(absolute(Path(one))) if one.endswith(".toml") else one for one in given or ())


def engine_bins(given: list[str] | None) -> dict[str, Path] | None:
    """Return what `--engine-bin` says: name -> program or folder.

    Raises:
        BadSettingError: one is not NAME=PATH.
    """
    found = {}
    for text in given or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise BadSettingError(
                f"--engine-bin: '{text}' is not NAME=PATH.", next_step="Say: --engine-bin ik_llama=PATH"
            )
        found[name] = Path(path).expanduser().absolute()
    return found or None


def run_config(
    *,
    model: str,
    vram: str | None,
    headroom: str | None = None,
    reports: Path | None = None,
    time_budget: str | None = None,
    keep_free: str | None = None,
    recipe: str | None = None,
    **settings: Any,
) -> RunConfig:
    """Make a RunConfig of what the command line said; None is what it did not say.

    The command line goes before the recipe, and the recipe before the defaults.

    Raises:
        BadSettingError: a size or a duration cannot be read, or a value is out of range.
    """
    from pydantic import ValidationError

    if settings.get("ballast") and vram is None:
        raise BadSettingError("--ballast without --vram does nothing.", next_step="Add --vram, say 12GiB.")
    given = Path(model).expanduser()
    settings["vram_mib"] = None if vram is None else size_mib(vram, "--vram")
    settings["headroom_mib"] = None if headroom is None else size_mib(headroom, "--headroom")
    settings["keep_free_mib"] = None if keep_free is None else size_mib(keep_free, "--keep-free")
    settings["time_budget_s"] = None if time_budget is None else seconds(time_budget)
    said = {name: value for name, value in settings.items() if value is not None and value != ()}
    from_recipe = load_recipe(recipe) if recipe else {}
    try:
        return RunConfig(
            # Absolute, so that the study can be resumed from another folder.
            model=str(given.absolute()) if given.exists() and model != "demo" else model,
            cache_dir=cache_dir(),
            studies_dir=studies_dir(),
            reports_dir=(reports.expanduser().absolute() if reports else reports_dir()),
            command=command_line(),
            **{**from_recipe, **said},
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        raise BadSettingError(f"{name}: {first['msg']}, not {first['input']!r}.") from error


def size_mib(text: str, option: str) -> float:
    """Return a size option in MiB; a plain number means MiB.

    Raises:
        BadSettingError: it is no size.
    """
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else mib(parse_size(text))
    except ValueError as error:
        raise BadSettingError(f"{option}: {error}.") from error


def seconds(text: str) -> float:
    """Return a duration such as `300`, `90s`, `20m` or `2h` in seconds.

    Raises:
        BadSettingError: it is no duration.
    """
    factors = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in factors else (text, "s")
    try:
        return float(number) * factors[unit]
    except ValueError as error:
        raise BadSettingError(
            f"--time-budget: '{text}' is not a duration; write it like 300s, 20m or 2h."
        ) from error


def command_line() -> str:
    """Return the command as it can be pasted into a shell again."""
    return hide_passwords(shlex.join(["hottune", *sys.argv[1:]]))


def hide_passwords(text: str) -> str:
    """Replace the password in any URL: the command line ends up in reports."""
    return re.sub(r"(://[^\s:/@]*):[^\s@/]+@", r"\1:***@", text)


def absolute(path: Path | None) -> Path | None:
    """Return a path that still leads there from another folder."""
    return None if path is None else path.expanduser().absolute()
