"""A whole benchmark with a bench that answers at once: order, ceilings, time, going on with a result."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from device_rows import BASE_MIB, FakeBench, answer, measured, options, setting

from bench.device.sitting import Pace, Sitting
from hottune.errors import BadSettingError
from hottune.outcomes import Crashed, Outcome
from hottune.placement import Placement
from hottune.report import load
from hottune.report.schema import Arm, Report


def sit(bench: FakeBench, folder: Path, *arguments: str, budget_s: float | None = None) -> Report:
    chosen = options(folder, *arguments)
    return Sitting(setting(chosen, bench), Pace(budget_s), lambda line: None).run()


def row(report: Report, name: str, percent: float | None, ubatch: int = 2048) -> Arm:
    for arm in report.arms:
        assert arm.cell is not None
        if (arm.name, arm.cell.ceiling_percent, arm.placement.ubatch) == (name, percent, ubatch):
            return arm
    raise AssertionError(f"no row {name} {percent} {ubatch}")


def test_every_server_runs_under_the_ceiling_of_its_cell(tmp_path: Path) -> None:
    bench = FakeBench()
    report = sit(bench, tmp_path)
    ceilings = [ceiling for placement, ceiling in bench.asked if placement.hot_k]
    assert set(ceilings) == {BASE_MIB + 250, BASE_MIB + 500}
    assert all(arm.outcome == "measurement" for arm in report.arms)
    assert len(report.arms) == len(bench.asked) == 14
    assert load(tmp_path / "out.json").arms == report.arms
    assert (tmp_path / "out.md").read_text().count("| 25 % | hot |") == 2


def test_a_row_is_compared_with_the_fastest_static_one_of_its_ceiling(tmp_path: Path) -> None:
    hot = row(sit(FakeBench(), tmp_path), "hot", 25, 512).cell
    assert hot is not None
    assert hot.decode is not None
    assert (hot.decode.arm, hot.decode.change.ratio) == ("layers", pytest.approx(30 / 22))
    assert hot.prefill is not None
    assert (hot.prefill.ubatch, hot.prefill.change.ratio) == (2048, pytest.approx(2000 / 3048))
    assert hot.prefill_same_ubatch is not None
    assert (hot.prefill_same_ubatch.ubatch, hot.prefill_same_ubatch.change.ratio) == (
        512,
        pytest.approx(2000 / 1512),
    )


def test_rounds_are_pairs_of_fresh_servers(tmp_path: Path) -> None:
    bench = FakeBench()
    report = sit(bench, tmp_path, "--rounds", "2")
    asked = [placement for placement, _ in bench.asked]
    assert asked[14:] == asked[:14][::-1]
    assert all(len(arm.replicates) == 2 for arm in report.arms)


def test_a_cell_that_failed_is_not_tried_in_the_next_round(tmp_path: Path) -> None:
    def crashing(placement: Placement) -> Outcome:
        return Crashed(exit_code=1, detail="it broke") if placement.fit else answer(placement)

    bench = FakeBench(crashing)
    report = sit(bench, tmp_path, "--rounds", "2")
    fit = row(report, "fit", 25)
    assert (fit.outcome, fit.detail, len(fit.replicates)) == ("crashed", "it broke", 1)
    assert "it broke" in (tmp_path / "out.md").read_text()


def test_a_cache_that_broke_its_ceiling_is_tried_with_fewer_slots(tmp_path: Path) -> None:
    def heavier(placement: Placement) -> Outcome:
        found = answer(placement)
        if placement.hot_k == 0 or not hasattr(found, "vram_peak_mib"):
            return found
        return found.model_copy(update={"vram_peak_mib": found.vram_peak_mib + 60})

    report = sit(FakeBench(heavier), tmp_path, "--stream", "0")
    hot = row(report, "hot", 25)
    assert hot.outcome == "measurement"
    assert hot.placement.hot_k == 19
    assert any(trial.arm == "hot" and trial.outcome.kind == "rejected" for trial in report.trials)
    assert row(report, "hot", 50).placement.hot_k == 44, "learnt from the first"


def test_without_all_cpu_there_is_no_ceiling(tmp_path: Path) -> None:
    bench = FakeBench(lambda placement: Crashed(exit_code=1, detail="no"))
    report = sit(bench, tmp_path)
    assert len(bench.asked) == 2
    assert "no ceiling" in row(report, "hot", 25).detail


def test_nothing_begins_that_could_end_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def slow(placement: Placement) -> Outcome:
        now[0] += 10
        return answer(placement)

    bench = FakeBench(slow)
    report = sit(bench, tmp_path, budget_s=35)
    assert len(report.arms) == len(bench.asked) == 3, "a fourth may take 11.5 s"
    again = FakeBench(answer)
    full = sit(again, tmp_path, "--add", str(tmp_path / "out.json"))
    assert len(again.asked) == 11
    assert len(full.arms) == 14


def test_going_on_keeps_what_was_measured_and_tries_again_what_was_not(tmp_path: Path) -> None:
    def crashing(placement: Placement) -> Outcome:
        return Crashed(exit_code=1, detail="it broke") if placement.fit else answer(placement)

    before = sit(FakeBench(crashing), tmp_path)
    bench = FakeBench()
    after = sit(bench, tmp_path, "--add", str(tmp_path / "out.json"))
    assert [placement.fit for placement, _ in bench.asked] == [True, True]
    assert row(after, "hot", 25).replicates == row(before, "hot", 25).replicates
    assert [arm.name for arm in after.arms] == [arm.name for arm in before.arms]


def test_a_result_with_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    sit(FakeBench(), tmp_path)
    with pytest.raises(BadSettingError, match="policy of hot"):
        sit(FakeBench(), tmp_path, "--policy", "lru", "--add", str(tmp_path / "out.json"))


def test_with_reuse_servers_start_under_the_largest_ceiling_and_each_cell_keeps_its_own(
    tmp_path: Path,
) -> None:
    def marked(placement: Placement) -> Outcome:
        found = answer(placement)
        return found.model_copy(update={"reused_server": placement.hot_k > 20})

    bench = FakeBench(marked)
    report = sit(bench, tmp_path, "--reuse")
    pure = [ceiling for placement, ceiling in bench.asked if placement.hot_k and placement.n_cpu_moe == 10]
    assert pure == [BASE_MIB + 500] * 4
    assert bench.kept == 2
    hot = row(report, "hot", 25)
    assert hot.cell is not None
    assert hot.cell.ceiling_mib == BASE_MIB + 250
    assert "no replicate" in (tmp_path / "out.md").read_text()


def too_large(placement: Placement) -> Outcome:
    return measured(30, vram=BASE_MIB + 400) if placement.hot_k else answer(placement)


@pytest.mark.parametrize("answering", [too_large])
def test_with_reuse_a_small_cache_may_not_use_the_large_ones_room(
    tmp_path: Path, answering: Callable[[Placement], Outcome]
) -> None:
    report = sit(FakeBench(answering), tmp_path, "--reuse", "--arms", "hot")
    assert row(report, "hot", 25).outcome == "rejected"
    assert row(report, "hot", 50).outcome == "measurement"


def test_how_long_servers_took_is_known_from_the_earlier_sitting(tmp_path: Path) -> None:
    sit(FakeBench(), tmp_path, "--arms", "layers")
    bench = FakeBench()
    sit(bench, tmp_path, "--arms", "layers,hot", "--add", str(tmp_path / "out.json"), budget_s=12)
    assert bench.asked == [], "10 s to load, 1 s a request, and the end"


def test_rows_stand_by_ceiling_whichever_sitting_they_are_of(tmp_path: Path) -> None:
    sit(FakeBench(), tmp_path, "--ceilings", "50", "--threads", "16,8")
    both = sit(
        FakeBench(), tmp_path, "--ceilings", "35", "--threads", "16", "--add", str(tmp_path / "out.json")
    )
    rows = [(arm.placement.threads, arm.cell.ceiling_percent) for arm in both.arms if arm.cell]
    assert [rank for rank, _ in groupby(rows)] == [(16, None), (16, 35), (16, 50), (8, 50)]
