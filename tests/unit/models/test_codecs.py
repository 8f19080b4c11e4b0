"""Codecs, read back with gguf-py: what is exact is exact, what is not is near, and the rest is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hottune.models.codecs import Codec, Fidelity, Raw, codec, writable_type

T = GGMLQuantizationType
EXACT = [T.F32, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K]
#: Largest error allowed, as a share of the group's largest possible weight, 8 d.
NEAR = {
    T.F16: 2**-11,
    T.BF16: 2**-8,
    T.IQ4_NL: 0.09,
    T.IQ4_XS: 0.09,
    T.MXFP4: 0.26,
    T.Q3_K: 0.23,
    T.Q2_K: 0.4,
}
BLOCKS = 50


def read(one: Codec, blocks: Raw) -> NDArray[np.float32]:
    if one.kind in (T.F32, T.F16):
        blocks = blocks.view(np.float32 if one.kind is T.F32 else np.float16)  # type: ignore[assignment]
    values = dequantize(blocks, one.kind)
    return np.asarray(values, dtype=np.float32).reshape(len(blocks), one.groups, 32)


def weights(seed: int, n_groups: int) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    rng = np.random.default_rng(seed)
    d = (rng.normal(size=(BLOCKS, n_groups)) * 0.02).astype(np.float16)
    q = np.clip(np.rint(rng.normal(size=(BLOCKS, n_groups, 32)) * 3), -8, 7).astype(np.int8)
    q[..., 0] = -8  # as in every Q4_0 block: the weight of largest size
    return d, q


def meant(d: NDArray[np.float16], q: NDArray[np.int8]) -> NDArray[np.float32]:
    return np.asarray(d.astype(np.float32)[..., None] * q.astype(np.float32))


@pytest.mark.parametrize("kind", [*EXACT, *NEAR], ids=lambda kind: kind.name)
def test_one_group_in_a_block_is_kept_as_exactly_as_the_type_promises(kind: T) -> None:
    one = codec(kind)
    for group in range(one.groups):
        d, q = weights(group, 1)
        blocks = one.filler(np.random.default_rng(9), BLOCKS)
        one.put(blocks, [group], d, q)
        error = np.abs(read(one, blocks)[:, [group]] - meant(d, q))
        if kind in EXACT:
            assert one.fidelity is Fidelity.EXACT
            assert error.max() == 0
        else:
            assert one.fidelity is not Fidelity.EXACT
            assert (error <= NEAR[kind] * 8 * np.abs(d.astype(np.float32))[..., None]).all()


@pytest.mark.parametrize(
    ("kind", "share"), [(T.Q6_K, 0.01), (T.Q5_K, 0.025), (T.Q4_K, 0.025), (T.IQ4_XS, 0.1)]
)
@given(groups=st.sets(st.integers(0, 7), min_size=2), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_several_groups_in_a_block_are_near(kind: T, share: float, groups: set[int], seed: int) -> None:
    one, chosen = codec(kind), sorted(groups)
    d, q = weights(seed, len(chosen))
    blocks = one.filler(np.random.default_rng(9), BLOCKS)
    one.put(blocks, chosen, d, q)
    largest = 8 * np.abs(d.astype(np.float32)).max(axis=1)
    error = np.abs(read(one, blocks)[:, chosen] - meant(d, q)).max(axis=(1, 2))
    assert (error <= share * largest + 1e-6).all()


@pytest.mark.parametrize("kind", [*EXACT, *NEAR], ids=lambda kind: kind.name)
def test_cleared_groups_are_exactly_zero_and_the_others_do_not_change(kind: T) -> None:
    one = codec(kind)
    for group in range(one.groups):
        blocks = one.filler(np.random.default_rng(group), BLOCKS)
        before = read(one, blocks)
        one.clear(blocks, [group])
        after = read(one, blocks)
        others = [other for other in range(one.groups) if other != group]
        assert not after[:, group].any()
        assert (after[:, others] == before[:, others]).all()


@pytest.mark.parametrize("kind", [*EXACT, *NEAR], ids=lambda kind: kind.name)
def test_filler_is_random_finite_and_small(kind: T) -> None:
    one = codec(kind)
    blocks = one.filler(np.random.default_rng(1), 500)
    values = read(one, blocks)
    assert one.n_bytes * GGML_QUANT_SIZES[kind][0] == GGML_QUANT_SIZES[kind][1] * one.weights
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 64
    assert (values != 0).mean() > 0.5
    assert len({block.tobytes() for block in blocks}) == 500


@pytest.mark.parametrize("kind", [T.Q4_K, T.Q5_K, T.Q6_K], ids=lambda kind: kind.name)
def test_what_shares_a_block_with_the_small_model_is_random_too(kind: T) -> None:
    one = codec(kind)
    d, q = weights(3, 1)
    blocks = one.filler(np.random.default_rng(1), BLOCKS)
    one.put(blocks, [2], d, q)
    one.clear(blocks, [5])
    values = read(one, blocks)
    assert (values[:, [2]] == meant(d, q)).all()
    assert not values[:, 5].any()
    assert (values[:, [0, 1, 3, 4, 6, 7]] != 0).mean() > 0.5


@pytest.mark.parametrize("kind", list(GGML_QUANT_SIZES), ids=lambda kind: kind.name)
def test_every_type_of_weights_can_be_written_or_has_a_stand_in(kind: T) -> None:
    if kind.name in ("I8", "I16", "I32", "I64", "Q8_1", "Q8_K"):
        pytest.skip("not a type of weights in a file")
    assert codec(writable_type(kind)).weights in (32, 256)


SUMS = {T.Q3_K: 0.0, T.Q2_K: 0.0, T.IQ4_NL: 0.004, T.IQ4_XS: 0.006, T.MXFP4: 0.034}
"""Largest error of a weight as a sum of two, as a share of 8 d."""


@pytest.mark.parametrize("kind", SUMS, ids=lambda kind: kind.name)
def test_the_sum_of_two_terms_is_the_weight(kind: T) -> None:
    one = codec(kind)
    d, q = weights(5, 1)
    d = np.where(
        np.abs(d) < 0.004, np.float16(0.004), d
    )  # IQ4_XS divides it by 197, and float16 is rough there
    q[0, 0, :16] = np.arange(-8, 8)
    if one.groups == 1:
        found = np.zeros((BLOCKS, 1, 32), np.float32)
        for term in range(2):
            blocks = one.filler(np.random.default_rng(9), BLOCKS)
            one.put_terms(blocks, [(0, term)], d, q)
            found += read(one, blocks)
    else:
        blocks = one.filler(np.random.default_rng(9), BLOCKS)
        one.put_terms(blocks, [(2, 0), (3, 1)], np.tile(d, 2), np.tile(q, (1, 2, 1)))
        found = read(one, blocks)[:, 2:4].sum(axis=1, keepdims=True)
    error = np.abs(found - meant(d, q)).max(axis=2) / (8 * np.abs(d.astype(np.float32)))
    assert error.max() <= SUMS[kind]


@pytest.mark.parametrize(("kind", "share"), [(T.Q3_K, 0.06), (T.Q2_K, 0.25), (T.IQ4_XS, 0.08)])
@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_terms_of_several_groups_in_a_block_are_near(kind: T, share: float, seed: int) -> None:
    one = codec(kind)
    d, q = weights(seed, 2)
    blocks = one.filler(np.random.default_rng(9), BLOCKS)
    places = [(0, 0), (1, 1), (4, 0), (5, 1)]
    one.put_terms(blocks, places, np.repeat(d, 2, axis=1), np.repeat(q, 2, axis=1))
    found = read(one, blocks)
    sums = np.stack([found[:, 0] + found[:, 1], found[:, 4] + found[:, 5]], axis=1)
    largest = 8 * np.abs(d.astype(np.float32)).max(axis=1)
    assert (np.abs(sums - meant(d, q)).max(axis=(1, 2)) <= share * largest + 1e-6).all()


@pytest.mark.parametrize("kind", [T.Q4_K, T.Q5_K, T.Q6_K], ids=lambda kind: kind.name)
def test_groups_with_the_same_scale_share_a_block_exactly(kind: T) -> None:
    one = codec(kind)
    d, q = weights(3, 1)
    blocks = one.filler(np.random.default_rng(1), BLOCKS)
    one.put(blocks, [2, 3], np.tile(d, 2), np.tile(q, (1, 2, 1)))
    assert (read(one, blocks)[:, 2:4] == meant(d, q)).all()
