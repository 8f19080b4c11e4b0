"""The memory model: what each setting of a placement costs, and planners that use up the room exactly."""

from __future__ import annotations

import pytest
from gguf_builder import shape
from hypothesis import given
from hypothesis import strategies as st

from hottune.models.demo import demo_path
from hottune.models.memory import estimate, max_hot_k, min_n_cpu_moe
from hottune.models.resolve import load_model
from hottune.models.shape import MoeShape
from hottune.placement import KvType, Placement

SHAPE = shape()
LEADING_DENSE = shape(layer_expert_bytes=(0, 0) + (64 << 20,) * 6)
ALL_CPU = Placement(n_cpu_moe=8, threads=2)

shapes = st.builds(
    lambda dense, moe, n_experts, per_expert: shape(
        layer_expert_bytes=(0,) * dense + (n_experts * per_expert,) * moe, n_experts=n_experts
    ),
    st.integers(0, 3),
    st.integers(1, 12),
    st.integers(2, 256),
    st.integers(1000, 4 << 20),
)
placements = st.builds(
    Placement,
    n_cpu_moe=st.integers(0, 15),
    hot_k=st.integers(0, 300),
    threads=st.just(2),
    ubatch=st.sampled_from([1, 64, 512, 2048]),
    context=st.sampled_from([200, 512, 4096, 65536]),
)
ceilings = st.floats(1, 20_000)


def need(placement: Placement, of: MoeShape = SHAPE) -> float:
    return estimate(of, placement).vram_mib


def test_every_part_has_its_place() -> None:
    mixed = ALL_CPU.model_copy(update={"n_cpu_moe": 6, "hot_k": 16, "context": 1024})
    found = estimate(SHAPE, mixed, overhead_mib=500)
    assert found.vram_dense_mib == 8 + 10
    assert found.vram_experts_mib == 2 * 64
    assert found.vram_cache_mib == 6 * 16
    assert found.vram_kv_mib == 1024 * 8 * 256 * 2 / 2**20
    assert found.host_mib == 20 + 6 * 64
    assert found.vram_overhead_mib == 500
    assert found.vram_mib == 18 + 128 + 96 + 4 + found.vram_compute_mib + 500


def test_quantized_kv_takes_about_half() -> None:
    q8 = ALL_CPU.model_copy(update={"kv_type_k": KvType.Q8_0, "kv_type_v": KvType.Q8_0})
    assert estimate(SHAPE, q8).vram_kv_mib / estimate(SHAPE, ALL_CPU).vram_kv_mib == 34 / 32 / 2


def test_every_parallel_slot_has_a_whole_context_and_a_row_of_logits_for_each_token_of_its_draft() -> None:
    four = ALL_CPU.model_copy(update={"parallel": 4})
    drafting = ALL_CPU.model_copy(update={"spec_type": "ngram-cache"})
    one, logits_mib = estimate(SHAPE, ALL_CPU), SHAPE.n_vocab * 4 / 2**20
    assert estimate(SHAPE, four).vram_kv_mib == 4 * one.vram_kv_mib
    more = [estimate(SHAPE, tried).vram_compute_mib - one.vram_compute_mib for tried in (four, drafting)]
    assert more == pytest.approx([3 * logits_mib, 8 * logits_mib])


def test_dense_layers_take_no_cache() -> None:
    assert estimate(LEADING_DENSE, ALL_CPU.model_copy(update={"hot_k": 10})).vram_cache_mib == 6 * 10


def test_compute_buffers_stay_within_the_fitted_error_of_what_llama_cpp_logged() -> None:
    """MiB from llama-server's load log (b11434, CPU), one slot, flash attention; see `_compute_bytes`."""
    logged = {(64, 2048): 2.38, (512, 2048): 19.02, (2048, 2048): 76.07, (512, 16384): 33.02}
    no_experts_on_cpu = ALL_CPU.model_copy(update={"n_cpu_moe": 0})
    for (ubatch, context), mib in logged.items():
        tried = no_experts_on_cpu.model_copy(update={"ubatch": ubatch, "context": context})
        assert mib <= estimate(SHAPE, tried).vram_compute_mib <= 1.55 * mib


