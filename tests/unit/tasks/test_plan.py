"""Planned placements keep to the ceiling; predicted speeds follow the bound and what was once measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hottune.machine.bandwidth import CpuReads, GpuCopies, MachineBandwidths
from hottune.models.memory import estimate
from hottune.models.shape import MoeShape
from hottune.placement import Placement
from hottune.routing.bound import Bandwidths
from hottune.tasks.foresight import (
    CPU_EFFICIENCY,
    GpuGiven,
    expert_bytes_from_ram,
    machine_bandwidths,
    speed,
    token_load,
)
from hottune.tasks.plan import CeilingPlan, PlannedPlacement, plan_ceiling

MACHINE = Bandwidths(cpu=90.5, hbm=2500, pcie_h2d=54.1, cpu_overlapped=66, pcie_overlapped=35)
BASE = Placement(n_cpu_moe=0, threads=1)


def a_shape(layers: int = 48, dense: int = 0, experts: int = 128, layer_mib: int = 302) -> MoeShape:
    """The shape of Qwen3-30B-A3B in Q4_K, as the design's probe had it: 15.2 GB of experts."""
    return MoeShape(
        architecture="qwen3moe",
        n_layers=layers,
        n_experts=experts,
        n_used=8,
        n_embd=2048,
        n_ff_expert=768,
        n_params=30 * 10**9,
        layer_expert_bytes=(0,) * dense + (layer_mib << 20,) * (layers - dense),
        layer_dense_bytes=(11 << 20,) * layers,
        other_bytes=180 << 20,
        host_bytes=180 << 20,
        kv_elements_k=512 * layers,
        kv_elements_v=512 * layers,
        context_train=40960,
        n_vocab=151936,
        quant="Q4_K",
    )


def planned(ceiling_mib: float, shape: MoeShape | None = None) -> CeilingPlan:
    return plan_ceiling(shape or a_shape(), BASE, ceiling_mib, overhead_mib=500, machine=MACHINE)


def rows(plan: CeilingPlan) -> dict[str, PlannedPlacement]:
    return {row.arm: row for row in plan.placements}


def test_four_candidates_when_the_model_does_not_fit() -> None:
    found = rows(planned(8192))
    assert list(found) == ["all-cpu", "layers", "hot", "hot+layers"]
    assert found["all-cpu"].placement.n_cpu_moe == found["hot"].placement.n_cpu_moe == 48
    assert 0 < found["layers"].placement.n_cpu_moe < 48
    assert found["hot"].placement.policy == "lru"  # that is what the assumed hit rates are of
    assert found["hot"].speed.decode_tok_s > found["layers"].speed.decode_tok_s > 0  # type: ignore[union-attr]


def test_all_of_it_in_vram_when_it_fits_and_nothing_when_not_even_the_rest_does() -> None:
    assert list(rows(planned(40_000))) == ["all-cpu", "all-vram"]
    small = planned(100)
    assert small.placements == ()
    assert small.least_mib > 100


def test_without_bandwidths_there_is_memory_and_no_speed() -> None:
    found = plan_ceiling(a_shape(), BASE, 8192, overhead_mib=500, machine=None)
    assert all(row.speed is None and row.vram_mib > 0 for row in found.placements)


@settings(max_examples=60)
@given(
    ceiling=st.floats(500, 30_000),
    layers=st.integers(1, 60),
    dense=st.integers(0, 3),
    experts=st.sampled_from([8, 60, 128, 512]),
    layer_mib=st.integers(1, 900),
)
def test_no_candidate_is_over_the_ceiling_and_speeds_keep_to_the_bound(
    ceiling: float, layers: int, dense: int, experts: int, layer_mib: int
) -> None:
    shape = a_shape(layers + dense, dense, experts, layer_mib)
    found = planned(ceiling, shape)
    for row in found.placements:
        assert row.vram_mib == estimate(shape, row.placement, overhead_mib=500).vram_mib <= ceiling
        assert row.speed is not None
        assert 0 < row.speed.decode_tok_s < row.speed.decode_at_most_tok_s
        assert (row.hit_rate is None) == (row.placement.hot_k == 0)
    by_arm = rows(found)
    if {"hot+layers", "layers"} <= set(by_arm):
        assert by_arm["hot+layers"].placement.n_cpu_moe >= by_arm["layers"].placement.n_cpu_moe


