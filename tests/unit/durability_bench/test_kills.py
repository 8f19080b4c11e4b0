"""kill -9 at random moments, in small: `make bench-durability` does it 200 times."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from bench.durability.lives import faults_of, first_difference, kill_studies, live, result


def test_ten_kills_lose_nothing_and_change_no_result(tmp_path: Path) -> None:
    tally = kill_studies(tmp_path, 10, seed=1, trials=12)
    assert tally.faults == []
    assert tally.kills == 10
    assert tally.studies >= 1
    assert tally.finished > 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "study"
    assert live(folder, 3, 2, None)
    return folder


def test_a_lost_measurement_would_be_found(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert faults_of(copy) == []
    with sqlite3.connect(copy / "studies" / "formula.db") as connection:
        connection.execute(
            "DELETE FROM trial_system_attributes WHERE key = 'hottune:outcome' AND trial_id = "
            "(SELECT max(trial_id) FROM trial_system_attributes WHERE key = 'hottune:outcome')"
        )
    (fault,) = faults_of(copy)
    assert "lost" in fault


def test_another_result_would_be_found(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert live(other, 4, 12, None)
    assert "is not" in first_difference(result(finished), result(other))


def test_what_may_differ_is_left_out_of_the_comparison(finished: Path) -> None:
    text = json.dumps(result(finished))
    assert '"created"' not in text
    assert '"started"' not in text
    assert '"placement"' in text


def test_a_study_that_fails_is_no_survivor(tmp_path: Path) -> None:
    (tmp_path / "study" / "studies").mkdir(parents=True)
    (tmp_path / "study" / "studies" / "formula.db").write_text("prose, not a database " * 100)
    with pytest.raises(RuntimeError, match="failed"):
        live(tmp_path / "study", 0, 2, None)
