"""A placement that breaks a limit of the study is not recommended while another keeps it."""

from __future__ import annotations

from pathlib import Path

import planned
import pytest

from hottune import workflow
from hottune.engine.facts import Backend
from hottune.outcomes import NotEngaged, Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report.schema import Report
from hottune.report.setup import setup
from hottune.tasks import prepare, surroundings
from hottune.tasks.commands import argv_and_env


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)


def measure(placement: Placement) -> Outcome:
    """The cache makes turns twice as fast, lru fastest; but with lru prompts take ten times as long."""
    if placement.fit:
        return NotEngaged(detail="fit placed nothing")
    turn_s = 1.0
    if placement.hot_k:
        turn_s = 0.4 if placement.policy == "lru" else 0.5
    prefill = 100.0 if placement.policy == "lru" else 1000.0
    return planned.measured(placement, turn_s).model_copy(update={"prefill_tok_s": prefill})


def run(folder: Path, **changes: object) -> Report:
    plan = planned.plan(folder, trials=30, confirm_top=2, **changes)
    return workflow.run_plan(plan, NoProgress(), lambda plan, meter: measure)


def winner(report: Report) -> Placement:
    assert report.winner is not None
    return next(arm.placement for arm in report.arms if arm.name == report.winner.arm)


def test_without_a_limit_the_fastest_turn_wins(tmp_path: Path) -> None:
    report = run(tmp_path)
    assert winner(report).policy == "lru"
    assert all(one.code != "limit-broken" for one in report.warnings)


def test_what_breaks_the_least_prefill_is_not_recommended_when_another_keeps_it(tmp_path: Path) -> None:
    report = run(tmp_path, min_prefill_tok_s=500)
    assert any(trial.placement.policy == "lru" for trial in report.trials), "it was tried"
    chosen = winner(report)
    assert chosen.hot_k > 0
    assert chosen.policy != "lru"
    assert (report.min_prefill_tok_s, report.keep_free_mib) == (500, 0)
    assert any("prefill of 500 tok/s or more" in value for _, value in setup(report))


def test_replicates_that_break_a_limit_lose_to_an_arm_that_keeps_it(tmp_path: Path) -> None:
    calls: dict[Placement, int] = {}

    def worse_later(placement: Placement) -> Outcome:
        """Every cache keeps the limit in the search, and breaks it when it is measured again."""
        calls[placement] = calls.get(placement, 0) + 1
        outcome = planned.measured(placement, 0.5 if placement.hot_k else 1.0)
        later = placement.hot_k > 0 and calls[placement] > 3
        return outcome.model_copy(update={"prefill_tok_s": 100.0 if later else 1000.0})

    plan = planned.plan(tmp_path, trials=3, replicates=5, confirm_top=1, min_prefill_tok_s=500)
    report = workflow.run_plan(plan, NoProgress(), lambda plan, meter: worse_later)
    assert report.winner is not None
    assert report.winner.arm in ("all-cpu", "layers", "fit")
    told = [one.text for one in report.warnings if one.code == "limit-broken"]
    assert len(told) == 1
    assert "'hot' breaks" in told[0]
    assert "prefill 100 tok/s, at least 500 asked for" in told[0]


def test_when_nothing_keeps_the_limit_the_best_is_recommended_and_told_so(tmp_path: Path) -> None:
    report = run(tmp_path, min_prefill_tok_s=5000)
    assert winner(report).hot_k > 0
    told = [one.text for one in report.warnings if one.code == "limit-broken"]
    assert told
    assert all("No arm keeps the limits" in text for text in told)


def test_fit_leaves_free_what_every_arm_must(tmp_path: Path) -> None:
    def target_mib(**changes: object) -> int:
        config = planned.config(tmp_path, vram_mib=600, **changes)
        machine = planned.machine(planned.gpu())
        plan = prepare.plan(config, planned.engine(Backend.CUDA), planned.model(), machine)
        argv, _ = argv_and_env(plan, plan.space.fit(64))
        return int(argv[argv.index("--fit-target") + 1])

    assert target_mib(keep_free_mib=30) == target_mib() + 30
