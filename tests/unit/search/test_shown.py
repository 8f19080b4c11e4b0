"""What dashboards show of a study, and that studies of before it are read like any other."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from simulated import CEILING_MIB, SimulatedMachine, base, measurement, need_mib, shape

from hottune.outcomes import Crashed, Outcome, OutOfMemory
from hottune.placement import Placement
from hottune.search import catalogue, dashboard
from hottune.search import journal as journal_room
from hottune.search.attributes import facts
from hottune.search.draw import Seen
from hottune.search.entries import Planned
from hottune.search.journal import Journal
from hottune.search.objective import NO_LIMITS, Limits, Objective
from hottune.search.space import Space, plan
from hottune.search.storage import open_storage, sqlite_url
from hottune.search.study import Budget, Study


def space() -> Space:
    return plan(shape(), base(), CEILING_MIB, ubatches=(512,), bypasses=(1,), need_mib=need_mib)


def journal(folder: Path, objective: Objective = Objective.TURN, limits: Limits = NO_LIMITS) -> Journal:
    return Journal("t", sqlite_url(folder / "t.db"), objective, limits=limits, worker="me")


def raw(folder: Path, name: str = "t") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=sqlite_url(folder / "t.db"))


def ended(folder: Path, outcome: Outcome, limits: Limits = NO_LIMITS) -> FrozenTrial:
    all_cpu = Planned(space().all_cpu(512), "baseline", "all-cpu")
    journal(folder, limits=limits).try_placement(all_cpu, space(), lambda placement: outcome)
    (trial,) = raw(folder).get_trials()
    return trial


def note_of(folder: Path, trial: FrozenTrial | None = None) -> str:
    """Read it as optuna-dashboard does."""
    study = raw(folder)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    start = "dashboard:" if trial is None else f"dashboard:{trial._trial_id}:"
    return attributes[start + "note_str:0"] if attributes.get(start + "note_ver") else ""


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        (Objective.TURN, ["turn_s"]),
        (Objective.DECODE, ["decode_tok_s"]),
        (Objective.PREFILL, ["prefill_tok_s"]),
        (Objective.PARETO, ["prefill_tok_s", "decode_tok_s"]),
    ],
)
def test_values_have_names_with_units_in_search_and_confirm(
    tmp_path: Path, objective: Objective, names: list[str]
) -> None:
    journal(tmp_path, objective)
    assert raw(tmp_path).metric_names == names
    assert raw(tmp_path, "t/confirm").metric_names == names
    assert objective.values(measurement(2.0)) == [getattr(measurement(2.0), name) for name in names]


def test_a_measurement_is_shown_in_numbers_and_short_words_alone(tmp_path: Path) -> None:
    trial = ended(tmp_path, measurement(2.0))
    shown = dict(trial.user_attrs)
    assert shown.pop("seconds") >= 0
    assert shown == {
        "arm": "all-cpu",
        "label": "ncmoe 12 ub 512 t 2",
        "origin": "baseline",
        "worker": "me",
        "n_cpu_moe": 12,
        "hot_k": 0,
        "ubatch": 512,
        "threads": 2,
        "result": "measured",
        "turn_s": round(measurement(2.0).turn_s, 3),
        "decode_tok_s": 25.0,
        "prefill_tok_s": 500.0,
        "ttft_ms": 210.0,
        "vram_peak_mib": 100.0,
    }
    assert trial.state is TrialState.COMPLETE
    assert note_of(tmp_path, trial) == ""


def test_a_failed_trial_says_why_and_its_note_has_the_end_of_the_log(tmp_path: Path) -> None:
    log = ["loading", "ggml: failed to allocate 12 MiB"]
    trial = ended(tmp_path, OutOfMemory(stage="load", detail="12 MiB too much", log_tail=log))
    assert trial.state is TrialState.FAIL
    assert trial.user_attrs["result"] == "out of memory: 12 MiB too much"
    note = note_of(tmp_path, trial)
    assert note.startswith("**Out of memory** (stage: load): 12 MiB too much")
    assert note.endswith("```text\nloading\nggml: failed to allocate 12 MiB\n```")


def test_a_long_log_leaves_its_end_in_the_note() -> None:
    log = [f"line {number} " + "x" * 100 for number in range(60)]
    note = dashboard.failure_note(Crashed(exit_code=-6, detail="abort", log_tail=log))
    assert len(note) <= dashboard.NOTE_LENGTH
    assert note.startswith("**Crashed** (exit status -6): abort")
    assert log[-1] in note and log[0] not in note
    wide = dashboard.failure_note(Crashed(exit_code=1, detail="d", log_tail=["z" * 300]))
    assert max(map(len, wide.splitlines())) == dashboard.LOG_WIDTH
    long = dashboard.failure_note(Crashed(exit_code=1, detail="y" * 5000, log_tail=log))
    assert len(long) == dashboard.NOTE_LENGTH


def test_a_note_that_a_user_wrote_stays(tmp_path: Path) -> None:
    book = journal(tmp_path)
    book._storage.set_study_system_attr(book._study, "dashboard:note_ver", 1)
    book._storage.set_study_system_attr(book._study, "dashboard:note_str:0", "mine")
    book.describe({"model": "demo"}, "ours", "replicates")
    assert note_of(tmp_path) == "mine"
    assert raw(tmp_path).user_attrs == {"model": "demo"}


def test_a_broken_limit_is_a_constraint_so_that_it_is_not_shown_as_best(tmp_path: Path) -> None:
    trial = ended(tmp_path, measurement(2.0), Limits(min_prefill_tok_s=1000.0))
    assert trial.state is TrialState.COMPLETE
    assert trial.system_attrs["constraints"] == [0.5]


def test_an_interrupted_trial_and_one_whose_process_was_killed_say_so(tmp_path: Path) -> None:
    book = journal(tmp_path)
    all_cpu = Planned(space().all_cpu(512), "baseline", "all-cpu")
    with pytest.raises(KeyboardInterrupt):
        book.try_placement(all_cpu, space(), SimulatedMachine(dies_at=1))
    assert book._search.take({"placement": "P", "arm": None, "started": "now"}) is not None
    journal(tmp_path)  # the next process
    first, second = raw(tmp_path).get_trials()
    assert "interrupted" in first.user_attrs["result"]
    assert "killed" in second.user_attrs["result"]
    assert {first.state, second.state} == {TrialState.FAIL}


def test_baselines_have_the_parameter_that_they_share_and_the_sampler_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Study(journal(tmp_path), space(), SimulatedMachine())
    one.baselines()
    trials = raw(tmp_path).get_trials()
    params = {trial.user_attrs["arm"]: trial.params for trial in trials}
    assert params["all-cpu"] == {"n_cpu_moe": 12}
    assert params["fit"] == {}
    seen: list[list[Seen]] = []
    monkeypatch.setattr(journal_room, "draw", lambda space, known, *rest, **more: seen.append(known))
    one.journal.try_sample(space(), SimulatedMachine())
    assert [dict(each.params) for each in seen[0]] == [{}] * len(trials)


# --- studies of before ---


def as_before(folder: Path) -> Path:
    """Copy a study as it was stored when all facts were user attributes."""
    (folder / "before").mkdir()
    old = open_storage(sqlite_url(folder / "before" / "t.db"))
    new = open_storage(sqlite_url(folder / "t.db"))
    for study in new.get_all_studies():
        number = old.create_new_study(study.directions, study.study_name)
        for key, value in facts(study).items():
            old.set_study_user_attr(number, key, value)
        for trial in new.get_all_trials(study._study_id):
            known = {
                key: value
                for key, value in facts(trial).items()
                if key in ("placement", "outcome", "origin", "arm", "repeat", "started", "seconds", "worker")
                or key in ("plan", "position")
            }
            copied = optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=known,
            )
            old.create_new_trial(number, copied)
    return folder / "before"


def test_a_study_of_before_is_read_listed_and_goes_on(tmp_path: Path) -> None:
    book = journal(tmp_path)
    for key, value in {
        "model": {"name": "demo"},
        "ceiling_mib": 260.0,
        "config": {"objective": "turn"},
    }.items():
        book.note(key, value)
    book.note("identity", {"a": 1})
    one = Study(book, space(), SimulatedMachine())
    one.baselines()
    one.search(Budget(trials=6))
    all_cpu = space().all_cpu(512)
    book.try_replicate("key", 0, "all-cpu", all_cpu, lambda placement: measurement(3.0))

    folder = as_before(tmp_path)
    assert json.loads(raw(folder).user_attrs["identity"]) == {"a": 1}
    again = journal(folder)
    assert again.trials() == book.trials()
    assert again.replicates("key") == book.replicates("key")
    assert again.noted("config") == {"objective": "turn"}
    assert again.seconds() == book.seconds()
    (listed,) = catalogue.summaries([again.url])
    assert (listed.name, listed.trials, listed.replicates) == ("t", len(book.trials()), 1)

    def never(placement: Placement) -> Outcome:
        raise AssertionError(f"measured again: {placement.label()}")

    measured = Study(again, space(), never)
    measured.baselines()
    measured.search(Budget(trials=6))
    more = SimulatedMachine()
    Study(again, space(), more).search(Budget(trials=7))
    assert len(more.asked) == 1
    assert len(again.trials()) == len(book.trials()) + 1


def test_a_study_with_two_objectives_is_listed(tmp_path: Path) -> None:
    book = journal(tmp_path, Objective.PARETO)
    for key, value in {
        "model": {"name": "demo"},
        "ceiling_mib": 260.0,
        "config": {"objective": "pareto"},
    }.items():
        book.note(key, value)
    book.note("identity", {})
    Study(book, space(), SimulatedMachine()).baselines()
    (listed,) = catalogue.summaries([book.url])
    assert listed.measured >= 2
