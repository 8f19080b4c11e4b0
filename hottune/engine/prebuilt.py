"""Use a llama.cpp that is already built: find its parts, and refuse one that would ignore our device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hottune.engine.elf import needed_libraries
from hottune.engine.executable import require_version
from hottune.engine.facts import Backend
from hottune.errors import SourceInvalidError

_GPU_BACKENDS = (Backend.CUDA, Backend.HIP, Backend.VULKAN, Backend.METAL)
_LIBRARY = re.compile(r"lib([\w-]+?)\.(?:so|dylib)(?:\.[\d.]+)?$")


@dataclass(frozen=True)
class Prebuilt:
    """Where the parts of an already built llama.cpp are."""

    llama_server: Path
    llama_fit_params: Path | None
    libraries: tuple[Path, Path]  # libggml-base and libggml, maybe with a version at the end
    backend: Backend
    build_number: int  # 0 when its build did not know it
    commit: str


def find_prebuilt(folder: Path) -> Prebuilt:
    """Look for llama-server and its libraries in `folder`, `bin/`, `lib/` and beside them.

    Raises:
        SourceInvalidError: no llama-server, one that does not run, or one that was built in a way that makes
            it silently ignore our device (static, or without GGML_BACKEND_DL).
    """
    folder = folder.expanduser().resolve()
    server = _first(folder / "llama-server", folder / "bin" / "llama-server")
    if server is None:
        raise SourceInvalidError(
            f"There is no llama-server in {folder} or {folder / 'bin'}.",
            next_step="Name the folder that holds llama-server.",
        )
    version = require_version(server)
    # A system package's llama-server is a link into its real folder in some distributions.
    folders = list(dict.fromkeys(_library_folders(server.parent) + _library_folders(server.resolve().parent)))
    libraries = _libraries(folders)
    base = libraries.get("ggml-base")
    if base is None or not _reaches(server, "ggml-base", libraries):
        raise _ignores_device(server, "is linked statically (it has no libggml-base of its own)")
    backends = {name: path for name, path in libraries.items() if name.startswith("ggml-cpu")}
    loader = libraries.get("ggml")
    linked = (needed_libraries(loader) if loader else None) or []
    if loader is None or not backends or any(_name(library).startswith("ggml-cpu") for library in linked):
        raise _ignores_device(server, "was built without GGML_BACKEND_DL")
    gpu = next((backend for backend in _GPU_BACKENDS if f"ggml-{backend}" in libraries), Backend.CPU)
    return Prebuilt(
        llama_server=server,
        llama_fit_params=_first(server.with_name("llama-fit-params")),
        libraries=(base, loader),
        backend=gpu,
        build_number=version[0],
        commit=version[1],
    )


def link_folder(found: Prebuilt, folder: Path) -> Path:
    """Return a folder in which the linker finds libggml-base and libggml under their plain names.

    A system package without its -dev part has them with a version number only, so `folder` gets links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, library in zip(("libggml-base", "libggml"), found.libraries, strict=True):
        link = folder / f"{name}{'.dylib' if '.dylib' in library.name else '.so'}"
        link.unlink(missing_ok=True)
        link.symlink_to(library.resolve())
    return folder


def _ignores_device(server: Path, how: str) -> SourceInvalidError:
    return SourceInvalidError(
        f"{server} {how}.",
        "Such a llama-server silently ignores the hot-expert device.",
        "Use a release archive, or a build with -DGGML_BACKEND_DL=ON, or leave --llama-bin away.",
    )


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _library_folders(bin_dir: Path) -> list[Path]:
    """Return where a server's libraries may lie, nearest first; back-ends may be one level deeper."""
    prefix = bin_dir.parent
    places = [bin_dir, bin_dir / "lib", prefix / "lib", prefix / "lib64", *prefix.glob("lib/*-linux-gnu*")]
    deeper = [
        sub
        for place in places
        for name in ("ggml", "llama.cpp")
        for sub in (place / name, *place.glob(f"{name}/*"))
    ]
    return [place.resolve() for place in (*places, *deeper) if place.is_dir()]


def _libraries(folders: list[Path]) -> dict[str, Path]:
    """Map `ggml-base` to the first libggml-base.so[.version] found."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("lib*")):
            if _LIBRARY.match(path.name) and path.is_file():
                found.setdefault(_name(path.name), path)
    return found


def _name(file_name: str) -> str:
    match = _LIBRARY.match(file_name)
    return match[1] if match else file_name


def _reaches(program: Path, wanted: str, libraries: dict[str, Path]) -> bool:
    """Tell whether a program asks for a library, itself or through its other libraries.

    True also where that cannot be read (a format other than ELF).
    """
    waiting, seen = [program], {program}
    while waiting:
        needed = needed_libraries(waiting.pop())
        if needed is None:
            return True
        names = [_name(library) for library in needed]
        if wanted in names:
            return True
        fresh = [libraries[name] for name in names if name in libraries and libraries[name] not in seen]
        seen.update(fresh)
        waiting += fresh
    return False
