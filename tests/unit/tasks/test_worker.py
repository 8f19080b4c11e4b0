"""Who may work on a study: equal machines, one process for each worker and each real GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planned
import pytest

from hottune import workflow
from hottune.engine.facts import Backend
from hottune.errors import MachineDiffersError, StudyBusyError
from hottune.machine.facts import Gpu, Machine
from hottune.tasks import prepare
from hottune.tasks.fingerprint import differences, fingerprint, ram_differs
from hottune.tasks.prepare import Plan
from hottune.tasks.worker import worker_name


def plan_on(folder: Path, machine: Machine, **changes: Any) -> Plan:
    settings = {"study": "mine", **changes}
    return prepare.plan(
        planned.config(folder, **settings), planned.engine(Backend.CUDA), planned.model(), machine
    )


def gpu(index: int = 0, **changes: Any) -> Gpu:
    return planned.gpu(index=index).model_copy(update={"name": "Card", "uuid": f"GPU-{index}", **changes})


def test_another_kernel_and_minor_driver_make_no_other_machine(tmp_path: Path) -> None:
    here = planned.machine(gpu(driver="550.1")).model_copy(update={"system": "Linux 6.1.0"})
    there = planned.machine(gpu(driver="550.9")).model_copy(update={"system": "Linux 6.8.0-generic"})
    assert fingerprint(here, here.gpus[0]) == fingerprint(there, there.gpus[0])
    assert plan_on(tmp_path, here, study=None).name == plan_on(tmp_path, there, study=None).name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "Other card"}, "GPU: Other card, 24000 MiB here, Card, 24000 MiB in the study"),
        ({"vram_total_mib": 48000.0}, "GPU: Card, 48000 MiB here"),
        ({"driver": "600.1"}, "driver: 600 here, none in the study"),
    ],
)
def test_a_machine_that_differs_is_refused_and_told_in_what(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with workflow.opened(plan_on(tmp_path, planned.machine(gpu()))):
        pass
    other = plan_on(tmp_path, planned.machine(gpu(**changes)))
    with pytest.raises(MachineDiffersError) as raised, workflow.opened(other):
        pass
    assert told in raised.value.what
    assert raised.value.exit_code == 54


def test_memory_may_differ_by_what_firmware_keeps() -> None:
    assert ram_differs(64000, 63000) == []
    assert ram_differs(64 * 1024, 32 * 1024) == ["memory: 64 GiB here, 32 GiB in the study"]


def test_what_is_missing_on_one_side_is_a_difference() -> None:
    assert differences({"GPU": "Card"}, {}) == ["GPU: Card here, none in the study"]
    assert differences({"GPU": "Card"}, {"GPU": "Card"}) == []


def test_a_second_process_is_refused_on_the_same_gpu_and_welcome_on_another(tmp_path: Path) -> None:
    machine = planned.machine(gpu(0), gpu(1))
    first = plan_on(tmp_path, machine, gpu=0)
    with workflow.opened(first) as (_, journal):
        with pytest.raises(StudyBusyError, match="mine"), workflow.opened(plan_on(tmp_path, machine, gpu=0)):
            pass
        other_study = plan_on(tmp_path, machine, gpu=0, study="another")
        with pytest.raises(StudyBusyError, match="Card"), workflow.opened(other_study):
            pass
        second = plan_on(tmp_path, machine, gpu=1)
        with workflow.opened(second) as (_, other):
            assert worker_name(first) != worker_name(second)
            assert other.noted("identity") == journal.noted("identity")


def test_workers_with_names_share_a_virtual_gpu(tmp_path: Path) -> None:
    with (
        workflow.opened(planned.plan(tmp_path, worker="a")),
        workflow.opened(planned.plan(tmp_path, worker="b")) as (plan, _),
    ):
        assert worker_name(plan) == "b"
        with pytest.raises(StudyBusyError), workflow.opened(planned.plan(tmp_path, worker="a")):
            pass


def test_a_worker_that_opens_a_study_does_not_end_what_another_is_measuring(tmp_path: Path) -> None:
    with workflow.opened(planned.plan(tmp_path, worker="a")) as (plan, first):
        attributes = {"placement": plan.space.all_cpu(64).model_dump_json(), "started": "now", "arm": None}
        assert first._search.take(attributes) is not None
        with workflow.opened(planned.plan(tmp_path, worker="b")) as (_, second):
            assert second.claimed() == {plan.space.all_cpu(64)}
    with workflow.opened(planned.plan(tmp_path, worker="a")) as (_, again):
        assert again.claimed() == set(), "it holds the lock of a, so that trial's process is dead"
