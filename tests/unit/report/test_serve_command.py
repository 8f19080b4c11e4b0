"""`hottune serve` up to the moment when a server would start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report_builder as build
from typer.testing import CliRunner

from hottune.cli.app import app
from hottune.report import save
from hottune.report.schema import Report
from hottune.tasks import served


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path / "cache"))
    save(build.report(), tmp_path / "reports")
    return tmp_path


def error_of(*arguments: str) -> dict[str, object]:
    ended = CliRunner().invoke(app, ["serve", *arguments, "--json"])
    error: dict[str, object] = json.loads(ended.stdout)["error"]
    assert ended.exit_code == error["exit_code"]
    return error


def test_a_model_that_is_not_there_ends_it_with_10_and_the_way_out() -> None:
    error = error_of("big-5gib")
    assert error["exit_code"] == 10
    assert "--model FILE" in str(error["next_step"])


def test_an_arm_that_is_not_there_ends_it_with_42_and_names_those_that_are() -> None:
    error = error_of("reports/big-5gib.json", "--arm", "hot-3")
    assert error["exit_code"] == 42
    assert "all-cpu, layers" in str(error["next_step"])


def test_a_study_that_is_nowhere_ends_it_with_51() -> None:
    assert error_of("no-such-study")["exit_code"] == 51


def test_the_winner_is_served_unless_another_arm_is_named() -> None:
    report: Report = build.report()
    assert report.winner is not None
    winner, layers = served.of_report(report, None), served.of_report(report, "layers")
    assert (winner.arm, winner.placement.hot_k) == (report.winner.arm, 22)
    assert (layers.arm, layers.placement.hot_k) == ("layers", 0)
    assert winner.usable_mib == report.ceiling_mib - report.keep_free_mib


def test_the_gpu_of_a_report_is_the_one_that_its_server_saw() -> None:
    report: Report = build.report()
    two = [card.model_copy(update={"index": index}) for card in report.machine.gpus[:1] for index in (0, 1)]
    arms = [arm.model_copy(update={"env": arm.env | {"CUDA_VISIBLE_DEVICES": "1"}}) for arm in report.arms]
    machine = report.machine.model_copy(update={"gpus": tuple(two)})
    found = served.of_report(report.model_copy(update={"machine": machine, "arms": arms}), None)
    assert found.gpu == two[1]
