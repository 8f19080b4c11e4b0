"""Other engines in a run, with simulated servers: their arms, their verdicts, and what they do not decide."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import planned
import pytest
from test_workflow import Told, servers

from hottune import workflow
from hottune.engine.facts import Backend
from hottune.engine.forks.build import find_fork, refused
from hottune.engine.forks.command import Fork
from hottune.engine.forks.file import load_engine_file
from hottune.errors import BadSettingError, EngineFileError
from hottune.outcomes import NotEngaged, Outcome
from hottune.placement import Placement
from hottune.report.schema import Report
from hottune.search.recorder import Measure
from hottune.tasks import surroundings
from hottune.tasks.others import engine_files, others
from hottune.tasks.prepare import Plan
from hottune.tasks.show import Meter


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)


def ik(folder: Path) -> Fork:
    return find_fork(load_engine_file("ik_llama"), Backend.CPU, cache_dir=folder)


def run(folder: Path, turn_s: float, *forks: Fork) -> Report:
    own, count = servers(hot_speed=1.3), itertools.cycle((0, 3, 1, 2))

    def measuring(plan: Plan, meter: Meter) -> Measure:
        plain = own(plan, meter)

        def measure(placement: Placement) -> Outcome:
            if placement.engine == "parmesan":
                return NotEngaged(detail="serves qwen35moe models")
            if placement.engine:
                return planned.measured(placement, turn_s * (1 + 0.001 * next(count)))
            return plain(placement)

        return measure

    plan = replace(planned.plan(folder, confirm_top=1, replicates=4), forks=forks)
    return workflow.run_plan(plan, Told(), measuring)


def test_a_slower_engine_is_an_arm_with_verdicts_and_never_the_best_baseline(tmp_path: Path) -> None:
    parmesan = refused(load_engine_file("parmesan"), Backend.CPU, "serves qwen35moe models")
    report = run(tmp_path, 2.0, ik(tmp_path), parmesan)
    arms = {arm.name: arm for arm in report.arms}
    assert list(arms) == ["all-cpu", "layers", "fit", "ik_llama", "parmesan", "hot"]
    one = arms["ik_llama"]
    assert one.versus_turn is not None
    assert (one.versus_arm, one.versus_turn.verdict) == ("layers", "slower")
    assert one.versus_winner["turn"].verdict == "slower"
    assert one.text_equal is None
    assert one.argv[:2] == ["llama-server", "-m"]
    assert "-ncmoe" in one.argv
    assert arms["hot"].ratios["ik_llama"]["turn"].verdict == "faster"
    assert (arms["parmesan"].outcome, arms["parmesan"].replicates) == ("not_engaged", [])
    assert report.winner is not None
    assert (report.winner.arm, report.winner.faster_engines) == ("hot", [])
    assert [one.name for one in report.other_engines] == ["ik_llama", "parmesan"]


def test_a_faster_engine_is_named_but_hottune_recommends_what_it_serves(tmp_path: Path) -> None:
    report = run(tmp_path, 0.3, ik(tmp_path))
    assert report.winner is not None
    assert (report.winner.arm, report.winner.faster_engines) == ("hot", ["ik_llama"])
    hot = next(arm for arm in report.arms if arm.name == "hot")
    assert hot.versus_arm == "layers", "an engine is no baseline, however fast it is"
    assert hot.versus_turn is not None
    assert hot.versus_turn.verdict == "faster"


def test_engines_make_another_study_and_none_leaves_its_name_as_it_was(tmp_path: Path) -> None:
    plain = planned.plan(tmp_path)
    assert "other engines" not in plain.identity()
    assert "engine" not in json.dumps(plain.identity()["settings"])
    assert replace(plain, forks=(ik(tmp_path),)).name != plain.name


def test_what_cannot_be_an_arm_is_not_built(tmp_path: Path) -> None:
    told = Told()
    config = planned.config(tmp_path, engines=("ik_llama",))
    found = others(config, planned.engine(), planned.model(), told)
    assert "needs a real GPU" in found[0].facts.refused
    assert "needs a real GPU" in " ".join(told.lines)


def test_engines_are_named_once_and_programs_belong_to_one(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="Two engines are called ik_llama"):
        engine_files(planned.config(tmp_path, engines=("ik_llama", "ik_llama")))
    with pytest.raises(BadSettingError, match="--engine-bin parmesan: there is no --engine"):
        engine_files(planned.config(tmp_path, engines=("ik_llama",), engine_bins={"parmesan": tmp_path}))
    with pytest.raises(EngineFileError):
        engine_files(planned.config(tmp_path, engines=("no-such-engine",)))
