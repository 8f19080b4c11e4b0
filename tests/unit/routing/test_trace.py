"""The trace reader: reads what the device writes, and takes damage for what it is."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.routing import Layer, TraceFormatError, read_trace
from hottune.routing.replay import Routing
from hottune.routing.trace import Trace, parse_trace

REPOSITORY = Path(__file__).parents[3]
SAMPLE = Path(__file__).with_name("sample.hottrace")
SAMPLE_1 = Path(__file__).with_name("sample-1.hottrace")  # the same, as version 1 was

# --- a writer, straight from docs/trace-format.md ----------------------------------------------------


def number(value: int) -> bytes:
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def header(weights: bool = False, version: int = 2) -> bytes:
    return b"HOTTRACE" + struct.pack("<HH", version, weights)


def layer_record(layer: int, n_expert: int, name: str = "") -> bytes:
    raw = name.encode()
    return b"L" + number(layer) + number(n_expert) + number(len(raw)) + raw


def packed(ids: list[int], n_expert: int, version: int) -> bytes:
    if version == 1:
        return np.array(ids).astype("<u1" if n_expert <= 256 else "<u2").tobytes()
    width, value = (n_expert - 1).bit_length(), 0
    for place, one in enumerate(ids):
        value |= one << place * width
    return value.to_bytes((len(ids) * width + 7) // 8, "little")


def block_record(
    layer: int,
    n_expert: int,
    rows: list[list[int]],
    weights: list[list[float]] | None = None,
    *,
    version: int = 2,
    short: bool = False,
    lone: bool = False,
) -> bytes:
    ids = packed([one for row in rows for one in row], n_expert, version)
    halves = b"" if weights is None else np.array(weights).astype("<f2").tobytes()
    begin = (
        b"N" if short else (b"A" if lone else b"B") + number(layer) + number(len(rows)) + number(len(rows[0]))
    )
    return begin + ids + halves


def end_record(n_tokens: int) -> bytes:
    return b"E" + number(n_tokens)


@dataclass
class Written:
    """A trace, the records it is made of, and the rows that a reader must find."""

    weights: bool
    version: int = 2
    layers: dict[int, Layer] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    rows_after: list[int] = field(default_factory=list)  # choices in the records up to this one
    rows: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    blocks: list[tuple[int, int, int, int]] = field(default_factory=list)
    n_tokens: int = 0

    def raw(self) -> bytes:
        return header(self.weights, self.version) + b"".join(self.records) + end_record(self.n_tokens)

    def frame(self, n_rows: int | None = None) -> pd.DataFrame:
        columns = ["token", "layer", "place", "expert", "weight"]
        types = {"token": "int64", "layer": "int32", "place": "int32", "expert": "int32", "weight": "float32"}
        return pd.DataFrame(self.rows[:n_rows], columns=columns).astype(types)

    def add(self, record: bytes) -> None:
        self.records.append(record)
        self.rows_after.append(len(self.rows))


@st.composite
def traces(draw: st.DrawFn) -> Written:
    written = Written(weights=draw(st.booleans()), version=draw(st.integers(1, 2)))
    n_experts = draw(
        st.lists(st.sampled_from([1, 2, 3, 8, 255, 256, 257, 512, 65536]), min_size=1, max_size=4)
    )
    for _ in range(draw(st.integers(0, 4))):
        batch = draw(st.integers(1, 3) | st.just(130))
        for layer, n_expert in enumerate(n_experts):
            if layer not in written.layers:
                written.layers[layer] = Layer(draw(st.text("aé→.", max_size=8)), n_expert)
                written.add(layer_record(layer, n_expert, written.layers[layer].name))
            n_rows = batch if layer == 0 else draw(st.integers(1, batch))
            n_used = draw(st.integers(1, min(3, n_expert)))
            seed = np.random.default_rng(draw(st.integers(0, 2**32)))
            experts = seed.integers(n_expert, size=(n_rows, n_used)).tolist()
            weights = np.float16(seed.random((n_rows, n_used))).astype(float).tolist()
            first = written.n_tokens + batch - n_rows
            for row in range(n_rows):
                for place in range(n_used):
                    weight = weights[row][place] if written.weights else np.nan
                    written.rows.append((first + row, layer, place, experts[row][place], weight))
            before = written.blocks[-1] if written.blocks else None
            like = before is not None and (layer - 1, n_rows, n_used) == (before[0], *before[2:])
            short = like and written.version == 2 and draw(st.booleans())
            kept = weights if written.weights else None
            written.blocks.append((layer, first, n_rows, n_used))
            written.add(block_record(layer, n_expert, experts, kept, version=written.version, short=short))
        written.n_tokens += batch
    return written


# --- reading back ------------------------------------------------------------------------------------


@given(traces())
def test_every_choice_comes_back(written: Written) -> None:
    trace = parse_trace(written.raw())
    assert trace.layers == written.layers
    assert (trace.version, trace.has_weights) == (written.version, written.weights)
    assert trace.blocks.tolist() == [list(block) for block in written.blocks]
    assert (trace.n_tokens, trace.truncated) == (written.n_tokens, False)
    assert len(trace.choices) == len(written.rows)
    pd.testing.assert_frame_equal(trace.to_frame(), written.frame())


@given(traces(), st.data())
def test_a_cut_off_trace_yields_its_whole_records(written: Written, data: st.DataObject) -> None:
    raw = written.raw()
    cut = data.draw(st.integers(len(header()), len(raw) - 1))
    whole = np.searchsorted(np.cumsum([len(record) for record in written.records]), cut - 12, side="right")
    trace = parse_trace(raw[:cut])
    assert trace.truncated
    pd.testing.assert_frame_equal(
        trace.to_frame(), written.frame(written.rows_after[whole - 1] if whole else 0)
    )


@given(traces(), st.data())
def test_damage_is_an_error_or_another_trace_and_nothing_else(written: Written, data: st.DataObject) -> None:
    raw = bytearray(written.raw())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        trace = parse_trace(bytes(raw))
    except TraceFormatError:
        return
    frame = trace.to_frame()
    assert frame["layer"].isin(list(trace.layers)).all()
    assert frame["token"].between(0, max(trace.n_tokens - 1, 0)).all()


def test_more_blocks_than_are_extracted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[[5, 1]], [[2, 3]], [[4, 4], [0, 7]], [[6, 6]], [[1, 2]]]
    raw = header() + layer_record(0, 8) + b"".join(block_record(0, 8, row) for row in rows) + end_record(6)
    monkeypatch.setattr("hottune.routing.trace._BLOCKS_AT_ONCE", 2)
    trace = parse_trace(raw)
    assert trace.choices.expert.tolist() == [5, 1, 2, 3, 4, 4, 0, 7, 6, 6, 1, 2]
    assert trace.choices.token.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_trace_of_no_token_is_an_empty_table() -> None:
    trace = parse_trace(header() + end_record(0))
    assert (len(trace.to_frame()), trace.n_tokens, trace.truncated) == (0, 0, False)
    assert list(trace.to_frame().columns) == ["token", "layer", "place", "expert", "weight"]


def test_rows_that_the_last_layer_left_out_were_the_first_ones() -> None:
    raw = header() + layer_record(0, 4) + block_record(0, 4, [[0]]) + block_record(0, 4, [[0], [1], [2]])
    raw += layer_record(1, 4) + block_record(1, 4, [[1], [2]])
    frame = parse_trace(raw + end_record(4)).to_frame()
    assert frame[frame["layer"] == 1]["token"].tolist() == [2, 3]


def test_more_rows_than_the_batch_start_at_its_first_token() -> None:
    raw = header() + layer_record(0, 4) + layer_record(1, 4) + block_record(0, 4, [[0]])
    raw += block_record(0, 4, [[0]]) + block_record(1, 4, [[1], [2], [3]])
    frame = parse_trace(raw + end_record(2)).to_frame()
    assert frame[frame["layer"] == 1]["token"].tolist() == [1, 2, 3]


# --- the device's own file ---------------------------------------------------------------------------


def check_sample(trace: Trace, version: int) -> None:
    assert trace.layers == {
        0: Layer("blk.0.ffn_up_exps.weight", 8),
        1: Layer("blk.1.ffn_up_exps.weight", 300),
    }
    assert (trace.version, trace.has_weights, trace.n_tokens, trace.truncated) == (version, True, 5, False)
    nan = np.nan
    expected = [
        *[(0, 0, 0, 5, 0.75), (0, 0, 1, 0, 0.25), (1, 0, 0, 1, 0.5), (1, 0, 1, 7, 0.5)],
        *[(2, 0, 0, 5, 0.875), (2, 0, 1, 2, 0.125), (2, 1, 0, 299, 0.5), (2, 1, 1, 4, 0.5)],
        *[(3, 0, 0, 7, 0.5), (3, 0, 1, 5, 0.5), (3, 1, 0, 4, nan), (3, 1, 1, 256, nan)],
        *[(4, 0, 0, 3, 1.0), (4, 1, 0, 255, 1.0)],
    ]
    pd.testing.assert_frame_equal(trace.to_frame(), Written(True, rows=expected).frame())


def test_the_sample_that_the_device_wrote_reads_as_documented() -> None:
    check_sample(read_trace(SAMPLE), 2)


def test_a_trace_of_version_1_still_reads() -> None:
    check_sample(read_trace(SAMPLE_1), 1)


def test_the_page_on_the_format_shows_the_sample() -> None:
    page = (REPOSITORY / "docs" / "trace-format.md").read_text(encoding="utf-8")
    dump = re.findall(r"^[0-9a-f]{8}: ((?:[0-9a-f]{2,4} )+) ", page, flags=re.MULTILINE)
    assert bytes.fromhex("".join(dump)) == SAMPLE.read_bytes()


def test_the_devices_own_test_holds_its_writer_to_the_sample() -> None:
    source = REPOSITORY / "vendor" / "llama.cpp" / "ggml-hot" / "tests" / "test-trace.cpp"
    found = re.search(r"sample_hex =\s*((?:\"[0-9a-f]+\"\s*)+);", source.read_text(encoding="utf-8"))
    assert found is not None
    assert bytes.fromhex("".join(re.findall(r"[0-9a-f]+", found[1]))) == SAMPLE.read_bytes()


# --- what is wrong -----------------------------------------------------------------------------------

ONE = header() + layer_record(0, 8)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a routing trace"),
        (b"GGUF\x03\0\0\0\0\0\0\0\0", "not a routing trace: it starts with b'GGUF"),
        (header()[:11], "cut off inside its header: it has 11 of 12 bytes"),
        (header(version=3), "version 3; known are 1 to 2"),
        (header(version=0), "version 0; known are 1 to 2"),
        (b"HOTTRACE" + struct.pack("<HH", 2, 2), "unknown flags 0x0002"),
        (header() + b"X", r"0x58 is no kind of record \(record at byte 12\)"),
        (header() + block_record(0, 8, [[1]]), "layer 0 has a block and no description"),
        (header() + layer_record(1, 8) + block_record(1, 8, [[1]]), "does not begin with layer 0"),
        (ONE + layer_record(0, 8), r"layer 0 is described twice \(record at byte 16\)"),
        (header() + layer_record(65536, 8), "layer 65536 with 8 experts"),
        (header() + layer_record(0, 0), "layer 0 with 0 experts"),
        (header() + layer_record(0, 65537), "layer 0 with 65537 experts"),
        (header() + layer_record(0, 8, "x" * 4097), "a name of 4097 bytes"),
        (ONE + b"B\0\0\1", "a block of 0 tokens with 1 of 8 experts"),
        (ONE + b"B\0\1\0", "a block of 1 tokens with 0 of 8 experts"),
        (ONE + b"B\0\1\x09", "a block of 1 tokens with 9 of 8 experts"),
        (ONE + b"B\0" + number(2**20 + 1) + b"\1", "a block of 1048577 tokens"),
        (ONE + b"B\0" + b"\xff" * 10, "a number has more than 10 bytes"),
        (
            header() + layer_record(0, 6) + block_record(0, 6, [[5], [6], [7]]),
            r"expert 7 of 6 in layer 0 \(choice 2\)",
        ),
        (ONE + b"N\1", r"its first block is like none before \(record at byte 16\)"),
        (ONE + block_record(0, 8, [[1]]) + b"N\1", "layer 1 has a block and no description"),
        (header(version=1) + layer_record(0, 8) + b"N", "0x4e is no kind of record of version 1"),
        (ONE + block_record(0, 8, [[1]]) + end_record(2), "ends after 2 tokens, but holds 1"),
        (ONE + end_record(0) + b"E", "something follows its end"),
    ],
)
def test_a_damaged_trace_is_refused_with_the_reason(raw: bytes, message: str) -> None:
    with pytest.raises(TraceFormatError, match=message):
        parse_trace(raw)


def test_the_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(ValueError, match=r"^notes\.txt is not a routing trace"):
        read_trace(path)


# --- lone blocks -------------------------------------------------------------------------------------


def test_lone_blocks_belong_to_no_token_and_know_when_they_were_computed() -> None:
    names = [layer_record(layer, 8, f"blk.{layer}") for layer in range(2)]
    records = [
        names[0] + block_record(0, 8, [[1, 2]]) + names[1],
        block_record(1, 8, [[7, 6], [5, 4]], lone=True),  # layer 1 had no block yet: before this batch
        block_record(1, 8, [[3, 4]], short=True),
        block_record(1, 8, [[5, 0]], lone=True),  # after the batch, before the next
        block_record(0, 8, [[1, 3]]) + block_record(1, 8, [[2, 3]], short=True),
    ]
    trace = parse_trace(header(weights=False) + b"".join(records) + end_record(2))
    assert trace.n_tokens == 2
    assert trace.choices.expert.tolist() == [1, 2, 3, 4, 1, 3, 2, 3]
    assert trace.lone_blocks.tolist() == [[0, 1, 2, 2], [2, 1, 1, 2]]
    assert trace.lone_experts.tolist() == [7, 6, 5, 4, 5, 0]
    routing = Routing.from_trace(trace)
    assert routing.blocks[:, :2].tolist() == [[-2, 2], [0, 1], [1, 1], [-2, 1], [0, 1], [1, 1]]
    assert routing.experts.tolist() == [7, 6, 5, 4, 1, 2, 3, 4, 5, 0, 1, 3, 2, 3]
    assert routing.uses().sum(axis=1).tolist() == [4, 10]
