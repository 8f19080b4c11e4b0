"""The header parser: agrees with the reference writer, and answers damage with ModelCorruptError alone."""

from __future__ import annotations

import io
import struct
import tempfile
import time
from pathlib import Path

import gguf
import pytest
from gguf_builder import write_small_gguf
from hypothesis import given
from hypothesis import strategies as st

from hottune.errors import ModelCorruptError
from hottune.models.gguf_header import ArraySummary, GgufHeader, read_header, read_header_file


def _small_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        write_small_gguf(path)
        return path.read_bytes()


SMALL = _small_file()


def parse(raw: bytes, size: int | None = None) -> GgufHeader:
    return read_header(io.BytesIO(raw), size, name="model.gguf")


def preamble(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def test_every_tensor_has_the_name_shape_type_and_place_that_the_reference_reader_sees(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL)
    ours = read_header_file(path)
    theirs = gguf.GGUFReader(path)
    assert ours.data_offset == theirs.data_offset
    assert [
        (tensor.name, tensor.shape, tensor.type, ours.data_offset + tensor.offset, tensor.n_bytes)
        for tensor in ours.tensors
    ] == [
        (tensor.name, tuple(tensor.shape.tolist()), tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        for tensor in theirs.tensors
    ]
    assert ours.end == len(SMALL)


def test_metadata_of_every_kind_is_read() -> None:
    header = parse(SMALL, len(SMALL))
    assert header.architecture == "qwen3moe"
    assert header.of_architecture("block_count") == 2
    assert header.of_architecture("attention.head_count_kv") == (2, 1)
    assert header.of_architecture("rope.freq_base") == 1e6
    assert header.metadata["test.flag"] is True
    assert header.metadata["test.negative"] == -5
    assert header.metadata["test.text"] == "häuser"


def test_a_vocabulary_is_stepped_over_but_counted() -> None:
    assert parse(SMALL).metadata["tokenizer.ggml.tokens"] == ArraySummary(8, 50)


def test_the_span_of_a_key_holds_exactly_its_bytes() -> None:
    header = parse(SMALL)
    begin, end = header.spans["test.text"]
    assert SMALL[begin:end] == text("test.text") + struct.pack("<I", 8) + text("häuser")


def test_a_vocabulary_of_a_million_strings_takes_less_than_a_second() -> None:
    strings = text("abcdefgh") * 1_000_000
    raw = preamble(keys=1) + text("tokens") + struct.pack("<IIQ", 9, 8, 1_000_000) + strings
    start = time.perf_counter()
    assert parse(raw).metadata["tokens"] == ArraySummary(8, 1_000_000)
    assert time.perf_counter() - start < 1


def test_strings_longer_than_the_read_buffer_are_stepped_over() -> None:
    strings = text("x" * 600_000) + text("") + text("y" * 10)
    raw = preamble(keys=2) + text("long") + struct.pack("<IIQ", 9, 8, 3) + strings
    raw += text("after") + struct.pack("<II", 4, 77)
    assert parse(raw).metadata == {"long": ArraySummary(8, 3), "after": 77}


def test_a_stream_that_gives_a_few_bytes_at_a_time_is_read_alike() -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 7))

    assert read_header(Trickle(SMALL), len(SMALL)) == parse(SMALL, len(SMALL))


def test_only_the_header_is_read() -> None:
    header = parse(SMALL)
    assert parse(SMALL[: header.data_offset]) == header


def test_a_file_shorter_than_its_tensors_is_called_truncated_with_both_sizes() -> None:
    with pytest.raises(ModelCorruptError) as caught:
        parse(SMALL, len(SMALL) - 1)
    assert "model.gguf is truncated:" in caught.value.what
    assert "on disk, its header promises" in caught.value.what
    assert caught.value.next_step == "Download it again."


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "truncated"),
        (b"GG", "truncated"),
        (b"<!DOCTYPE html><html>", "not a GGUF file"),
        (preamble(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (preamble(version=99), "version 99"),
        (preamble(tensors=1 << 40), "tensors"),
        (preamble(keys=1 << 60), "metadata keys"),
        (preamble(keys=1) + struct.pack("<Q", 1 << 50), "a text of"),
        (preamble(keys=1) + struct.pack("<Q", 2) + b"\xff\xfe", "not text"),
        (preamble(keys=1) + text("a") + struct.pack("<I", 99), "unknown type 99"),
        (preamble(keys=1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 40), "array"),
        (preamble(keys=1) + text("a") + struct.pack("<IIQQ", 9, 8, 2, 1 << 50), "a text of"),
        (preamble(keys=1) + text("general.alignment") + struct.pack("<II", 4, 33), "power of two"),
        (preamble(tensors=1) + text("t") + struct.pack("<I", 9), "9 dimensions"),
        (preamble(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 32, 4242, 0), "unknown type 4242"),
        (preamble(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 33, 12, 0), "block of 256"),
    ],
)
def test_damage_is_named(raw: bytes, says: str) -> None:
    with pytest.raises(ModelCorruptError) as caught:
        parse(raw, len(raw))
    assert says in caught.value.what
    assert caught.value.next_step


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(raw: bytes) -> None:
    with pytest.raises(ModelCorruptError):
        parse(raw, len(raw))


@given(st.binary(max_size=300), st.integers(0, 5), st.integers(0, 5))
def test_random_bytes_after_a_good_start_never_raise_anything_else(
    raw: bytes, tensors: int, keys: int
) -> None:
    try:
        header = parse(preamble(tensors, keys) + raw)
    except ModelCorruptError:
        return
    assert len(header.tensors) == tensors


@given(st.integers(0, len(SMALL) - 1))
def test_every_truncation_is_found(length: int) -> None:
    with pytest.raises(ModelCorruptError, match="truncated"):
        parse(SMALL[:length], length)


@given(st.integers(4, 2500), st.integers(0, 255))
def test_a_changed_byte_is_harmless_or_found(position: int, value: int) -> None:
    raw = bytearray(SMALL)
    raw[position] = value
    try:
        header = parse(bytes(raw), len(raw))
    except ModelCorruptError:
        return
    assert header.end <= len(raw)
