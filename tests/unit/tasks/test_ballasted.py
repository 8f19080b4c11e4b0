"""With a ballast, everything after it sees a card of the ceiling's size, and the report says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import planned
import pytest

from hottune import workflow
from hottune.engine.facts import Backend
from hottune.errors import BallastError
from hottune.machine import ballast
from hottune.machine.ballast import Ballast
from hottune.machine.facts import Gpu
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report.schema import Report, Roofline
from hottune.tasks import measure, prepare
from hottune.tasks.ballasted import ballasted
from hottune.tasks.commands import argv_and_env

CEILING_MIB = 600.0


class FakeHolder:
    facts = Ballast(held_mib=19400, free_mib=CEILING_MIB)
    pid = 1

    def __init__(self) -> None:
        self.gone = False
        self.ended = False

    def require(self) -> None:
        if self.gone:
            raise BallastError("gone")


@pytest.fixture
def holders(monkeypatch: pytest.MonkeyPatch) -> list[FakeHolder]:
    made: list[FakeHolder] = []

    @contextmanager
    def held(gpu: Gpu, ceiling_mib: float) -> Iterator[FakeHolder]:
        assert ceiling_mib == CEILING_MIB
        made.append(FakeHolder())
        yield made[-1]
        made[-1].ended = True

    monkeypatch.setattr(ballast, "held", held)
    monkeypatch.setattr(ballast, "driver_is_here", lambda: True)
    # Measuring the bandwidths of the machine that runs the tests takes seconds and says nothing here.
    monkeypatch.setattr(workflow, "noted_roofline", lambda *_: Roofline(reason="not asked for"))
    return made


def real(folder: Path, **changes: Any) -> prepare.Plan:
    gpu = planned.gpu().model_copy(update={"uuid": "GPU-0"})
    changes = {"vram_mib": CEILING_MIB, "trials": 2} | changes
    return prepare.plan(
        planned.config(folder, **changes), planned.engine(Backend.CUDA), planned.model(), planned.machine(gpu)
    )


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_servers_see_the_small_card_and_leave_only_growth_free(
    tmp_path: Path, holders: list[FakeHolder]
) -> None:
    plan = real(tmp_path)
    fit = plan.space.fit(64)
    hot = plan.space.base.model_copy(update={"n_cpu_moe": 8, "hot_k": 2})
    with ballasted(plan, NoProgress()) as with_it:
        assert with_it.gpu.vram_free_mib == CEILING_MIB
        assert value_of(argv_and_env(with_it, fit)[0], "--fit-target") == "256"
        assert argv_and_env(with_it, hot)[1]["GGML_HOT_HEADROOM_MIB"] == "256"
        assert with_it.without_ballast.gpu == plan.gpu
    without = 20000 - int(CEILING_MIB)
    assert value_of(argv_and_env(plan, fit)[0], "--fit-target") == str(without + 256)
    assert holders[0].ended


class Told(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ballast": False}, []),
        ({"vram_mib": None}, []),
        ({"vram_mib": 19500.0}, ["No ballast: less than 1024 MiB are free above the ceiling."]),
    ],
)
def test_without_need_or_wish_there_is_none(
    tmp_path: Path, holders: list[FakeHolder], changes: dict[str, Any], said: list[str]
) -> None:
    plan, ui = real(tmp_path, **changes), Told()
    with ballasted(plan, ui) as same:
        assert same is plan
    assert holders == []
    assert ui.lines == said


def test_the_virtual_gpu_has_none(tmp_path: Path, holders: list[FakeHolder]) -> None:
    plan = planned.plan(tmp_path, vram_mib=CEILING_MIB)
    with ballasted(plan, NoProgress()) as same:
        assert same is plan
    assert holders == []


def run(folder: Path, **changes: Any) -> Report:
    def servers(placement: Placement) -> Any:
        return planned.measured(placement, 1.0 if placement.hot_k == 0 else 0.5)

    return workflow.run_plan(real(folder, **changes), NoProgress(), lambda plan, meter: servers)


def test_the_report_says_what_was_held_and_warns(tmp_path: Path, holders: list[FakeHolder]) -> None:
    report = run(tmp_path)
    assert report.ballast == FakeHolder.facts
    (warning,) = [one.text for one in report.warnings if one.code == "ballast"]
    assert "not its bandwidth" in warning
    fit = next(arm for arm in report.arms if arm.name == "fit")
    assert value_of(fit.argv, "--fit-target") == "256", "as it was run"
    assert report.winner is not None
    assert f"GGML_HOT_HEADROOM_MIB={20000 - int(CEILING_MIB)}" in report.winner.command, (
        "as it will be served"
    )


def test_without_a_ballast_the_report_has_neither(tmp_path: Path, holders: list[FakeHolder]) -> None:
    report = run(tmp_path, ballast=False)
    assert report.ballast is None
    assert "ballast" not in [one.code for one in report.warnings]


def test_numbers_with_and_without_one_are_not_of_one_study(tmp_path: Path, holders: list[FakeHolder]) -> None:
    assert real(tmp_path).name != real(tmp_path, ballast=False).name
    with ballasted(real(tmp_path), NoProgress()) as with_it:
        assert with_it.name == real(tmp_path).name, "what is free is no part of the identity"


def test_no_server_starts_when_the_ballast_is_gone(
    tmp_path: Path, holders: list[FakeHolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: Any, **__: Any) -> Any:
        raise AssertionError("started")

    monkeypatch.setattr(measure, "launch", launch)
    with ballasted(real(tmp_path), NoProgress()) as plan:
        holders[0].gone = True
        bench = workflow.make_bench(plan, lambda line: None)
        with pytest.raises(BallastError):
            bench.measure(plan.space.all_cpu(64))


def test_a_ballast_that_goes_during_a_measurement_spoils_it(
    tmp_path: Path, holders: list[FakeHolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ballasted(real(tmp_path), NoProgress()) as plan:
        bench = workflow.make_bench(plan, lambda line: None)

        def measured(placement: Placement) -> Any:
            holders[0].gone = True
            return planned.measured(placement, 1.0)

        monkeypatch.setattr(bench, "_measure_fresh", measured)
        with pytest.raises(BallastError):
            bench.measure(plan.space.all_cpu(64))


def test_a_dry_run_shows_the_commands_of_the_small_card_and_takes_no_ballast(
    tmp_path: Path, holders: list[FakeHolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = real(tmp_path)
    monkeypatch.setattr(prepare, "prepare_for_show", lambda config: plan)
    _, shown = workflow.dry_run(plan.config)
    (fit,) = [one for one in shown if one.arm == "fit"]
    assert value_of(fit.argv, "--fit-target") == "256"
    assert holders == []
