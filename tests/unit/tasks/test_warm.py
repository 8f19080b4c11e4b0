"""A study begins where earlier studies of the same model or machine found the best, or where a trace says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest

from hottune import workflow
from hottune.errors import BadSettingError, BadTraceError
from hottune.outcomes import Outcome
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.report import load
from hottune.report.schema import Report
from hottune.routing.replay import Routing
from hottune.routing.trace_writer import TraceWriter
from hottune.search.journal import Journal
from hottune.search.objective import Objective
from hottune.tasks import prepare, surroundings
from hottune.tasks.earlier import hints_of_earlier, layer_share
from hottune.tasks.prepare import Plan
from hottune.tasks.traced import first_tokens, hints_of
from hottune.tasks.warm import noted_hints


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings.psutil, "cpu_percent", lambda interval: 0.0)


class Told(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def measure(placement: Placement) -> Outcome:
    """Caches win; window wins among them."""
    turn_s = 1.0 - 0.2 * (placement.hot_k > 0) - 0.1 * (placement.hot_k > 0 and placement.policy == "window")
    return planned.measured(placement, turn_s)


def plan_of(folder: Path, *, fingerprint: str = "f" * 64, cores: int = 4, **changes: Any) -> Plan:
    machine = planned.machine()
    machine = machine.model_copy(update={"cpu": machine.cpu.model_copy(update={"physical_cores": cores})})
    model = planned.model().model_copy(update={"fingerprint": fingerprint})
    return prepare.plan(planned.config(folder, **changes), planned.engine(), model, machine)


def run(plan: Plan, ui: NoProgress | None = None) -> Report:
    return workflow.run_plan(plan, ui or NoProgress(), lambda plan, meter: measure)


def searched(report: Report) -> list[Placement]:
    return [trial.placement for trial in report.trials if trial.arm is None]


def test_a_new_ceiling_begins_with_the_best_cache_of_the_earlier_study(tmp_path: Path) -> None:
    run(plan_of(tmp_path, trials=30, study="first"))
    told = Told()
    report = run(plan_of(tmp_path, trials=1, vram_mib=100, study="second"), told)
    assert searched(report)[0].policy == "window"
    assert len(report.began_with) == 1
    assert report.began_with[0].startswith("study first (")
    assert f"The search begins with {report.began_with[0]}." in told.lines
    assert load(tmp_path / "reports" / "second.json").began_with == report.began_with


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    run(plan_of(tmp_path, trials=30, study="first"))
    report = run(plan_of(tmp_path, trials=1, vram_mib=100, study="second", warm_start=False))
    assert searched(report)[0].policy == "lfru"
    assert report.began_with == []


def test_a_study_that_goes_on_keeps_the_beginning_it_had(tmp_path: Path) -> None:
    cold = run(plan_of(tmp_path, trials=1, study="second"))
    run(plan_of(tmp_path, trials=30, vram_mib=100, study="first"))
    again = run(plan_of(tmp_path, trials=2, study="second"))
    assert again.began_with == []
    assert searched(again)[0] == searched(cold)[0]
    third = run(plan_of(tmp_path, trials=1, vram_mib=90, study="third"))
    assert third.began_with
    for file in (tmp_path / "studies").glob("first.*"):
        file.unlink()
    assert run(plan_of(tmp_path, trials=2, vram_mib=90, study="third")).began_with == third.began_with


def test_another_machine_says_nothing_and_another_model_only_threads(tmp_path: Path) -> None:
    run(plan_of(tmp_path, trials=30, study="first", threads=3))
    assert hints_of_earlier(plan_of(tmp_path, cores=8, study="other")).origin == ()
    hints = hints_of_earlier(plan_of(tmp_path, fingerprint="e" * 64, study="other"))
    assert hints.model_dump(exclude_none=True, exclude={"origin", "curve"}) == {"threads": 3}
    assert "another model" in hints.origin[0]


def test_the_study_with_most_in_common_counts(tmp_path: Path) -> None:
    for name, changes in (
        ("far", {"vram_mib": 140}),
        ("near", {"vram_mib": 105}),
        ("code", {"vram_mib": 100, "workload": "code"}),
    ):
        run(plan_of(tmp_path, trials=1, replicates=1, study=name, warm_start=False, **changes))
    hints = hints_of_earlier(plan_of(tmp_path, vram_mib=100, study="new"))
    assert hints.origin[0].startswith("study near ")
    assert hints.ubatch == 64
    other_work = hints_of_earlier(plan_of(tmp_path, vram_mib=100, study="new", workload="document"))
    assert other_work.origin[0].startswith("study code ")
    assert other_work.ubatch is None, "how long prompts are decides about ubatch"


def test_a_file_that_is_no_study_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "broken.db").write_bytes(b"no database at all" * 100)
    assert hints_of_earlier(plan_of(tmp_path)).origin == ()


def test_the_share_of_layers_is_by_bytes() -> None:
    placement = Placement(n_cpu_moe=8, hot_k=4, threads=1)
    assert layer_share(planned.SHAPE, placement) == 0.0
    half = placement.model_copy(update={"n_cpu_moe": 6, "hot_k": 4})  # 2 x 16 MiB whole, 6 x 4 MiB cached
    assert layer_share(planned.SHAPE, half) == pytest.approx(32 / 56, abs=1e-3)
    assert layer_share(planned.SHAPE, placement.model_copy(update={"hot_k": 0})) == 0.0


# --- traces ---


def write_trace(path: Path, *, n_experts: int = 16, n_layers: int = 8, n_tokens: int = 600) -> Path:
    """Two experts a token; for long stretches the same few, as in text that keeps to one matter."""
    rng = np.random.default_rng(3)
    ids = np.zeros((n_tokens, n_layers, 2), dtype=np.int64)
    for begin in range(0, n_tokens, 100):
        few = rng.permutation(n_experts)[:5]
        for token in range(begin, min(begin + 100, n_tokens)):
            for layer in range(n_layers):
                ids[token, layer] = rng.permutation(few)[:2]
    with TraceWriter(path) as out:
        out.decode([f"blk.{layer}.ffn_up_exps.weight" for layer in range(n_layers)], n_experts, ids)
    return path


def test_a_trace_recommends_a_policy_and_gives_the_curve(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.hottrace")
    hints = hints_of(
        trace, planned.SHAPE, slots=6, bypass=1, cache_dir=tmp_path / "cache", progress=NoProgress()
    )
    assert hints.policy in ("lfru", "lru", "window")
    curve = hints.hit_curve()
    assert curve is not None
    assert curve(0) == 0
    assert curve(1) == 1
    assert curve(6 / 16) > 0.7, "five experts of a stretch fit into six places"
    assert curve(1 / 16) < curve(6 / 16)
    assert "600 tokens replayed" in hints.origin[0]
    assert "with hot_k 6" in hints.origin[0]


def test_the_trace_is_kept_in_the_study_and_told(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.hottrace")
    report = run(plan_of(tmp_path, trials=1, trace=trace, study="traced"))
    assert report.began_with[0].startswith("trace t.hottrace")
    trace.unlink()
    journal = Journal("traced", f"sqlite:///{tmp_path}/studies/traced.db", Objective.TURN, settle=False)
    plan = plan_of(tmp_path, trace=trace, study="traced")
    assert noted_hints(plan, journal, NoProgress()).curve, "the file is not needed again"


def test_a_trace_of_another_model_is_refused(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.hottrace", n_experts=32)
    with pytest.raises(BadSettingError, match="32 experts, the model has none"):
        run(plan_of(tmp_path, trials=1, trace=trace))
    deeper = write_trace(tmp_path / "u.hottrace", n_layers=9)
    with pytest.raises(BadSettingError, match=r"blk\.8\."):
        run(plan_of(tmp_path / "u", trials=1, trace=deeper))


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.hottrace").write_text("not a trace")
    with pytest.raises(BadTraceError):
        run(plan_of(tmp_path, trials=1, trace=tmp_path / "t.hottrace"))
    with pytest.raises(BadTraceError, match="cannot be read"):
        run(plan_of(tmp_path, trials=1, trace=tmp_path / "missing.hottrace"))


def test_a_long_trace_is_cut_at_the_beginning_of_a_token(tmp_path: Path) -> None:
    whole = Routing.from_choices(np.tile(np.arange(6).reshape(1, 3, 2), (50, 1, 1)), 6)
    cut = first_tokens(whole, 20, bypass=1)
    assert len(cut.blocks) == 20 * 3
    assert len(cut.experts) == 20 * 3 * 2
    assert first_tokens(whole, 50, bypass=1) is whole
    prompts = replace(whole, blocks=np.array([[0, 50, 2], [1, 50, 2], [2, 50, 2]], dtype=np.int32))
    assert first_tokens(prompts, 20, bypass=1) is prompts, "prompts pass the cache by and are not counted"
