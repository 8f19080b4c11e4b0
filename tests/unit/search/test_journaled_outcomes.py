"""Whatever a replicate ends as stands in the journal as it was, and only a measurement has a score."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import optuna
import pytest
import simulated

from hottune.outcomes import (
    Crashed,
    Garbage,
    NextTokens,
    NotEngaged,
    Outcome,
    OutOfMemory,
    Rejected,
    TimedOut,
    Timeline,
    too_large,
)
from hottune.search.journal import CONFIRM, Journal
from hottune.search.objective import Objective
from hottune.search.storage import sqlite_url

LOG = ["the server's", "last lines"]
FAILED: list[Outcome] = [
    OutOfMemory(stage="first_batch", detail="no room", log_tail=LOG),
    TimedOut(stage="request", limit_s=1.0, detail="silent", log_tail=LOG),
    Crashed(exit_code=-11, detail="gone", log_tail=LOG),
    Garbage(detail="the logits are not finite", log_tail=LOG),
    NotEngaged(detail="no slots", log_tail=LOG),
    Rejected(detail="over the ceiling", vram_peak_mib=900.0, log_tail=LOG),
    Rejected(rule="heat", detail="too hot", log_tail=LOG),
]


def journaled(folder: Path, outcome: Outcome) -> tuple[Outcome, optuna.trial.FrozenTrial]:
    url = sqlite_url(folder / "study.db")
    journal = Journal("one", url, Objective.TURN)
    journal.try_replicate("key", 0, "hot", simulated.base(), lambda placement: outcome)
    ((_, replicate),) = Journal("one", url, Objective.TURN).replicates("key").values()
    (frozen,) = optuna.load_study(study_name=f"one{CONFIRM}", storage=url).trials
    return replicate.outcome, frozen


@pytest.mark.parametrize("outcome", FAILED, ids=lambda one: f"{one.kind}-{getattr(one, 'rule', '')}")
def test_a_failure_is_kept_with_its_log_and_without_a_score(tmp_path: Path, outcome: Outcome) -> None:
    kept, frozen = journaled(tmp_path, outcome)
    assert kept == outcome
    assert kept.log_tail == LOG  # type: ignore[union-attr]
    assert (frozen.state, frozen.value) == (optuna.trial.TrialState.FAIL, None)


def test_a_scored_measurement_keeps_its_next_tokens(tmp_path: Path) -> None:
    tokens = NextTokens(text="lighthouses", prefix_tokens=64, ids=[[5, 9]], logprobs=[[-0.1, -2.5]])
    kept, frozen = journaled(tmp_path, simulated.measurement(2.0).model_copy(update={"next_tokens": tokens}))
    assert kept.next_tokens == tokens  # type: ignore[union-attr]
    assert frozen.value == 2.0


def test_what_a_study_stored_before_there_was_a_timeline_is_read(tmp_path: Path) -> None:
    measured = simulated.measurement(2.0)
    journaled(tmp_path, measured)
    old = json.loads(measured.model_dump_json())
    del old["timeline"]
    with sqlite3.connect(tmp_path / "study.db") as study:
        done = study.execute(
            "UPDATE trial_system_attributes SET value_json = ? WHERE key = 'hottune:outcome'",
            (json.dumps(json.dumps(old)),),
        )
        assert done.rowcount == 1
    ((_, replicate),) = (
        Journal("one", sqlite_url(tmp_path / "study.db"), Objective.TURN).replicates("key").values()
    )
    assert replicate.outcome == measured


def test_a_timeline_is_stored_with_its_measurement(tmp_path: Path) -> None:
    line = Timeline(at_s=[0.25, 0.5], vram_mib=[10.0, 12.5], hits=[1, 2], misses=[3, 0])
    kept, _ = journaled(tmp_path, simulated.measurement(2.0).model_copy(update={"timeline": line}))
    assert kept.timeline == line  # type: ignore[union-attr]


def test_only_memory_makes_a_smaller_placement_worth_a_try() -> None:
    assert [one.kind for one in FAILED if too_large(one)] == ["out_of_memory", "rejected"]
