"""GGUF models from the Hugging Face Hub: which file of a repository, where it lies, search.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` are read when a function is called.
A file that huggingface_hub's own cache has is used from there; others go to hottune's cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from pydantic import BaseModel, ConfigDict, Field

from hottune.engine.lock import only_one
from hottune.engine.space import require_space
from hottune.errors import DownloadError, HottuneError, RepoNotFoundError
from hottune.models.hub_download import RemoteFile, download, received_bytes
from hottune.models.names import GgufSet, choose, gguf_sets
from hottune.models.remote_headers import RemoteHeaders, read_headers
from hottune.progress import NoProgress, Progress
from hottune.units import format_bytes

_TIMEOUT_S = 30.0
_SPARE_BYTES = 64 << 20


class HubModel(BaseModel):
    """One repository found by `search`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    downloads: int = Field(description="in the last 30 days")
    likes: int
    updated: str = Field(description="date of the last change, ISO 8601; empty when the hub does not say")


def search(query: str, limit: int = 20, *, token: str | None = None) -> list[HubModel]:
    """Return repositories with GGUF files that match the query, most downloaded first.

    Raises:
        DownloadError: the hub cannot be reached.
    """
    api = HfApi(endpoint=_endpoint(), token=token)
    if _offline():
        raise _is_offline("A search needs the hub")
    try:
        httpx.head(_endpoint(), timeout=_TIMEOUT_S)  # fails at once, where the client tries for 20 s
        found = list(api.list_models(search=query, filter="gguf", sort="downloads", limit=limit))
    except Exception as error:
        raise _ours(error, f"search for '{query}'") from error
    return [
        HubModel(
            repo=model.id,
            downloads=model.downloads or 0,
            likes=model.likes or 0,
            updated=model.last_modified.date().isoformat() if model.last_modified else "",
        )
        for model in found
    ]


