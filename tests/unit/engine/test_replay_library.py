from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hottune.engine import replay_library
from hottune.engine.replay_library import provide_replay_library
from hottune.errors import BuildFailedError, NoCompilerError


def test_it_is_compiled_once_whoever_asks(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: provide_replay_library(tmp_path), range(3)))
    assert [library.hot_replay_policy(b"lfru") >= 0 for library in found] == [True] * 3
    assert found[0].hot_replay_policy(b"mru") == -1
    (log,) = (tmp_path / "replay").glob("*.log")
    assert log.read_text().count("$ ") == 1
    assert {path.suffix for path in (tmp_path / "replay").iterdir()} == {"", ".so", ".log"}


def test_what_does_not_compile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_library, "_FLAGS", ("-std=c++99",))
    with pytest.raises(BuildFailedError, match="Compiling the policies"):
        provide_replay_library(tmp_path)
    assert {path.suffix for path in (tmp_path / "replay").iterdir()} == {"", ".log"}


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompilerError):
        provide_replay_library(tmp_path)


def test_a_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    provide_replay_library(tmp_path / "good")
    (good,) = (tmp_path / "good" / "replay").glob("*.so")
    bad = tmp_path / "bad" / "replay" / good.name  # one path is loaded once in a process
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no library")
    with pytest.raises(BuildFailedError, match=good.name):
        provide_replay_library(tmp_path / "bad")
