"""`hottune bench` holds a ballast and warns of the machine, too; its servers are simulated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import planned
import pytest
from typer.testing import CliRunner

from hottune import workflow
from hottune.cli.app import app
from hottune.engine.facts import Backend
from hottune.errors import BallastError
from hottune.machine import ballast
from hottune.machine.ballast import Ballast
from hottune.outcomes import DuringRun, MachineState
from hottune.tasks import prepare, surroundings
from hottune.tasks.settings import RunConfig

Bench = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    gpu = planned.gpu().model_copy(update={"uuid": "GPU-0"})

    def prepared(config: RunConfig, progress: object) -> prepare.Plan:
        asked = {"vram_mib": config.vram_mib, "ballast": config.ballast}
        ours = planned.config(tmp_path, **asked)
        return prepare.plan(ours, planned.engine(Backend.CUDA), planned.model(), planned.machine(gpu))

    class Simulated:
        bench = SimpleNamespace(profile_to=None)

        def __call__(self, placement: Any) -> Any:
            state = MachineState(during=DuringRun(samples=4, throttled={"power limit": 0.5}))
            return planned.measured(placement, 1.0).model_copy(update={"machine_state": state})

    monkeypatch.setattr(prepare, "prepare", prepared)
    monkeypatch.setattr(workflow, "real_servers", lambda plan, meter: Simulated())
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr(ballast, "driver_is_here", lambda: True)

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        ended = CliRunner().invoke(app, ["bench", "m.gguf", "--json", "--quiet", *options])
        return ended.exit_code, json.loads(ended.stdout)

    return run


def hold(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    @contextmanager
    def held(gpu: object, ceiling_mib: float) -> Iterator[Any]:
        if error is not None:
            raise error
        facts = Ballast(held_mib=20000 - ceiling_mib, free_mib=ceiling_mib)
        yield SimpleNamespace(facts=facts, require=lambda: None)

    monkeypatch.setattr(ballast, "held", held)


def test_what_was_held_and_what_the_machine_did_stand_in_the_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch)
    code, said = bench("--vram", "600MiB")
    assert code == 0
    assert said["ballast"] == {"held_mib": 19400, "free_mib": 600}
    warnings = {one["code"]: one["text"] for one in said["warnings"]}
    assert "power limit, 50% of the time" in warnings["throttled"]
    assert said["outcomes"][0]["machine_state"]["during"]["samples"] == 4


def test_a_ballast_that_is_refused_ends_with_its_own_exit_code(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(monkeypatch, BallastError("others", "", "Use --no-ballast."))
    code, said = bench("--vram", "600MiB")
    assert code == 43
    assert said["error"]["next_step"] == "Use --no-ballast."
    code, said = bench("--vram", "600MiB", "--no-ballast")
    assert (code, said["ballast"]) == (0, None)


def test_a_ballast_without_a_ceiling_is_refused(bench: Bench) -> None:
    code, said = bench("--ballast")
    assert code == 42
    assert "--vram" in said["error"]["what"]


@pytest.mark.parametrize(("quick", "limit_s"), [(False, 30.0), (True, 5.0)])
def test_a_quick_run_waits_less_for_a_cool_card(tmp_path: Path, quick: bool, limit_s: float) -> None:
    plan = planned.plan(tmp_path, quick=quick)
    assert workflow.make_bench(plan, lambda line: None).cooldown_limit_s == limit_s
