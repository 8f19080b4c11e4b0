"""The Python writer: the device's bytes, and what a reader gets back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hottune.routing.trace import read_trace
from hottune.routing.trace_writer import TraceWriter, refuse_foreign

SAMPLE = Path(__file__).with_name("sample.hottrace")


def test_the_sample_comes_out_as_the_device_writes_it(tmp_path: Path) -> None:
    first, second = "blk.0.ffn_up_exps.weight", "blk.1.ffn_up_exps.weight"
    half = np.array([[0.5, 0.5]])
    with TraceWriter(tmp_path / "t", weights=True) as writer:
        writer.block(
            0,
            first,
            8,
            np.array([[5, 0], [1, 7], [5, 2]]),
            np.array([[0.75, 0.25], [0.5, 0.5], [0.875, 0.125]]),
        )
        writer.block(1, second, 300, np.array([[299, 4]]), half)
        writer.block(0, first, 8, np.array([[7, 5]]), half)
        writer.block(1, second, 300, np.array([[4, 256]]))
        writer.block(0, first, 8, np.array([[3]]), np.array([[1.0]]))
        writer.block(1, second, 300, np.array([[255]]), np.array([[1.0]]))
    assert (tmp_path / "t").read_bytes() == SAMPLE.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (2, 1), (8, 2), (128, 8), (257, 3), (512, 10), (65536, 2)]),
    st.integers(0, 99),
)
def test_many_tokens_at_once_are_the_bytes_of_one_block_after_another(
    tmp_path: Path, n_tokens: int, n_layers: int, shape: tuple[int, int], seed: int
) -> None:
    n_expert, used = shape
    drawn = np.random.default_rng(seed).integers(n_expert, size=(n_tokens, n_layers, used))
    names = [f"blk.{layer}" for layer in range(n_layers)]
    with TraceWriter(tmp_path / "fast") as writer:
        writer.decode(names, n_expert, drawn)
    with TraceWriter(tmp_path / "slow") as writer:
        for token in drawn:
            for layer, experts in enumerate(token):
                writer.block(layer, names[layer], n_expert, experts[None])
    assert (tmp_path / "fast").read_bytes() == (tmp_path / "slow").read_bytes()
    trace = read_trace(tmp_path / "fast")
    assert trace.choices.expert.tolist() == drawn.ravel().tolist()
    assert (trace.n_tokens, trace.truncated) == (n_tokens, False)


def test_more_tokens_than_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hottune.routing.trace_writer._TOKENS_AT_ONCE", 3)
    drawn = np.random.default_rng(1).integers(16, size=(11, 2, 4))
    told: list[int] = []
    with TraceWriter(tmp_path / "t") as writer:
        writer.decode(["a", "b"], 16, drawn, told.append)
    assert read_trace(tmp_path / "t").choices.expert.tolist() == drawn.ravel().tolist()
    assert told == [4, 7, 10, 11]


@pytest.mark.parametrize(
    ("experts", "n_used", "cost"),
    [(128, 8, 1.05), (512, 10, 1.35), (32, 4, 1.05), (8, 2, 1.1), (256, 1, 2.1)],
)
def test_a_choice_costs_at_most_about_two_bytes(
    tmp_path: Path, experts: int, n_used: int, cost: float
) -> None:
    drawn = np.random.default_rng(1).integers(experts, size=(2000, 48, n_used))
    with TraceWriter(tmp_path / "t") as writer:
        writer.decode([f"blk.{layer}.ffn_up_exps.weight" for layer in range(48)], experts, drawn)
    assert (tmp_path / "t").stat().st_size / drawn.size <= cost


def test_an_error_in_the_middle_leaves_a_whole_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "t") as writer:
        writer.block(0, "a", 8, np.array([[1, 2]]))
        raise KeyboardInterrupt
    trace = read_trace(tmp_path / "t")
    assert (trace.n_tokens, trace.truncated) == (1, False)


@pytest.mark.parametrize(
    ("layer", "name", "n_expert", "experts", "what"),
    [
        (0, "a", 8, [[1, 8]], "of 8 experts"),
        (0, "a", 8, [[-1, 2]], "of 8 experts"),
        (0, "a", 1, [[0, 0]], "2 of 1 experts"),
        (0, "b", 8, [[1, 2]], "another one now"),
        (0, "a", 9, [[1, 2]], "another one now"),
    ],
)
def test_what_no_record_can_hold_is_refused(
    tmp_path: Path, layer: int, name: str, n_expert: int, experts: list[list[int]], what: str
) -> None:
    with TraceWriter(tmp_path / "t") as writer:
        writer.block(0, "a", 8, np.array([[1, 2]]))
        with pytest.raises(ValueError, match=what):
            writer.block(layer, name, n_expert, np.array(experts))
    assert read_trace(tmp_path / "t").choices.expert.tolist() == [1, 2]


def test_a_trace_begins_with_layer_0(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t") as writer, pytest.raises(ValueError, match="begins with layer 0"):
        writer.block(1, "a", 8, np.array([[1]]))


def test_what_is_no_trace_is_never_overwritten(tmp_path: Path) -> None:
    model, pipe, empty = tmp_path / "m.gguf", tmp_path / "pipe", tmp_path / "empty"
    model.write_bytes(b"GGUF and the rest")
    empty.touch()
    os.mkfifo(pipe)
    for path, what in ((model, "no routing trace"), (pipe, "no regular file"), (tmp_path, "no regular file")):
        with pytest.raises(FileExistsError, match=what):
            TraceWriter(path)
    assert model.read_bytes() == b"GGUF and the rest"
    refuse_foreign(tmp_path / "new")
    for _ in range(2):
        with TraceWriter(empty) as writer:
            writer.block(0, "a", 8, np.array([[1]]))