def pull(
    repo: str,
    quant: str | None = None,
    *,
    cache_dir: Path,
    progress: Progress | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> Path:
    """Make one model of a repository ready on this machine and return its file, or its first part.

    Args:
        repo: `owner/name`.
        quant: tag in the file's name, as `Q4_K_M`; by default the first of `names.PREFERRED_QUANTS` there is.
        cache_dir: hottune's cache folder.
        progress: told the bytes of all parts together.
        token: by default the one the user is logged in with, or HF_TOKEN.
        revision: branch, tag or commit; by default the main branch.

    Raises:
        RepoNotFoundError: no such repository, revision or quantization, or it needs a token.
        DownloadError: the hub cannot be reached, or the connection broke; running again resumes.
        NoSpaceError: the disk has too little room for the rest.
    """
    progress = progress or NoProgress()
    if _offline():
        cached = _cached(repo, quant, cache_dir)
        if cached is None:
            raise _is_offline(f"{repo}{f':{quant}' if quant else ''} is not on this machine")
        return cached
    try:
        info = _info(repo, revision, token)
    except DownloadError:
        cached = _cached(repo, quant, cache_dir)
        if cached is None:
            raise
        progress.say(f"The hub cannot be reached; using the copy on this machine: {cached.name}")
        return cached
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    chosen = _choose(repo, list(files), quant)
    in_hub_cache = [_in_hub_cache(repo, name, info.sha) for name in chosen.files]
    if in_hub_cache[0] is not None and None not in in_hub_cache:
        return in_hub_cache[0]
    return _download_all(repo, info, [files[name] for name in chosen.files], cache_dir, progress, token)


def remote_headers(
    repo: str, quant: str | None = None, *, token: str | None = None, revision: str | None = None
) -> RemoteHeaders:
    """Return what `pull` would fetch: the files, their bytes together, and their headers.

    Reads a few MiB of each file. Raises the errors of `pull`, and ModelCorruptError.
    """
    if _offline():
        raise _is_offline(f"The headers of {repo} are not on this machine")
    info = _info(repo, revision, token)
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    chosen = _choose(repo, list(files), quant)
    remotes = [_remote(repo, info, files[name]) for name in chosen.files]
    return read_headers(chosen.name, remotes, _authorization(token))


def _info(repo: str, revision: str | None, token: str | None) -> ModelInfo:
    api = HfApi(endpoint=_endpoint(), token=token)
    try:
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except Exception as error:
        raise _ours(error, repo) from error


def _authorization(token: str | None) -> dict[str, str]:
    secret = token or huggingface_hub.get_token()
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def _choose(repo: str, names: list[str], quant: str | None) -> GgufSet:
    sets = gguf_sets(names)
    if not sets:
        raise RepoNotFoundError(
            f"The repository {repo} has no GGUF files.",
            "It probably holds the original weights.",
            f"Look for a conversion: hottune models search {repo.rsplit('/', 1)[-1]}",
        )
    chosen = choose(sets, quant)
    if chosen is None:
        tags = sorted({one.quant or one.name for one in sets})
        raise RepoNotFoundError(
            f"The repository {repo} has no quantization {quant}.", "", f"Available: {', '.join(tags)}."
        )
    if not chosen.complete:
        raise RepoNotFoundError(
            f"{repo} has only {len(chosen.files)} of the {chosen.n_parts} parts of {chosen.name}.",
            "Its upload is probably not finished.",
            "Choose another quantization, or wait.",
        )
    return chosen


def _download_all(
    repo: str,
    info: ModelInfo,
    files: list[RepoSibling],
    cache_dir: Path,
    progress: Progress,
    token: str | None,
) -> Path:
    folder = _repo_folder(cache_dir, repo) / _content_key(files)
    targets = [folder / Path(file.rfilename).name for file in files]
    remotes = [_remote(repo, info, file) for file in files]
    with only_one(folder / ".lock", progress, purpose=f"downloading {repo}"):
        total = sum(remote.size or 0 for remote in remotes)
        missing = total - sum(received_bytes(target) for target in targets)
        if all(target.is_file() for target in targets) and missing == 0:
            return targets[0]
        require_space(folder, max(0, missing) + _SPARE_BYTES, f"{repo} ({format_bytes(total)})")
        what = targets[0].name if len(targets) == 1 else f"{targets[0].name} and {len(targets) - 1} more"
        progress.start(f"Downloading {what}", total or None, "bytes")
        before = 0
        for remote, target in zip(remotes, targets, strict=True):
            base = before

            def tell(done: int, base: int = base) -> None:
                progress.update(base + done, total or None)

            download(remote, target, headers=_authorization(token), on_bytes=tell)
            before += target.stat().st_size
        progress.finish(format_bytes(before))
    return targets[0]


def _remote(repo: str, info: ModelInfo, file: RepoSibling) -> RemoteFile:
    url = huggingface_hub.hf_hub_url(repo, file.rfilename, revision=info.sha, endpoint=_endpoint())
    return RemoteFile(url, file.size, file.lfs.sha256 if file.lfs else "")


def _content_key(files: list[RepoSibling]) -> str:
    """Return a folder name that changes when any file does, so that versions never mix."""
    facts = [(file.rfilename, file.lfs.sha256 if file.lfs else file.blob_id, file.size) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _repo_folder(cache_dir: Path, repo: str) -> Path:
    return cache_dir / "models" / "hub" / repo


def _in_hub_cache(repo: str, name: str, revision: str | None) -> Path | None:
    found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision, cache_dir=_hub_cache())
    return Path(found) if isinstance(found, str) else None


def _cached(repo: str, quant: str | None, cache_dir: Path) -> Path | None:
    """Return the wanted model from a cache, newest copy first, without asking the hub."""
    snapshots = _hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots"
    folders = [path for root in (_repo_folder(cache_dir, repo), snapshots) for path in root.glob("*/")]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
        chosen = choose([one for one in gguf_sets(names) if one.complete], quant)
        if chosen is not None:
            return folder / chosen.files[0]
    return None


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _is_offline(what: str) -> DownloadError:
    return DownloadError(
        f"{what}, and HF_HUB_OFFLINE forbids to ask for it.",
        "",
        "Unset HF_HUB_OFFLINE, or give a local file.",
    )


def _ours(error: Exception, what: str) -> HottuneError:
    """Return our error for one of the hub client's; anything that is not about the hub is raised as it is."""
    if isinstance(error, RevisionNotFoundError):
        return RepoNotFoundError(f"The repository {what} has no such revision.", "", "Check --revision.")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)) or status in (401, 403, 404):
        return RepoNotFoundError(
            f"There is no repository {what} on the Hugging Face Hub for you (nor a file of that name here).",
            "Either its name is wrong, or it is private or gated and needs a token.",
            f"Look for it with `hottune models search {what.rsplit('/', 1)[-1]}`; for a gated one accept its "
            "licence on its page and log in with `hf auth login` or HF_TOKEN.",
        )
    # The client is built on httpx or on a successor of another name, so look at where the error comes from.
    if isinstance(error, OSError) or type(error).__module__.split(".")[0].startswith("httpx"):
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DownloadError(
            f"The Hugging Face Hub ({_endpoint()}) cannot be asked about {what}: {detail}",
            "There is no network, a proxy blocks it, or the hub has trouble.",
            "Try again later, set HF_ENDPOINT to a mirror, or give a local file.",
        )
    raise error
