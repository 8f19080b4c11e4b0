"""`hottune models`: what it prints, as JSON and for people, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import write_small_gguf, write_vocabulary
from hub_server import Hub, running_hub
from typer.testing import CliRunner

from hottune.cli import models
from hottune.models.demo import demo_path
from hottune.models.gguf_header import read_header_file
from hottune.models.synthesize import DEFAULT_VOCABULARY

SHAPE = ["--layers", "2", "--experts", "8", "--used", "2", "--embd", "256", "--ff", "256"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for llama.cpp's source, with a tiny vocabulary in it."""
    folder = tmp_path / "llama.cpp"
    (folder / "models").mkdir(parents=True)
    write_vocabulary(folder / "models" / DEFAULT_VOCABULARY, [f"word{n}" for n in range(300)])
    monkeypatch.setattr(models, "_source_dir", lambda progress: folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        write_small_gguf(tmp_path / "m.gguf")
        hub.repos["owner/Model-GGUF"] = {"Model-Q4_K_M.gguf": (tmp_path / "m.gguf").read_bytes()}
        yield hub


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(models.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def call_json(*arguments: object, code: int = 0) -> Any:
    return json.loads(call(*arguments, "--json", code=code))


def test_synthesize_writes_a_model_of_the_wanted_shape(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    found = call_json("synthesize", out, *SHAPE, "--quant", "q8_0", "--seed", 3, "--no-tokenizer")
    assert found["path"] == str(out)
    assert found["synthetic"] is True
    assert found["shape"]["n_experts"] == 8
    assert found["shape"]["quant"] == "Q8_0"


def test_synthesize_copies_the_tokenizer(tmp_path: Path, source: Path) -> None:
    assert call("synthesize", tmp_path / "model.gguf", *SHAPE).strip() == str(tmp_path / "model.gguf")
    assert "tokenizer.ggml.tokens" in read_header_file(tmp_path / "model.gguf").metadata


def test_an_impossible_shape_is_a_bad_setting_that_names_it(tmp_path: Path) -> None:
    found = call_json("synthesize", tmp_path / "m.gguf", "--embd", 300, "--no-tokenizer", code=42)
    assert "n_embd is 300" in found["error"]["what"]


def test_inspect_tells_shape_bytes_and_what_fits(tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "small.gguf")
    found = call_json("inspect", tmp_path / "small.gguf", "--context", 8192)
    assert found["shape"]["architecture"] == "qwen3moe"
    assert found["context"] == 8192
    assert [fit["ceiling_gib"] for fit in found["fits"]] == [8, 12, 16, 24]
    assert found["fits"][0]["n_cpu_moe"] == 0


def test_inspect_shows_people_a_table() -> None:
    shown = call("inspect", "demo")
    assert "128 a layer, 8 used for a token" in shown
    assert "synthetic" not in shown, "its weights are trained"
    assert "0: all fits" in shown


def test_inspect_says_that_a_model_is_synthetic(tmp_path: Path) -> None:
    call("synthesize", tmp_path / "model.gguf", *SHAPE, "--no-tokenizer")
    assert "synthetic" in call("inspect", tmp_path / "model.gguf")


def test_the_demo_is_there_without_a_cache_a_source_or_a_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert Path(call("pull", "demo").strip()) == demo_path()
    assert call_json("inspect", "demo")["synthetic"] is False
    assert list(cache.rglob("*")) == []


def test_inspect_of_a_repository_downloads_no_weights(hub: Hub, cache: Path) -> None:
    found = call_json("inspect", "owner/Model-GGUF")
    assert found["path"] is None
    assert found["shape"]["n_experts"] == 4
    assert list(cache.rglob("*.gguf")) == []


def test_inspect_says_when_a_context_is_too_long_for_a_ceiling(tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "small.gguf")
    shown = call("inspect", tmp_path / "small.gguf", "--context", 100_000_000)
    assert "too small" in shown


def test_pull_prints_where_the_model_is(hub: Hub, cache: Path) -> None:
    path = Path(call("pull", "owner/Model-GGUF:Q4_K_M").strip())
    assert path.is_file()
    assert path.is_relative_to(cache)


def test_search_lists_repositories(hub: Hub) -> None:
    assert call_json("search", "model") == [
        {"repo": "owner/Model-GGUF", "downloads": 1234, "likes": 5, "updated": "2026-03-04"}
    ]
    assert "owner/Model-GGUF" in call("search", "model")
    assert call("search", "nothing-like-this") == ""


@pytest.mark.parametrize(
    ("content", "code"), [(None, 10), (b"", 11), (b"<html>", 11), (b"GGUF\x03\0\0\0", 11)]
)
def test_bad_files_have_their_own_exit_codes(content: bytes | None, code: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    assert call_json("inspect", path, code=code)["error"]["exit_code"] == code


def test_a_dense_model_and_an_unknown_repository_have_their_own_exit_codes(hub: Hub, tmp_path: Path) -> None:
    write_small_gguf(tmp_path / "dense.gguf", moe=False)
    assert call_json("inspect", tmp_path / "dense.gguf", code=12)["error"]["type"] == "NotMoeError"
    assert call_json("pull", "owner/none", code=13)["error"]["type"] == "RepoNotFoundError"


def test_an_unreachable_hub_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert call_json("pull", "owner/Model-GGUF", code=14)["error"]["type"] == "DownloadError"