@settings(max_examples=8)
@given(st.floats(2500, 20_000), st.floats(2500, 20_000))
def test_more_vram_never_means_more_bytes_from_ram(one: float, other: float) -> None:
    least, most = (planned(size).placements for size in sorted((one, other)))
    assert min(row.ram_gb_per_token for row in most) <= min(row.ram_gb_per_token for row in least)


#: What was measured while the device was designed (an H100 machine with 16 virtual cores, b11434, this
#: shape): experts in VRAM, hit rate that the probe counted, tok/s.
PUBLISHED = [
    ("all experts on the CPU", Placement(n_cpu_moe=48, threads=15), None, 36.1),
    ("-ncmoe 40", Placement(n_cpu_moe=40, threads=15), None, 45.8),
    ("-ncmoe 31", Placement(n_cpu_moe=31, threads=15), None, 56.0),
    ("22 slots", Placement(n_cpu_moe=48, hot_k=22, threads=15), 0.51, 54.3),
    ("45 slots", Placement(n_cpu_moe=48, hot_k=45, threads=15), 0.74, 71.2),
    ("all in VRAM", Placement(n_cpu_moe=0, threads=15), None, 222.0),
]


@pytest.mark.parametrize(("name", "placement", "hits", "tok_s"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_the_constants_reproduce_the_machine_that_they_were_read_off(
    name: str, placement: Placement, hits: float | None, tok_s: float
) -> None:
    found = speed(a_shape(), placement, MACHINE, lambda share: hits or 0.0)
    assert found.decode_tok_s == pytest.approx(tok_s, rel=0.25)
    assert found.decode_at_most_tok_s > tok_s


def test_a_token_loads_what_the_placement_leaves_in_ram() -> None:
    shape = a_shape()
    load = token_load(shape, Placement(n_cpu_moe=30, hot_k=64, threads=1), lambda share: 0.8)
    in_vram = [layer for layer in load.layers if not layer.misses]
    assert len(in_vram) == 18
    assert load.uploaded_bytes == pytest.approx(30 * 302 * 2**20 * 8 / 128 * 0.2, rel=1e-6)
    much = token_load(shape, Placement(n_cpu_moe=30, hot_k=1, threads=1, upload_mib=4), lambda share: 0.1)
    assert much.uploaded_bytes == 4 * 2**20
    assert expert_bytes_from_ram(shape, Placement(n_cpu_moe=0, threads=1), lambda share: 0) == 0


def test_prefill_is_bound_by_what_a_batch_brings_over_pcie() -> None:
    found = speed(a_shape(), Placement(n_cpu_moe=48, threads=1, ubatch=2048), MACHINE, lambda share: 0)
    # 2,048 x 54.1 GB/s / 15.2 GB
    assert found.prefill_at_most_tok_s == pytest.approx(7290, rel=0.01)
    whole = speed(a_shape(), Placement(n_cpu_moe=0, threads=1), MACHINE, lambda share: 0)
    assert whole.prefill_at_most_tok_s is None


def measured_machine(gpu: GpuCopies | None) -> MachineBandwidths:
    return MachineBandwidths(
        revision=1,
        fingerprint="",
        measured_at="",
        seconds=1,
        expert_mib=2,
        area_mib=1,
        last_level_cache_mib=None,
        cpu=(
            CpuReads(threads=1, streaming_gb_per_s=12, expert_reads_gb_per_s=11),
            CpuReads(threads=2, streaming_gb_per_s=20, expert_reads_gb_per_s=19),
        ),
        gpu=gpu,
    )


def test_bandwidths_are_the_measured_ones_or_a_given_gpus() -> None:
    copies = GpuCopies(
        gpu="x",
        pcie_h2d_gb_per_s=25,
        pcie_h2d_unpinned_gb_per_s=10,
        hbm_gb_per_s=900,
        overlap_threads=2,
        pcie_overlapped_gb_per_s=15,
        cpu_overlapped_gb_per_s=14,
    )
    found = machine_bandwidths(measured_machine(copies), None)
    assert found == Bandwidths(cpu=19, hbm=900, pcie_h2d=25, cpu_overlapped=14, pcie_overlapped=15)
    assert machine_bandwidths(measured_machine(None), None) is None
    given = machine_bandwidths(measured_machine(None), GpuGiven(hbm_gb_per_s=1000, pcie_gb_per_s=13.1))
    assert given is not None
    assert (given.cpu, given.hbm) == (19, 1000)
    assert given.pcie_overlapped == pytest.approx(8.4)
    assert 0 < CPU_EFFICIENCY < 1
