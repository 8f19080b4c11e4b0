"""Whatever a replicate ends as stands in the journal as it was, and only a measurement has a score."""

from __future__ import annotations

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


def test_only_memory_makes_a_smaller_placement_worth_a_try() -> None:
    assert [one.kind for one in FAILED if too_large(one)] == ["out_of_memory", "rejected"]
