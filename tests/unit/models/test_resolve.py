"""MODEL arguments: files, parts, folders, demo; and every way to get them wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import gguf
import pytest
from gguf_builder import write_small_gguf

import hottune
from hottune.errors import HottuneError, ModelCorruptError, ModelNotFoundError, NotMoeError
from hottune.models import demo
from hottune.models.demo import DEMO_KEY, demo_path
from hottune.models.fingerprint import BLOCK_BYTES, fingerprint
from hottune.models.gguf_header import read_header_file
from hottune.models.resolve import hub_repo, model_parts, resolve_model
from hottune.models.shape import ModelFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models = tmp_path / "models-here"
    models.mkdir()
    return models


def resolve(argument: Path | str, tmp_path: Path) -> ModelFile:
    return resolve_model(str(argument), cache_dir=tmp_path / "cache")


def error_of(argument: Path | str, tmp_path: Path) -> HottuneError:
    with pytest.raises(HottuneError) as caught:
        resolve(argument, tmp_path)
    return caught.value


def split(path: Path, count: int) -> list[Path]:
    """Write a small model in parts, the first of which holds the metadata alone."""
    write_small_gguf(path)
    parts = [path.with_name(f"{path.stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    whole = gguf.GGUFReader(path)
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "qwen3moe")
        if number == 0:
            for key in ("block_count", "embedding_length", "expert_count", "expert_used_count"):
                writer.add_uint32(f"qwen3moe.{key}", whole.fields[f"qwen3moe.{key}"].contents())
        writer.add_uint16("split.count", count)
        for tensor in whole.tensors[number - 1 :: count - 1] if number else []:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path.unlink()
    return parts


def test_a_file_is_read_with_its_shape(folder: Path, tmp_path: Path) -> None:
    path = folder / "Small-Q4_K_M.gguf"
    write_small_gguf(path)
    found = resolve(path, tmp_path)
    assert (found.name, found.path, found.argument) == ("Small-Q4_K_M", path, str(path))
    assert found.size_bytes == path.stat().st_size
    assert found.shape.n_experts == 4
    assert not found.synthetic


def test_a_relative_path_becomes_absolute(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_gguf(folder / "a.gguf")
    monkeypatch.chdir(folder)
    assert resolve("a.gguf", tmp_path).path == folder / "a.gguf"


def test_any_part_of_a_split_model_stands_for_all(folder: Path, tmp_path: Path) -> None:
    parts = split(folder / "Model.gguf", 3)
    found = resolve(parts[2], tmp_path)
    assert found.path == parts[0]
    assert found.name == "Model"
    assert found.size_bytes == sum(part.stat().st_size for part in parts)
    assert found.shape.n_moe_layers == 2
    assert found.fingerprint == resolve(folder, tmp_path).fingerprint


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    parts = split(folder / "Model.gguf", 3)
    parts[1].unlink()
    error = error_of(parts[0], tmp_path)
    assert isinstance(error, ModelNotFoundError)
    assert parts[1].name in error.what


def test_a_renamed_part_is_explained(folder: Path, tmp_path: Path) -> None:
    parts = split(folder / "Model.gguf", 3)
    lonely = parts[0].rename(folder / "renamed.gguf")
    assert "one of 3 parts" in error_of(lonely, tmp_path).what


def test_a_folder_with_one_model_is_that_model(folder: Path, tmp_path: Path) -> None:
    write_small_gguf(folder / "only.gguf")
    (folder / "mmproj-F16.gguf").write_bytes(b"a projector")
    assert resolve(folder, tmp_path).path == folder / "only.gguf"


def test_a_folder_with_two_models_or_none_asks_for_a_file(folder: Path, tmp_path: Path) -> None:
    assert "no .gguf" in error_of(folder, tmp_path).what
    for name in ("a.gguf", "b.gguf"):
        write_small_gguf(folder / name)
    assert "a.gguf, b.gguf" in error_of(folder, tmp_path).what


def test_a_misspelt_file_gets_a_suggestion(folder: Path, tmp_path: Path) -> None:
    write_small_gguf(folder / "Qwen3-30B-A3B-Q4_K_M.gguf")
    error = error_of(folder / "Qwen3-30B-A3-Q4_K_M.gguf", tmp_path)
    assert isinstance(error, ModelNotFoundError)
    assert error.next_step == f"Did you mean {folder / 'Qwen3-30B-A3B-Q4_K_M.gguf'}?"
    assert error_of("Demo", tmp_path).next_step == "Did you mean demo?"
    assert "owner/repo" in error_of("nowhere.gguf", tmp_path).next_step


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_not_called_corrupt(folder: Path, tmp_path: Path) -> None:
    path = folder / "secret.gguf"
    write_small_gguf(path)
    path.chmod(0)
    assert isinstance(error_of(path, tmp_path), ModelNotFoundError)


def test_a_truncated_file_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.gguf"
    write_small_gguf(path)
    path.write_bytes(path.read_bytes()[:-100])
    error = error_of(path, tmp_path)
    assert isinstance(error, ModelCorruptError)
    assert error.what.startswith("model.gguf is truncated")


def test_a_dense_model_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "dense.gguf"
    write_small_gguf(path, moe=False)
    assert isinstance(error_of(path, tmp_path), NotMoeError)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("owner/repo", ("owner/repo", None)),
        ("unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M", ("unsloth/Qwen3-30B-A3B-GGUF", "Q4_K_M")),
        ("owner/repo:UD-Q4_K_XL", ("owner/repo", "UD-Q4_K_XL")),
        ("./owner/repo", None),
        ("folder/model.gguf", None),
        ("/models/x", None),
        ("~/models", None),
        ("a/b/c", None),
        ("demo", None),
    ],
)
def test_what_looks_like_a_repository(argument: str, meant: tuple[str, str | None] | None) -> None:
    assert hub_repo(argument) == meant


def test_a_folder_that_exists_is_no_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "inner").mkdir()
    assert hub_repo("models-here/inner") is None


class TestDemo:
    def test_it_lies_in_the_package_and_needs_neither_cache_nor_network(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: object) -> None:
            raise AssertionError("a connection was asked for")

        monkeypatch.setattr(socket.socket, "connect", no_network)
        found = resolve("demo", tmp_path)
        assert (found.name, found.argument) == ("demo", "demo")
        assert found.path.is_relative_to(Path(hottune.__file__).parent)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_that_name_does_not_hide_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "demo").mkdir()
        monkeypatch.chdir(tmp_path)
        assert resolve("demo", tmp_path).path == demo_path()
        assert isinstance(error_of("./demo", tmp_path), ModelNotFoundError)

    def test_it_is_trained_small_and_mostly_experts(self, tmp_path: Path) -> None:
        found = resolve("demo", tmp_path)
        shape = found.shape
        assert not found.synthetic
        assert (shape.architecture, shape.quant, shape.n_vocab) == ("qwen3moe", "Q4_0", 10_240)
        assert (shape.n_layers, shape.n_moe_layers, shape.n_experts, shape.n_used) == (6, 6, 128, 8)
        assert (shape.n_embd, shape.n_ff_expert) == (256, 32)
        assert shape.one_expert_bytes == 3 * 256 * 32 * 18 // 32  # Q4_0: 18 bytes for 32 weights
        assert shape.expert_bytes == 6 * 128 * shape.one_expert_bytes > 0.7 * found.size_bytes

    def test_it_says_that_it_is_the_demo(self) -> None:
        assert read_header_file(demo_path()).metadata[DEMO_KEY] is True

    @pytest.mark.parametrize("damage", ["one bit", "cut", "empty", "a pointer", "missing"])
    def test_a_damaged_file_is_not_used(
        self, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = bytearray(demo_path().read_bytes())
        raw[len(raw) // 2] ^= 1
        damaged = {
            "one bit": bytes(raw),
            "cut": demo_path().read_bytes()[:-1],
            "empty": b"",
            "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
        }
        path = tmp_path / "demo.gguf"
        if damage in damaged:
            path.write_bytes(damaged[damage])
        monkeypatch.setattr(demo, "_FILE", path)
        error = error_of("demo", tmp_path)
        assert isinstance(error, ModelCorruptError)
        assert error.next_step == "Install hottune again."


class TestFingerprint:
    def of(self, path: Path) -> str:
        return fingerprint([(path, read_header_file(path))])

    @pytest.fixture
    def model(self, folder: Path) -> Path:
        path = folder / "model.gguf"
        write_small_gguf(path, weights=400)
        assert path.stat().st_size > 64 * BLOCK_BYTES
        return path

    def test_a_copy_under_another_name_has_the_same(self, model: Path) -> None:
        copy = model.with_name("copy.gguf")
        copy.write_bytes(model.read_bytes())
        assert self.of(copy) == self.of(model)

    @pytest.mark.parametrize("where", ["header", "last block"])
    def test_a_change_in_what_it_covers_changes_it(self, model: Path, where: str) -> None:
        before = self.of(model)
        raw = bytearray(model.read_bytes())
        position = raw.index(b"token17") if where == "header" else len(raw) - 1
        raw[position] ^= 1
        model.write_bytes(raw)
        assert self.of(model) != before

    def test_little_of_a_huge_file_is_read(self, model: Path) -> None:
        before = self.of(model)
        with model.open("r+b") as file:
            file.truncate(40 << 30)  # a sparse file: reading it whole would take minutes
        assert self.of(model) != before


def test_parts_are_absolute_even_through_links(folder: Path) -> None:
    real, link = folder / "blob", folder / "model.gguf"
    write_small_gguf(real)
    link.symlink_to(real)
    assert model_parts(link) == [link]
