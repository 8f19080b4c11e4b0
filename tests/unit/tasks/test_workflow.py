"""The workflow from plan to report with simulated servers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import planned
import pytest

from hottune import workflow
from hottune.errors import BadSettingError, NothingMeasuredError
from hottune.outcomes import Crashed, NotEngaged, Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report import load
from hottune.report.schema import Confirmation, Report
from hottune.search.recorder import Measure
from hottune.search.rounds import MOST_ROUNDS
from hottune.stats import FIRST_LOOK, LOOKING_LEVEL
from hottune.tasks import clock, surroundings
from hottune.tasks.prepare import Plan
from hottune.tasks.show import Meter

Measuring = Callable[[Plan, Meter], Measure]


class Told(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)


def servers(hot_speed: float = 1.3, noise: float = 0.01, hot_text: str = "t") -> Measuring:
    """Simulate: a cache makes a turn `hot_speed` times as fast as the best baseline (layers)."""
    count = 0

    def measure(placement: Placement) -> Outcome:
        nonlocal count
        count += 1
        wobble = 1 + noise * max(-2.0, min(2.0, random.Random(count).gauss(0, 1)))
        if placement.fit:
            return NotEngaged(detail="fit placed nothing")
        if placement.hot_k:
            return planned.measured(placement, wobble / hot_speed, text=hot_text)
        return planned.measured(placement, wobble if placement.n_cpu_moe < 8 else 1.5 * wobble)

    return lambda plan, meter: measure


def run(folder: Path, measuring: Measuring, **changes: object) -> tuple[Report, Told]:
    told = Told()
    return workflow.run_plan(planned.plan(folder, **changes), told, measuring), told


def test_a_clear_gain_is_recommended_with_its_interval_and_its_command(tmp_path: Path) -> None:
    report, told = run(tmp_path, servers(hot_speed=1.3), confirm_top=1)
    assert report.winner is not None
    assert report.winner.arm == "hot"
    hot = next(arm for arm in report.arms if arm.name == "hot")
    assert hot.versus_arm == "layers"
    assert hot.versus_turn is not None
    assert hot.versus_turn.verdict == "faster"
    assert hot.versus_turn.ratio == pytest.approx(1.3, rel=0.05)
    assert "GGML_HOT_K=" in report.winner.command
    assert "GGML_HOT_STATS" not in report.winner.command
    assert "--no-cache-prompt" not in report.winner.command, "it is for people, not for a measurement"
    assert f"Serve it: hottune serve {tmp_path}" in "\n".join(told.lines)


def test_without_a_gain_the_best_baseline_is_recommended(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers(hot_speed=0.9))
    assert report.winner is not None
    assert report.winner.arm == "layers"
    assert "GGML_HOT_INTERVAL" not in report.winner.command


def test_a_gain_within_the_noise_is_not_recommended(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers(hot_speed=1.02, noise=0.2))
    assert report.winner is not None
    assert report.winner.arm == "layers"


def test_an_arm_that_was_not_engaged_is_in_the_report_without_numbers(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers())
    fit = next(arm for arm in report.arms if arm.name == "fit")
    assert (fit.outcome, fit.detail) == ("not_engaged", "fit placed nothing")
    assert fit.decode_tok_s is None
    assert fit.replicates == []


def test_a_text_that_differs_from_the_all_cpu_arms_is_marked(tmp_path: Path) -> None:
    same, _ = run(tmp_path / "a", servers())
    other, _ = run(tmp_path / "b", servers(hot_text="something else"))
    assert {arm.name: arm.text_equal for arm in same.arms}["hot"] is True
    assert {arm.name: arm.text_equal for arm in other.arms}["hot"] is False


def test_search_and_confirmed_numbers_stand_side_by_side(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers())
    for arm in report.arms:
        if arm.outcome == "measurement":
            assert len(arm.replicates) == 3
            assert arm.search_turn_s is not None
            assert arm.turn_s == pytest.approx(arm.search_turn_s, rel=0.05)


def test_the_two_best_of_the_search_are_measured_again_and_judged_together(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers(), replicates=5)
    rows = {arm.name: arm for arm in report.arms}
    assert list(rows) == ["all-cpu", "layers", "fit", "hot", "hot-2"]
    assert rows["hot"].placement != rows["hot-2"].placement
    searched = sorted(arm.search_turn_s or 0 for arm in (rows["hot"], rows["hot-2"]))
    assert searched[0] == rows["hot"].search_turn_s, "hot is the search's best"
    for name in ("hot", "hot-2"):
        change = rows[name].ratios["layers"]["turn"]
        assert change.verdict == "faster"
        assert change.method.endswith("verdict by Holm over 4"), "two candidates, two measured baselines"
    assert report.winner is not None
    assert report.winner.arm in ("hot", "hot-2")
    assert "interval for the best of 2" in report.winner.reason
    assert (rows[report.winner.arm].turn_s or 9) <= min(rows[n].turn_s or 9 for n in ("hot", "hot-2"))


def test_without_a_number_of_replicates_the_stage_goes_on_until_intervals_are_narrow(tmp_path: Path) -> None:
    calm, _ = run(tmp_path / "calm", servers(noise=0.002), replicates=None)
    noisy, _ = run(tmp_path / "noisy", servers(noise=0.05), replicates=None)
    assert calm.confirmation == Confirmation(rounds=FIRST_LOOK, level=LOOKING_LEVEL, ended="precise")
    assert noisy.confirmation == Confirmation(rounds=MOST_ROUNDS, level=LOOKING_LEVEL, ended="most")
    hot = next(arm for arm in calm.arms if arm.name == "hot")
    assert hot.versus_turn is not None
    assert "at 97 %" in hot.versus_turn.method


def test_the_stage_goes_on_where_it_was_killed_and_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", servers(noise=0.002), replicates=None)
    n_search = len(whole.trials)

    def killed(plan: Plan, meter: Meter) -> Measure:
        measure, count = servers(noise=0.002)(plan, meter), 0

        def until(placement: Placement) -> Outcome:
            nonlocal count
            count += 1
            if count > n_search + 13:
                raise KeyboardInterrupt
            return measure(placement)

        return until

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed, replicates=None)
    resumed, _ = run(tmp_path / "killed", servers(noise=0.002), replicates=None)
    assert resumed.confirmation == whole.confirmation
    positions = sorted(one.position for arm in resumed.arms for one in arm.replicates)
    assert positions == list(range(4 * FIRST_LOOK))


def test_the_files_are_written_and_can_be_read_again(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers())
    assert load(tmp_path / "reports" / f"{report.study}.json") == report
    assert (tmp_path / "reports" / f"{report.study}.md").read_text()


def test_a_finished_study_reports_the_same_without_a_server(tmp_path: Path) -> None:
    first, _ = run(tmp_path, servers())

    def none(placement: Placement) -> Outcome:
        raise AssertionError("nothing may be measured again")

    second, told = run(tmp_path, lambda plan, meter: none)
    assert second.arms == first.arms
    assert second.seconds == first.seconds
    assert any("trials are kept" in line for line in told.lines)


def test_the_virtual_gpu_is_announced_in_one_line(tmp_path: Path) -> None:
    _, told = run(tmp_path, servers())
    assert told.lines[0] == (
        "No GPU found: using hottune's virtual GPU; these numbers show the tool, not a gain."
    )


def test_when_nothing_could_be_measured_the_error_says_why(tmp_path: Path) -> None:
    def broken(placement: Placement) -> Outcome:
        return Crashed(exit_code=1, detail="no such instruction")

    with pytest.raises(NothingMeasuredError, match="no such instruction"):
        run(tmp_path, lambda plan, meter: broken)


def test_a_named_study_of_another_set_up_is_refused(tmp_path: Path) -> None:
    run(tmp_path, servers(), study="mine")
    with pytest.raises(BadSettingError, match="workload"):
        run(tmp_path, servers(), study="mine", workload="code")


def test_the_configuration_is_kept_without_the_storage_and_its_password(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    plan = planned.plan(tmp_path, storage=url)
    with workflow.opened(plan) as (_, journal):
        assert "storage" not in journal.noted("config")
        assert journal.noted("config")["trials"] == 4
    assert (tmp_path / "elsewhere.db").exists()


def test_a_resumed_study_keeps_the_ceiling_it_began_with(tmp_path: Path) -> None:
    from hottune.engine.facts import Backend
    from hottune.tasks import prepare

    def plan(free_mib: float) -> Plan:
        machine = planned.machine(planned.gpu(free_mib))
        return prepare.plan(planned.config(tmp_path), planned.engine(Backend.CUDA), planned.model(), machine)

    with workflow.opened(plan(20000)) as (first, _):
        assert first.ceiling_mib == 19488
    with workflow.opened(plan(19990)) as (second, _):
        assert second.ceiling_mib == 19488
        assert second.space.ceiling_mib == 19488


def test_warnings_of_every_session_stay_with_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 80.0)
    run(tmp_path, servers())
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)
    report, _ = run(tmp_path, servers())
    assert "other-load" in [one.code for one in report.warnings]
    assert "virtual-gpu" in [one.code for one in report.warnings]


def test_a_tiny_time_budget_still_ends_with_an_answer(tmp_path: Path) -> None:
    report, _ = run(tmp_path, servers(), time_budget_s=0.001, trials=50, replicates=None)
    assert report.winner is not None
    assert sum(1 for trial in report.trials if trial.arm is None) == clock.LEAST_TRIALS
    assert {len(arm.replicates) for arm in report.arms if arm.outcome == "measurement"} == {3}
    assert report.confirmation is not None
    assert report.confirmation.ended == "time"


def test_everything_in_the_study_is_plain_json(tmp_path: Path) -> None:
    with workflow.opened(planned.plan(tmp_path)) as (plan, journal):
        assert json.loads(json.dumps(journal.noted("identity"))) == plan.identity()
