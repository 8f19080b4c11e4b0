"""Pulling from a hub over real HTTP: choice, resume, cache, and every way it can go wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_builder import write_small_gguf
from hub_server import COMMIT, Hub, running_hub

from hottune.engine import space
from hottune.errors import DownloadError, NoSpaceError, RepoNotFoundError
from hottune.models import hub_download, remote_read
from hottune.models.hub_download import RemoteFile, download, partial_path
from hottune.models.huggingface import pull, remote_headers, search
from hottune.models.resolve import resolve_model
from hottune.models.shape_of import moe_shape
from hottune.progress import NoProgress

REPO = "owner/Model-GGUF"
SMALL_BYTES = random.Random(1).randbytes(300_000)


class Recorder(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[float] = []

    def start(self, task: str, total: float | None = None, unit: str = "") -> None:
        self.lines.append(f"{task} {total:.0f} {unit}")

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self.done.append(done)

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_download, "_PAUSE_S", 0.01)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos[REPO] = {
            "README.md": b"# A model",
            "mmproj-F16.gguf": b"projector",
            "Model-Q4_K_M.gguf": SMALL_BYTES,
            "Model-Q8_0.gguf": b"eight bits",
        }
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class TestChoice:
    def test_the_default_quantization_is_fetched_and_nothing_else(self, hub: Hub, cache: Path) -> None:
        path = pull(REPO, cache_dir=cache)
        assert path.name == "Model-Q4_K_M.gguf"
        assert path.read_bytes() == SMALL_BYTES
        assert path.is_relative_to(cache / "models" / "hub" / "owner" / "Model-GGUF")
        assert {path for _, path, _ in hub.requests if "/resolve/" in path} == {
            f"/{REPO}/resolve/{COMMIT}/Model-Q4_K_M.gguf"
        }

    def test_a_wanted_quantization_is_fetched(self, hub: Hub, cache: Path) -> None:
        assert pull(REPO, "q8_0", cache_dir=cache).read_bytes() == b"eight bits"

    def test_one_that_does_not_exist_lists_those_that_do(self, hub: Hub, cache: Path) -> None:
        with pytest.raises(RepoNotFoundError) as caught:
            pull(REPO, "Q5_K_M", cache_dir=cache)
        assert caught.value.next_step == "Available: Q4_K_M, Q8_0."

    def test_all_parts_of_a_split_model_lie_in_one_folder(self, hub: Hub, cache: Path) -> None:
        names = [f"Q6_K/Model-Q6_K-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
        hub.repos[REPO] |= {name: f"part of {name}".encode() for name in names}
        progress = Recorder()
        first = pull(REPO, "Q6_K", cache_dir=cache, progress=progress)
        assert first.name == "Model-Q6_K-00001-of-00003.gguf"
        assert sorted(path.name for path in first.parent.glob("*.gguf")) == [
            name.removeprefix("Q6_K/") for name in names
        ]
        assert progress.done == sorted(progress.done)
        assert progress.done[-1] == sum(len(hub.repos[REPO][name]) for name in names)

    def test_a_repository_without_gguf_says_where_to_look(self, hub: Hub, cache: Path) -> None:
        hub.repos["owner/Original"] = {"model.safetensors": b"x"}
        with pytest.raises(RepoNotFoundError) as caught:
            pull("owner/Original", cache_dir=cache)
        assert "hottune models search Original" in caught.value.next_step

    def test_an_unfinished_upload_is_not_fetched(self, hub: Hub, cache: Path) -> None:
        hub.repos["owner/Half"] = {"Half-Q4_K_M-00001-of-00002.gguf": b"x"}
        with pytest.raises(RepoNotFoundError, match="1 of the 2 parts"):
            pull("owner/Half", cache_dir=cache)


class TestResume:
    def test_a_broken_connection_is_taken_up_where_it_broke(self, hub: Hub, cache: Path) -> None:
        hub.cut_after, hub.cuts_left = 100_000, 2
        assert pull(REPO, cache_dir=cache).read_bytes() == SMALL_BYTES
        assert hub.sent("GET", "/cdn/") == ["", "bytes=100000-", "bytes=200000-"]

    def test_the_next_run_goes_on_where_the_last_one_gave_up(self, hub: Hub, cache: Path) -> None:
        hub.cut_after, hub.cuts_left = 100_000, 1
        with pytest.MonkeyPatch.context() as patch, pytest.raises(DownloadError) as caught:
            patch.setattr(hub_download, "_ATTEMPTS", 0)
            pull(REPO, cache_dir=cache)
        assert "stopped after 98 KiB of 293 KiB" in caught.value.what
        assert "continues where it stopped" in caught.value.next_step
        progress = Recorder()
        assert pull(REPO, cache_dir=cache, progress=progress).read_bytes() == SMALL_BYTES
        assert hub.sent("GET", "/cdn/") == ["", "bytes=100000-"]
        assert min(progress.done) > 100_000

    def test_a_server_that_cannot_resume_sends_everything_again(self, hub: Hub, cache: Path) -> None:
        hub.cut_after, hub.cuts_left, hub.resumes = 100_000, 1, False
        assert pull(REPO, cache_dir=cache).read_bytes() == SMALL_BYTES

    def test_a_connection_that_never_brings_a_byte_ends_as_an_error(self, hub: Hub, cache: Path) -> None:
        hub.cut_after, hub.cuts_left = 0, 1000
        with pytest.raises(DownloadError, match="stopped after 0 B of 293 KiB"):
            pull(REPO, cache_dir=cache)

    def test_damaged_content_is_not_kept(self, hub: Hub, cache: Path) -> None:
        hub.lies_about_checksums = True
        with pytest.raises(DownloadError, match="checksum"):
            pull(REPO, cache_dir=cache)
        assert list(cache.rglob("*.gguf*")) == []

    def test_a_beginning_that_is_too_long_is_given_up(self, hub: Hub, tmp_path: Path) -> None:
        target = tmp_path / "file.gguf"
        partial_path(target).write_bytes(b"x" * 20)
        remote = RemoteFile(f"{hub.url}/cdn/{REPO}/Model-Q8_0.gguf", None)
        download(remote, target, headers={}, on_bytes=lambda done: None)
        assert target.read_bytes() == b"eight bits"


class TestCache:
    def test_a_second_pull_transfers_no_weights(self, hub: Hub, cache: Path) -> None:
        first = pull(REPO, cache_dir=cache)
        hub.requests.clear()
        assert pull(REPO, cache_dir=cache) == first
        assert hub.sent("GET", "/cdn/") == []

    def test_changed_weights_are_fetched_and_kept_apart_from_the_old(self, hub: Hub, cache: Path) -> None:
        first = pull(REPO, cache_dir=cache)
        hub.repos[REPO]["Model-Q4_K_M.gguf"] = b"new weights"
        second = pull(REPO, cache_dir=cache)
        assert second.parent != first.parent
        assert second.read_bytes() == b"new weights"

    def test_a_changed_readme_fetches_nothing(self, hub: Hub, cache: Path) -> None:
        first = pull(REPO, cache_dir=cache)
        hub.repos[REPO]["README.md"] = b"# Better words"
        assert pull(REPO, cache_dir=cache) == first

    def test_what_the_hub_clients_own_cache_has_is_used(self, hub: Hub, cache: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "hf" / "hub" / "models--owner--Model-GGUF" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "Model-Q4_K_M.gguf").write_bytes(SMALL_BYTES)
        assert pull(REPO, cache_dir=cache) == snapshot / "Model-Q4_K_M.gguf"
        assert hub.sent("GET", "/cdn/") == []

    def test_without_a_network_the_copy_on_this_machine_serves(
        self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = pull(REPO, cache_dir=cache)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        progress = Recorder()
        assert pull(REPO, cache_dir=cache, progress=progress) == first
        assert "cannot be reached" in progress.lines[0]

    def test_offline_mode_asks_nobody(self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = pull(REPO, cache_dir=cache)
        hub.requests.clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert pull(REPO, cache_dir=cache) == first
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
            pull(REPO, "Q8_0", cache_dir=cache)
        assert hub.requests == []


class TestTrouble:
    def test_an_unknown_repository(self, hub: Hub, cache: Path) -> None:
        with pytest.raises(RepoNotFoundError) as caught:
            pull("owner/Modle", cache_dir=cache)
        assert "owner/Modle" in caught.value.what
        assert "models search Modle" in caught.value.next_step

    def test_an_unknown_revision(self, hub: Hub, cache: Path) -> None:
        with pytest.raises(RepoNotFoundError, match="revision"):
            pull(REPO, cache_dir=cache, revision="v9")

    def test_a_gated_repository_needs_the_right_token(
        self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.gated.add(REPO)
        with pytest.raises(RepoNotFoundError, match="gated"):
            pull(REPO, cache_dir=cache)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert pull(REPO, cache_dir=cache).read_bytes() == SMALL_BYTES

    def test_a_hub_in_trouble(self, hub: Hub, cache: Path) -> None:
        hub.fails_with = 500
        with pytest.raises(DownloadError):
            pull(REPO, cache_dir=cache)

    def test_no_network(self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9"):
            pull(REPO, cache_dir=cache)

    def test_no_space(self, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = space.shutil.disk_usage("/")
        monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(NoSpaceError):
            pull(REPO, cache_dir=cache)
        assert hub.sent("GET", "/cdn/") == []


class TestHeaders:
    def test_the_shape_is_known_before_any_download(self, hub: Hub, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        write_small_gguf(path, weights=4000)
        hub.repos[REPO]["Model-Q4_K_M.gguf"] = path.read_bytes()
        found = remote_headers(REPO)
        assert found.name == "Model-Q4_K_M"
        assert found.size_bytes == path.stat().st_size
        assert moe_shape(found.headers).n_experts == 4

    def test_a_file_that_is_gone_is_named(self, hub: Hub) -> None:
        hub.repos[REPO]["Model-Q4_K_M.gguf"] = b""
        remote = RemoteFile(f"{hub.url}/no", None)
        with pytest.raises(RepoNotFoundError), remote_read.opened(remote, {}) as reader:
            reader.read()


def test_a_repository_resolves_to_a_model(hub: Hub, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_small_gguf(path)
    hub.repos[REPO]["Model-Q4_K_M.gguf"] = path.read_bytes()
    found = resolve_model(f"{REPO}:Q4_K_M", cache_dir=cache)
    assert found.argument == f"{REPO}:Q4_K_M"
    assert found.name == "Model-Q4_K_M"
    assert found.shape.n_experts == 4


def test_search_returns_repositories_with_their_numbers(hub: Hub) -> None:
    hub.repos["other/Thing"] = {}
    (found,) = search("model", limit=5)
    assert (found.repo, found.downloads, found.likes, found.updated) == (REPO, 1234, 5, "2026-03-04")


def test_search_without_a_network_is_a_download_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError):
        search("model")