def test_a_ubatch_is_no_larger_than_the_context_of_all_slots() -> None:
    def compute_mib(ubatch: int, context: int, parallel: int = 1) -> float:
        changes = {"ubatch": ubatch, "context": context, "parallel": parallel}
        return estimate(SHAPE, ALL_CPU.model_copy(update=changes)).vram_compute_mib

    assert compute_mib(512, 256) == compute_mib(256, 256)
    assert compute_mib(512, 200) < compute_mib(512, 256) < compute_mib(512, 512)
    assert compute_mib(512, 256, parallel=4) > compute_mib(256, 256, parallel=4)


def test_the_demos_compute_buffers_are_predicted_from_above() -> None:
    """MiB of the load log (b11434, CPU) for ubatch 512; a context of 256 makes it 256."""
    demo = load_model(demo_path(), "demo").shape
    for context, mib in ((256, 3.13), (768, 6.76)):
        tried = Placement(n_cpu_moe=0, threads=2, context=context)
        assert mib <= estimate(demo, tried).vram_compute_mib <= 1.7 * mib


@given(shapes, placements, st.sampled_from(["hot_k", "ubatch", "context"]), st.integers(1, 500))
def test_more_of_anything_never_needs_less(of: MoeShape, placement: Placement, field: str, more: int) -> None:
    larger = placement.model_copy(update={field: getattr(placement, field) + more})
    assert need(larger, of) >= need(placement, of)


@given(shapes, placements, ceilings)
def test_the_largest_cache_fits_and_one_more_expert_does_not(
    of: MoeShape, placement: Placement, ceiling: float
) -> None:
    found = max_hot_k(of, placement, ceiling)
    assert 0 <= found <= of.n_experts
    if found:
        assert need(placement.model_copy(update={"hot_k": found}), of) <= ceiling
    if found < of.n_experts and any(of.layer_expert_bytes[: placement.n_cpu_moe]):
        assert need(placement.model_copy(update={"hot_k": found + 1}), of) > ceiling


@given(shapes, placements, ceilings, st.floats(0, 1000))
def test_more_room_never_means_a_smaller_cache(
    of: MoeShape, placement: Placement, ceiling: float, more: float
) -> None:
    assert max_hot_k(of, placement, ceiling + more) >= max_hot_k(of, placement, ceiling)


@given(shapes, placements, ceilings)
def test_the_fewest_layers_on_the_cpu_fit_and_no_fewer_do(
    of: MoeShape, placement: Placement, ceiling: float
) -> None:
    found = min_n_cpu_moe(of, placement, ceiling)
    fits = {
        n: need(placement.model_copy(update={"n_cpu_moe": n}), of) <= ceiling for n in range(of.n_layers + 1)
    }
    if found is None:
        assert not any(fits.values())
    else:
        assert fits[found]
        assert not any(fits[n] for n in range(found))


def test_nothing_to_cache_means_no_cache() -> None:
    assert max_hot_k(SHAPE, ALL_CPU.model_copy(update={"n_cpu_moe": 0}), 10_000) == 0
    assert max_hot_k(LEADING_DENSE, ALL_CPU.model_copy(update={"n_cpu_moe": 2}), 10_000) == 0


def test_streaming_takes_the_vram_of_a_layer_when_a_batch_is_large_enough() -> None:
    def cache_mib(**changes: int) -> float:
        return estimate(SHAPE, ALL_CPU.model_copy(update={"hot_k": 4, **changes})).vram_cache_mib

    layer = max(SHAPE.layer_expert_bytes) / 2**20
    assert cache_mib(stream_from=64) == pytest.approx(cache_mib() + layer)
    assert cache_mib(stream_from=ALL_CPU.ubatch + 1) == cache_mib()
    assert cache_mib(hot_k=0, stream_from=64) == 0
