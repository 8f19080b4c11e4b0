"""Which plans get a cost model for their search."""

from __future__ import annotations

from pathlib import Path

import planned

from hottune.engine.facts import Backend
from hottune.report.schema import Roofline
from hottune.routing.bound import Bandwidths
from hottune.tasks import prepare
from hottune.tasks.forecast import with_forecast
from hottune.tasks.prepare import Plan

ROOFLINE = Roofline(
    bandwidths=Bandwidths(cpu=40, hbm=1000, pcie_h2d=20, cpu_overlapped=30, pcie_overlapped=15)
)


def real(folder: Path, **changes: object) -> Plan:
    machine = planned.machine(planned.gpu())
    return prepare.plan(
        planned.config(folder, **changes), planned.engine(Backend.CUDA), planned.model(), machine
    )


def test_a_real_gpu_with_known_bandwidths_gets_one(tmp_path: Path) -> None:
    plan = with_forecast(real(tmp_path, vram_mib=600), ROOFLINE)
    model = plan.space.foresee
    assert model is not None
    more, less = (plan.space.layers(8, 64).model_copy(update={"hot_k": k}) for k in (8, 2))
    assert model(more) > model(less), "a larger cache is worth more"
    assert plan.identity() == real(tmp_path, vram_mib=600).identity(), "it is no part of what is measured"


def test_a_virtual_gpu_gets_none(tmp_path: Path) -> None:
    assert with_forecast(planned.plan(tmp_path), ROOFLINE).space.foresee is None


def test_without_bandwidths_there_is_none(tmp_path: Path) -> None:
    assert with_forecast(real(tmp_path), Roofline(reason="no driver")).space.foresee is None


def test_batches_of_several_tokens_are_not_modelled(tmp_path: Path) -> None:
    assert with_forecast(real(tmp_path, parallel=2), ROOFLINE).space.foresee is None
    assert with_forecast(real(tmp_path, spec_type="ngram-mod"), ROOFLINE).space.foresee is None
