"""The report of a study from its storage alone: finished, cut short, or begun by another hottune."""

from __future__ import annotations

import shutil
from pathlib import Path

import planned
import pytest
import test_workflow as flow

from hottune import workflow
from hottune.errors import BadResultError, NothingMeasuredError
from hottune.outcomes import Crashed, Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report import Format, load, render
from hottune.report.schema import Report
from hottune.search.catalogue import reopen
from hottune.search.journal import Journal
from hottune.search.recorder import Measure
from hottune.search.storage import sqlite_url
from hottune.tasks.prepare import Plan
from hottune.tasks.show import Meter
from hottune.tasks.stored import basis_of, report_of

idle_machine = flow.idle_machine


def stored(folder: Path) -> Journal:
    """Open the study as another machine would that was given its file alone."""
    (file,) = (folder / "studies").glob("*.db")
    alone = folder / "elsewhere"
    alone.mkdir(exist_ok=True)
    for part in file.parent.glob(f"{file.name}*"):  # with its write-ahead log
        shutil.copy(part, alone)
    return reopen(file.stem, [sqlite_url(alone / file.name)])


def again(folder: Path) -> Report:
    journal = stored(folder)
    return report_of(journal, basis_of(journal))


def run_until(folder: Path, servers: int, **changes: object) -> None:
    """Run a study and stop it like Ctrl-C after so many servers."""

    def measuring(plan: Plan, meter: Meter) -> Measure:
        measure, count = flow.servers()(plan, meter), 0

        def stopping(placement: Placement) -> Outcome:
            nonlocal count
            count += 1
            if count > servers:
                raise KeyboardInterrupt
            return measure(placement)

        return stopping

    with pytest.raises(KeyboardInterrupt):
        workflow.run_plan(planned.plan(folder, **changes), NoProgress(), measuring)


@pytest.mark.parametrize(
    "changes", [{}, {"objective": "pareto"}, {"replicates": None}, {"min_prefill_tok_s": 1e6}]
)
def test_a_finished_study_says_what_its_result_file_says(tmp_path: Path, changes: dict[str, object]) -> None:
    flow.run(tmp_path, flow.servers(), **changes)
    (result,) = (tmp_path / "reports").glob("*.json")
    assert render(again(tmp_path), Format.JSON) == result.read_text(encoding="utf-8")
    assert load(result).winner is not None


def test_a_stage_that_the_time_ended_is_not_an_interrupted_one(tmp_path: Path) -> None:
    report, _ = flow.run(tmp_path, flow.servers(), replicates=None, time_budget_s=1e-9)
    assert report.confirmation is not None
    assert report.confirmation.ended == "time"
    assert again(tmp_path) == report


def test_cut_in_the_search_it_shows_what_is_known_and_recommends_nothing(tmp_path: Path) -> None:
    run_until(tmp_path, 6)
    report = again(tmp_path)
    assert report.winner is None
    assert report.confirmation is None
    assert len(report.trials) == 6
    rows = {arm.name: arm for arm in report.arms}
    assert rows["layers"].outcome == "not_confirmed"
    assert "in the search, decode" in rows["layers"].detail
    assert rows["fit"].outcome == "not_engaged"
    for form in Format:
        if not form.is_binary:
            render(report, form)
    text = render(report, Format.MARKDOWN)
    assert "**Not finished.** This study is not finished: 6 trials are known, no servers" in text
    assert "Serve it" not in text
    assert f"hottune studies resume {report.study}" in text.replace("\\", "")


def test_cut_in_the_confirm_stage_it_has_the_replicates_that_there_are(tmp_path: Path) -> None:
    flow.run(tmp_path / "whole", flow.servers())
    n_search = len(again(tmp_path / "whole").trials)
    run_until(tmp_path / "cut", n_search + 5)
    report = again(tmp_path / "cut")
    assert report.confirmation is not None
    assert (report.confirmation.ended, report.confirmation.rounds) == ("interrupted", 2)
    assert sum(len(arm.replicates) for arm in report.arms) == 5
    assert report.winner is None, "two rounds of three decide nothing"
    assert any(arm.outcome == "measurement" and arm.turn_s for arm in report.arms)
    assert "then it was interrupted" in render(report, Format.MARKDOWN_LONG)
    # The same study, gone on with, is finished.
    workflow.run_plan(planned.plan(tmp_path / "cut"), NoProgress(), flow.servers())
    assert again(tmp_path / "cut").winner is not None


def test_cut_in_the_baselines_it_has_what_there_is(tmp_path: Path) -> None:
    run_until(tmp_path, 1)
    report = again(tmp_path)
    assert [(arm.name, arm.outcome) for arm in report.arms] == [("all-cpu", "not_confirmed")]


def test_a_study_that_measured_nothing_says_so(tmp_path: Path) -> None:
    run_until(tmp_path, 0)
    with pytest.raises(NothingMeasuredError):
        again(tmp_path)

    def crashing(plan: Plan, meter: Meter) -> Measure:
        return lambda placement: Crashed(exit_code=1, detail="boom")

    with pytest.raises(NothingMeasuredError):
        flow.run(tmp_path / "b", crashing)
    with pytest.raises(NothingMeasuredError, match="boom"):
        again(tmp_path / "b")


def test_a_study_of_before_says_how_to_mend_it(tmp_path: Path) -> None:
    flow.run(tmp_path, flow.servers())
    journal = stored(tmp_path)
    journal.note("basis", None)
    with pytest.raises(BadResultError, match="studies resume") as caught:
        basis_of(journal)
    assert caught.value.exit_code == 60
    journal.note("basis", {"study": "x"})
    with pytest.raises(BadResultError, match="Another version of hottune"):
        basis_of(journal)


def test_a_password_of_the_storage_is_not_kept(tmp_path: Path) -> None:
    plan = planned.plan(tmp_path, storage=f"sqlite:///{tmp_path}/own.db", worker="w")
    workflow.run_plan(plan, NoProgress(), flow.servers())
    journal = reopen(plan.name, [f"sqlite:///{tmp_path}/own.db"])
    assert journal.noted("basis")["config"]["storage"] is None
