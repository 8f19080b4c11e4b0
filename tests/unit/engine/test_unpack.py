"""Unpacking trusts no path in an archive, and leaves everything or nothing."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.engine.unpack import unpack
from hottune.errors import HottuneError, SourceInvalidError, UnsafeArchiveError


def write_tar(path, members):
    """Write (name, content) files, or ready TarInfo objects, into a .tar.gz."""
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


GOOD = ("pkg-1/llama.cpp/CMakeLists.txt", b"project(x)")


def test_only_the_wanted_folder_is_unpacked(tmp_path):
    archive = write_tar(
        tmp_path / "a.tar.gz", [("pkg-1/setup.py", b"bad"), GOOD, ("pkg-1/llama.cpp/a/b.c", b"int")]
    )
    target = unpack(archive, tmp_path / "out", folder="llama.cpp")
    assert target == tmp_path / "out"
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert files == ["CMakeLists.txt", "a/b.c"]
    assert (target / "a" / "b.c").read_bytes() == b"int"


def test_an_executable_stays_executable_and_loses_every_other_special_bit(tmp_path):
    script = tarfile.TarInfo("pkg-1/llama.cpp/run.sh")
    script.mode = 0o4777
    archive = write_tar(tmp_path / "a.tar.gz", [GOOD, script])
    target = unpack(archive, tmp_path / "out", folder="llama.cpp")
    assert (target / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert (target / "CMakeLists.txt").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize(
    "bad",
    [
        ("pkg-1/llama.cpp/../../evil", b"x"),
        ("../evil", b"x"),
        ("/tmp/evil", b"x"),
        ("pkg-1/setup/../../evil", b"x"),
        ("pkg-1/llama.cpp/a\\..\\evil", b"x"),
        special("pkg-1/llama.cpp/link", tarfile.SYMTYPE, "/etc"),
        special("pkg-1/llama.cpp/link", tarfile.SYMTYPE, "../.."),
        special("pkg-1/llama.cpp/link", tarfile.SYMTYPE, "CMakeLists.txt"),
        special("pkg-1/llama.cpp/link", tarfile.LNKTYPE, "../../etc/passwd"),
        special("pkg-1/llama.cpp/tty", tarfile.CHRTYPE),
        special("pkg-1/llama.cpp/disk", tarfile.BLKTYPE),
        special("pkg-1/llama.cpp/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: bad[0] if isinstance(bad, tuple) else f"{bad.name} {bad.type!r} {bad.linkname}",
)
def test_an_unsafe_member_stops_everything_before_anything_is_written(tmp_path, bad):
    archive = write_tar(tmp_path / "a.tar.gz", [GOOD, bad])
    with pytest.raises(UnsafeArchiveError):
        unpack(archive, tmp_path / "cache" / "out", folder="llama.cpp")
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["a.tar.gz"], ["a.tar.gz", "cache"])


names = st.lists(
    st.sampled_from(["pkg", "llama.cpp", "..", ".", "", "a", "evil", "\\", "C:", "llama.cpp\0"]), max_size=6
).map("/".join)


@given(members=st.lists(names, max_size=6))
def test_whatever_the_names_are_nothing_is_written_outside(tmp_path_factory, members):
    root = tmp_path_factory.mktemp("tar")
    archive = write_tar(root / "a.tar.gz", [(name, b"x") for name in members])
    try:
        unpack(archive, root / "deep" / "er" / "out", folder="llama.cpp")
    except HottuneError:
        assert not (root / "deep" / "er" / "out").exists()
    except OSError:
        assert not (root / "deep" / "er" / "out").exists()  # a file and a folder of one name
    outside = [
        path
        for path in root.rglob("*")
        if path.is_file() and path != archive and not path.is_relative_to(root / "deep" / "er" / "out")
    ]
    assert outside == []


def test_an_archive_without_the_folder_is_refused(tmp_path):
    archive = write_tar(tmp_path / "a.tar.gz", [("pkg-1/other/x", b"x")])
    with pytest.raises(SourceInvalidError, match=r"holds no folder llama\.cpp"):
        unpack(archive, tmp_path / "out", folder="llama.cpp")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path, share):
    archive = write_tar(tmp_path / "a.tar.gz", [GOOD, ("pkg-1/llama.cpp/big", bytes(range(256)) * 2000)])
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SourceInvalidError):
        unpack(archive, tmp_path / "out", folder="llama.cpp")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    file = tmp_path / "a.tar.gz"
    file.write_bytes(b"hello, this is no archive")
    with pytest.raises(SourceInvalidError, match="not a readable tar archive"):
        unpack(file, tmp_path / "out", folder="llama.cpp")
