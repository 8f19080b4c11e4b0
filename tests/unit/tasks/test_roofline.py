"""The bound of each kind of placement, and where there is none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import planned
import pytest

from hottune import workflow
from hottune.engine.facts import Backend
from hottune.engine.fitlog import fit_placement
from hottune.machine.bandwidth import CpuReads, GpuCopies, MachineBandwidths
from hottune.outcomes import FitPlacement, Measurement
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report.schema import Arm, Replicate
from hottune.routing.bound import Bandwidths
from hottune.tasks import prepare, roofline
from hottune.tasks.roofline import decode_bound, experts_in_ram, noted_roofline, with_bound
from hottune.units import MIB
from hottune.workload.workloads import load_workload

MACHINE = Bandwidths(cpu=10, hbm=1000, pcie_h2d=20, cpu_overlapped=8, pcie_overlapped=15)
ALL_CPU = Placement(n_cpu_moe=8, threads=1)
WORK = load_workload("chat")
DEVICE = "  - CUDA0 (Example):  {} layers ( {} overflowing),   900 MiB used,  3000 MiB free"


def fitted(n_layers: int, n_partial: int = 0, *more: str) -> FitPlacement:
    """What fit's log says of `n_layers` of 9 (the output layer counted) on the GPU."""
    found = fit_placement([*more, DEVICE.format(n_layers, n_partial)], (n_layers, 9))
    assert found is not None
    return found


def measured(placement: Placement, fit: FitPlacement | None = None) -> Measurement:
    one = planned.measured(placement, 1.0)
    return one.model_copy(update={"engagement": one.engagement.model_copy(update={"fit": fit})})


def bound(placement: Placement, fit: FitPlacement | None = None) -> float:
    found = decode_bound(planned.SHAPE, placement, [measured(placement, fit)], WORK, MACHINE)
    assert found is not None
    return found


FIT = Placement(n_cpu_moe=0, threads=1, fit=True)


def test_all_experts_in_ram_are_all_misses() -> None:
    # 2 experts of 1 MiB in each of 8 layers at 10 GB/s, and little beside
    assert bound(ALL_CPU) == pytest.approx(10e9 / (16 * MIB), rel=0.05)


def test_hits_and_layers_in_vram_raise_the_bound() -> None:
    hot = ALL_CPU.model_copy(update={"hot_k": 4})
    layers = ALL_CPU.model_copy(update={"n_cpu_moe": 4})
    assert bound(ALL_CPU) < bound(hot)
    assert bound(layers) == pytest.approx(2 * bound(ALL_CPU), rel=0.1)


def test_fit_with_every_layer_but_no_experts_in_vram_is_all_cpu() -> None:
    assert bound(FIT, fitted(9, 9)) == pytest.approx(bound(ALL_CPU))


def test_fit_with_half_of_the_experts_is_a_layer_offload() -> None:
    half = ALL_CPU.model_copy(update={"n_cpu_moe": 4})
    assert bound(FIT, fitted(9, 5)) == pytest.approx(bound(half))


def test_fit_without_overrides_has_all_in_vram() -> None:
    assert bound(FIT, fitted(9)) == pytest.approx(bound(ALL_CPU.model_copy(update={"n_cpu_moe": 0})))


def test_a_layer_that_fit_left_to_the_cpu_reads_its_other_weights_from_ram_too() -> None:
    shares = experts_in_ram(planned.SHAPE, FIT, fitted(6))
    assert shares == [1.0] * 3 + [0.0] * 5
    with_dense = bound(FIT, fitted(6))
    experts_alone = bound(ALL_CPU.model_copy(update={"n_cpu_moe": 3}))
    # 3 layers have 6 MiB of experts a token and 3 MiB of other weights
    assert experts_alone / with_dense == pytest.approx(9 / 6, rel=0.1)


@pytest.mark.parametrize(("kind", "share"), [("UP", 2 / 3), ("GATE", 1 / 3), ("ATTN", 1.0)])
def test_a_part_of_a_layer_counts_as_that_part(kind: str, share: float) -> None:
    line = f"set ngl_per_device[0].(n_layer, n_part, overflow_type)=(9, 3, {kind})"
    shares = experts_in_ram(planned.SHAPE, FIT, fitted(9, 3, line))
    assert shares == pytest.approx([0.0] * 6 + [share, 1.0])


def test_there_is_no_bound_where_it_would_mean_nothing() -> None:
    for placement, machine in (
        (ALL_CPU, None),
        (FIT, MACHINE),  # its log says nothing
        (ALL_CPU.model_copy(update={"spec_type": "ngram-simple"}), MACHINE),
        (ALL_CPU.model_copy(update={"parallel": 4}), MACHINE),
    ):
        assert decode_bound(planned.SHAPE, placement, [measured(placement)], WORK, machine) is None


def test_an_arm_gets_its_bound_and_the_share_that_it_reached() -> None:
    one = Replicate(position=0, started=datetime.now(UTC), outcome=measured(ALL_CPU))
    arm = Arm(name="all-cpu", placement=ALL_CPU, argv=[], env={}, outcome="measurement", replicates=[one])
    row = with_bound(arm.model_copy(update={"decode_tok_s": 100.0}), planned.SHAPE, WORK, MACHINE)
    assert row.bound_decode_tok_s == pytest.approx(bound(ALL_CPU))
    assert row.bound_share == pytest.approx(100 / bound(ALL_CPU))
    failed = arm.model_copy(update={"outcome": "crashed", "replicates": []})
    assert with_bound(failed, planned.SHAPE, WORK, MACHINE) == failed


def machine_facts() -> MachineBandwidths:
    return MachineBandwidths(
        revision=1,
        fingerprint="f",
        measured_at="2026-03-01",
        seconds=10,
        expert_mib=2,
        area_mib=2048,
        last_level_cache_mib=None,
        cpu=(CpuReads(threads=4, streaming_gb_per_s=50, expert_reads_gb_per_s=40),),
        gpu=GpuCopies(
            gpu="GPU 0",
            pcie_h2d_gb_per_s=20,
            pcie_h2d_unpinned_gb_per_s=5,
            hbm_gb_per_s=900,
            overlap_threads=4,
            pcie_overlapped_gb_per_s=15,
            cpu_overlapped_gb_per_s=30,
        ),
    )


def test_bandwidths_are_measured_once_in_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(machine: object, cache_dir: Path, *, gpu: object, progress: object) -> MachineBandwidths:
        asked.append(str(cache_dir))
        return machine_facts()

    monkeypatch.setattr(roofline, "bandwidths", measure)
    plan = prepare.plan(
        planned.config(tmp_path),
        planned.engine(Backend.CUDA),
        planned.model(),
        planned.machine(planned.gpu()),
    )
    with workflow.opened(plan) as (opened, journal):
        first, second = (noted_roofline(opened, journal, NoProgress()) for _ in range(2))
    assert first == second
    assert first.bandwidths is not None
    assert (first.bandwidths.cpu, first.bandwidths.hbm) == (40, 900)
    assert len(asked) == 1


def test_a_virtual_gpu_has_no_bandwidths_and_says_so(tmp_path: Path) -> None:
    with workflow.opened(planned.plan(tmp_path)) as (plan, journal):
        found = noted_roofline(plan, journal, NoProgress())
    assert found.bandwidths is None
    assert "virtual" in found.reason
