"""Headers that lie: each is a ModelCorruptError that says what is wrong, or harmless; never anything else."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from gguf_builder import header, moe_layer, write_small_gguf
from hypothesis import example, given
from hypothesis import strategies as st

from hottune.errors import ModelCorruptError, NotMoeError
from hottune.models.gguf_header import GgufHeader, read_header
from hottune.models.memory import estimate
from hottune.models.shape import MoeShape
from hottune.models.shape_of import moe_shape
from hottune.placement import Placement


def _small_file() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "small.gguf"
        write_small_gguf(path)
        return path.read_bytes()


SMALL = _small_file()
HEADER = read_header(io.BytesIO(SMALL), len(SMALL)).data_offset
NUMBERS = (0, 1, 2, 3, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 64) - 1)


def parse(raw: bytes, size: int | None = None) -> GgufHeader:
    return read_header(io.BytesIO(raw), size, name="model.gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_of(*tensors: bytes, keys: bytes = b"", n_keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), n_keys) + keys + b"".join(tensors)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (file_of(tensor("a", 32), tensor("b", 32, offset=64)), "'b' has offset 64, where the sizes give 128"),
        (file_of(tensor("a", 32), tensor("b", 32, offset=0)), "'b' has offset 0"),  # they overlap
        (file_of(tensor("a", 32), tensor("b", 32, offset=1 << 40)), "'b' has offset 1099511627776"),
        (file_of(tensor("a", 32, offset=32)), "'a' has offset 32, where the sizes give 0"),
        (file_of(tensor("a", 32), tensor("a", 32, offset=128)), "two tensors 'a'"),
        (file_of(tensor("a", 1 << 33, 1 << 33, 1 << 33)), "claims 8589934592 x"),
        (file_of(tensor("a", 1 << 63)), "claims 9223372036854775808 weights"),
        (file_of(tensor("a", 1 << 62)), "claim"),
        (file_of(keys=2 * (text("k") + struct.pack("<II", 4, 7)), n_keys=2), "'k' twice"),
        (
            file_of(keys=text("general.alignment") + struct.pack("<II", 4, 1 << 31), n_keys=1),
            "power of two up to",
        ),
    ],
)
def test_lists_of_tensors_that_cannot_be_true(raw: bytes, says: str) -> None:
    with pytest.raises(ModelCorruptError) as caught:
        parse(raw)
    assert says in caught.value.what
    assert caught.value.next_step


def test_tensors_one_after_another_are_fine() -> None:
    found = parse(file_of(tensor("a", 33), tensor("b", 32, offset=160), tensor("c", 1, offset=288)))
    assert found.end == found.data_offset + 292


@pytest.mark.parametrize("number", [1 << 20, (1 << 24) - 1])
def test_an_array_beyond_the_files_end_is_refused_at_once(number: int) -> None:
    raw = file_of(keys=text("a") + struct.pack("<IIQ", 9, 10, number), n_keys=1)

    class Counted(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1) -> bytes:
            self.asked += 1
            return super().read(size)

    stream = Counted(raw + bytes(1 << 20))
    with pytest.raises(ModelCorruptError, match="truncated"):
        read_header(stream, len(raw) + (1 << 20))
    assert stream.asked <= 1


def test_a_header_without_end_is_given_up() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += 1 << 20
            return bytes(1 << 20)

    stream = Endless()
    start = file_of(keys=text("a") + struct.pack("<IIQ", 9, 10, (1 << 24) - 1) * 1, n_keys=3)
    chained = io.BufferedReader(_Chain(start, stream), buffer_size=1 << 20)
    with pytest.raises(ModelCorruptError):
        read_header(chained, None)
    assert stream.given < 400 << 20


class _Chain(io.RawIOBase):
    def __init__(self, first: bytes, then: io.RawIOBase) -> None:
        self.first, self.then = first, then

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        piece = self.first[: len(target)] or self.then.read()[: len(target)]
        self.first = self.first[len(piece) :]
        target[: len(piece)] = piece
        return len(piece)


class TestExperts:
    """Metadata against weights."""

    def shape(self, **keys: object) -> MoeShape:
        tensors = moe_layer(0) | moe_layer(1)
        known = {"block_count": 2, "embedding_length": 256, "expert_count": 8, "expert_used_count": 2}
        return moe_shape([header(tensors, **(known | keys))])

    def test_true_numbers_are_believed(self) -> None:
        assert self.shape().n_experts == 8

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ({"expert_count": 16}, "has 8 experts, the metadata say 16"),
            ({"expert_used_count": 9}, "9 of 8 experts"),
            ({"expert_used_count": 0}, "0 of 8 experts"),
            ({"block_count": 1 << 31}, "layers"),
        ],
    )
    def test_false_ones_are_named(self, keys: dict[str, int], says: str) -> None:
        with pytest.raises(ModelCorruptError) as caught:
            self.shape(**keys)
        assert says in caught.value.what

    def test_a_layer_number_of_thousands_of_digits_is_no_layer(self) -> None:
        tensors = moe_layer(0) | {f"blk.{'9' * 5000}.ffn_up_exps.weight": ((256, 512, 8), 12)}
        keys = {"block_count": 1, "embedding_length": 256, "expert_count": 8, "expert_used_count": 2}
        built = header({name: (dims, _kind(kind)) for name, (dims, kind) in tensors.items()}, **keys)
        assert moe_shape([built]).n_layers == 1


def _kind(kind: object) -> object:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kind)


def believe(raw: bytes, size: int | None) -> None:
    """Read a header and everything that is derived from it."""
    try:
        shape = moe_shape([parse(raw, size)])
    except (ModelCorruptError, NotMoeError):
        return
    need = estimate(shape, Placement(n_cpu_moe=shape.n_layers, hot_k=1, threads=1))
    assert need.vram_mib >= 0
    assert size is None or shape.expert_bytes <= size


@given(
    st.lists(st.tuples(st.integers(4, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from([None, len(SMALL)]),
)
def test_changed_bytes_are_harmless_or_found(changes: list[tuple[int, int]], size: int | None) -> None:
    raw = bytearray(SMALL)
    for at, value in changes:
        raw[at] = value
    believe(bytes(raw), size)


@given(st.integers(8, HEADER - 8), st.sampled_from(NUMBERS), st.sampled_from([4, 8]))
@example(8, (1 << 64) - 1, 8)
@example(16, (1 << 64) - 1, 8)
def test_a_number_that_is_replaced_is_harmless_or_found(at: int, number: int, width: int) -> None:
    raw = bytearray(SMALL)
    raw[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    believe(bytes(raw), len(SMALL))


@given(st.integers(0, HEADER), st.integers(0, 64), st.binary(max_size=64))
def test_bytes_cut_out_or_put_in_are_harmless_or_found(at: int, cut: int, put: bytes) -> None:
    raw = SMALL[:at] + put + SMALL[at + cut :]
    believe(raw, len(raw))
