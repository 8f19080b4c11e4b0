"""From the MODEL argument to a `ModelFile`: a path, `owner/repo[:quant]`, or `demo`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hottune.errors import ModelCorruptError, ModelNotFoundError
from hottune.models.demo import DEMO, demo_path
from hottune.models.fingerprint import fingerprint
from hottune.models.gguf_header import GgufHeader, read_header_file
from hottune.models.inflation import inflation_of
from hottune.models.names import gguf_sets, part_name, split_part
from hottune.models.shape import ModelFile
from hottune.models.shape_of import moe_shape
from hottune.models.synthesize import SYNTHETIC_KEY
from hottune.progress import Progress

_REPO = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?::(?P<quant>[\w.-]+))?")
_HOW = "Give a .gguf file, a Hugging Face repository (owner/repo or owner/repo:Q4_K_M), or demo."


def resolve_model(
    argument: str,
    *,
    cache_dir: Path,
    progress: Progress | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> ModelFile:
    """Make the model that the argument names ready on this machine, and read its shape.

    Anything that exists as a path is a path. Only headers and a few blocks are read of the weights.

    Args:
        argument: a .gguf file (of a split model any part), a folder that holds one model,
            `owner/repo[:quant]`, or `demo`.
        cache_dir: hottune's cache folder; downloads go to `models/` in it.
        progress: told about downloads.
        token: for Hugging Face; by default the one the user is logged in with (or HF_TOKEN).
        revision: branch, tag or commit of the repository.

    Raises:
        ModelNotFoundError: no such file, or it cannot be read, or a part is missing.
        ModelCorruptError: not a GGUF, or truncated.
        NotMoeError: the model is dense.
        RepoNotFoundError, DownloadError, NoSpaceError: see `huggingface.pull`.
    """
    if argument == DEMO:
        return load_model(demo_path(), DEMO, name=DEMO)
    path = Path(argument).expanduser()
    if (repo := hub_repo(argument)) is not None:
        from hottune.models import huggingface  # its client takes long to import

        path = huggingface.pull(*repo, cache_dir=cache_dir, progress=progress, token=token, revision=revision)
    return load_model(path, argument)


def hub_repo(argument: str) -> tuple[str, str | None] | None:
    """Return repository and quantization when the argument means the Hugging Face Hub, else None."""
    if argument.startswith((".", "/", "~")) or argument.lower().endswith(".gguf"):
        return None
    match = _REPO.fullmatch(argument)
    if match is None or Path(argument).exists():
        return None
    return match["repo"], match["quant"]


def load_model(path: Path, argument: str, *, name: str | None = None) -> ModelFile:
    """Read the headers of the model at `path` (a file, a part or a folder); see `resolve_model`."""
    parts = model_parts(path)
    headers = [_header(part) for part in parts]
    _check_parts(parts, headers)
    part = split_part(parts[0].name)
    return ModelFile(
        argument=argument,
        name=name or (part[0] if part else parts[0].stem),
        path=parts[0],
        size_bytes=sum(file.stat().st_size for file in parts),
        fingerprint=fingerprint(list(zip(parts, headers, strict=True))),
        synthetic=headers[0].metadata.get(SYNTHETIC_KEY) is True,
        inflated=inflation_of(headers[0]),
        shape=moe_shape(headers),
    )


def model_parts(path: Path) -> list[Path]:
    """Return all files of the model, the first part first, as absolute paths.

    Raises:
        ModelNotFoundError: the path or a part does not exist, or a folder does not hold exactly one model.
    """
    path = path.absolute()
    if path.is_dir():
        path = _only_model(path)
    if not path.is_file():
        raise _not_found(path)
    part = split_part(path.name)
    if part is None:
        return [path]
    stem, _, count = part
    parts = [path.with_name(part_name(stem, number, count)) for number in range(1, count + 1)]
    missing = [file.name for file in parts if not file.is_file()]
    if missing:
        raise ModelNotFoundError(
            f"{len(missing)} of the {count} parts of {stem} are missing in {path.parent}: {missing[0]}"
            f"{' and more' if len(missing) > 1 else ''}.",
            "A split model is only complete with all its parts in one folder.",
            "Download the missing parts.",
        )
    return parts


def _only_model(folder: Path) -> Path:
    models = gguf_sets(file.name for file in folder.iterdir() if file.is_file())
    if len(models) == 1:
        return folder / models[0].files[0]
    if not models:
        raise ModelNotFoundError(f"The folder {folder} has no .gguf file.", "", _HOW)
    names = ", ".join(model.files[0] for model in models[:8])
    raise ModelNotFoundError(
        f"The folder {folder} has {len(models)} models: {names}.", "", "Name one of the files."
    )


def _header(path: Path) -> GgufHeader:
    try:
        return read_header_file(path)
    except OSError as error:
        raise ModelNotFoundError(
            f"{path} cannot be read: {error.strerror or error}.", "", "Check the file's permissions and disk."
        ) from error


def _check_parts(parts: Sequence[Path], headers: Sequence[GgufHeader]) -> None:
    count = headers[0].metadata.get("split.count", len(parts))
    if isinstance(count, int) and count > 1 and count != len(parts):
        raise ModelCorruptError(
            f"{parts[0].name} is one of {count} parts, but its name does not say so.",
            "llama.cpp finds the other parts by their names.",
            f"Give the files their names back, like {part_name('model', 1, count)}.",
        )


def _not_found(path: Path) -> ModelNotFoundError:
    folder = path.parent
    names = [file.name for file in folder.glob("*.gguf")] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    if close:
        return ModelNotFoundError(f"There is no model file {path}.", "", f"Did you mean {folder / close[0]}?")
    if difflib.get_close_matches(path.name.lower(), [DEMO], cutoff=0.7):
        return ModelNotFoundError(f"There is no model file {path}.", "", "Did you mean demo?")
    why = "" if folder.is_dir() else f"The folder {folder} does not exist either."
    return ModelNotFoundError(f"There is no model file {path}.", why, _HOW)
