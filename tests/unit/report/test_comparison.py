"""Results compared: what is refused, what is shown to differ, and what the ratios say."""

from pathlib import Path

import pytest
import report_builder as build
from hypothesis import given, settings
from hypothesis import strategies as st

from hottune.engine.facts import Backend
from hottune.errors import NotComparableError
from hottune.outcomes import OutOfMemory
from hottune.report import load
from hottune.report.schema import Cell, Confirmation, Report
from hottune.tasks.comparable import Chosen
from hottune.tasks.comparison import METRICS, compare, letter_of
from hottune.tasks.gate import judge

REPORTS = Path(__file__).parents[3] / "reports"
SPEEDS = st.lists(st.floats(5, 500), min_size=1, max_size=5)
MIRROR = {"faster": "slower", "slower": "faster", "can't tell": "can't tell"}


def chosen(report: Report, arm: str = "hot") -> Chosen:
    return Chosen(f"{report.study}:{arm}", report, next(item for item in report.arms if item.name == arm))


def run_of(decode: list[float], study: str = "other", **changes) -> Chosen:
    """One arm whose replicates decoded so fast; its turn takes the time of 300 such tokens."""
    runs = [build.measurement(1000.0, speed, 300 / speed) for speed in decode]
    where = build.placement(**changes.pop("placement", {}))
    return chosen(build.report(study=study, arms=[build.arm("hot", where, runs)], **changes))


def settings_of(found) -> dict[str, list[str]]:
    return {row.setting: row.values for row in found.differences}


def codes(found) -> list[str]:
    return [note.code for note in found.warnings]


def test_an_arm_with_itself_cannot_be_told_apart_and_the_warning_says_why():
    found = compare([chosen(build.report()), chosen(build.report())])
    assert found.differences == []
    assert {(item.ratio, item.verdict) for item in found.against_first[0].changes.values()} == {
        (1.0, "can't tell")
    }
    assert codes(found) == ["same-measurements"]


@settings(max_examples=30)
@given(SPEEDS, SPEEDS)
def test_the_other_way_round_is_the_reciprocal(a, b):
    there = compare([run_of(a, "a"), run_of(b, "b")]).against_first[0]
    back = compare([run_of(b, "b"), run_of(a, "a")]).against_first[0]
    for metric in METRICS:
        assert there.changes[metric].ratio * back.changes[metric].ratio == pytest.approx(1)
        assert there.changes[metric].verdict == MIRROR[back.changes[metric].verdict]
    # The turn is the decoding here, as seconds: both count as speed.
    assert there.changes["turn"].ratio == pytest.approx(there.changes["decode"].ratio)


def test_arms_of_one_result_are_compared_as_its_own_report_does():
    report = load(REPORTS / "h200-17pct.json")
    found = compare([chosen(report, "fit"), chosen(report, "hot")])
    theirs = chosen(report, "hot").arm.ratios["fit"]
    assert found.against_first[0].paired
    for metric in METRICS:
        ours = found.against_first[0].changes[metric]
        assert (ours.ratio, ours.low, ours.high) == pytest.approx(
            (theirs[metric].ratio, theirs[metric].low, theirs[metric].high)
        )
    assert "unpaired" not in codes(found)


def test_servers_of_a_study_that_went_on_are_named_as_shared():
    found = compare([run_of([50, 51], "a"), run_of([50, 51, 52], "a", seconds=99.0)])
    assert codes(found) == ["shared-measurements", "unpaired"]
    assert "2 of its 3 servers" in found.warnings[0].text


def test_runs_of_different_results_are_not_paired_and_say_so():
    found = compare([run_of([50, 51, 52], "a"), run_of([60, 61, 62], "b")])
    assert not found.against_first[0].paired
    assert found.against_first[0].changes["decode"].verdict == "faster"
    assert found.against_first[0].changes["decode"].method.startswith("Welch's t on log values, unpaired")
    assert codes(found) == ["unpaired"]


def test_the_wider_of_two_levels_counts():
    looked = Confirmation(rounds=3, level=0.97, ended="precise")
    found = compare([run_of([50, 51, 52], "a"), run_of([60, 61, 62], "b", confirmation=looked)])
    assert "at 97 %" in found.against_first[0].changes["decode"].method


def test_several_comparisons_are_judged_together():
    others = [run_of(speeds, name) for name, speeds in (("b", [60, 61, 62]), ("c", [50, 52, 51]))]
    found = compare([run_of([50, 51, 52], "a"), *others])
    assert [row.letter for row in found.against_first] == ["B", "C"]
    assert all("Holm over 2" in row.changes["turn"].method for row in found.against_first)


ELSEWHERE = build.machine(build.REAL_GPU.model_copy(update={"name": "Other GPU"}))
OBSTACLES = {
    "GPU": {"machine": ELSEWHERE},
    "memory": {"machine": build.machine(build.REAL_GPU).model_copy(update={"ram_total_mib": 65_536})},
    "model": {"model": build.report().model.model_copy(update={"fingerprint": "e" * 64})},
    "workload": {"workload": build.report().workload.model_copy(update={"parallel": 4})},
    "VRAM ceiling": {"ceiling_mib": 6144.0},
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_what_is_not_alike_is_refused_by_name_and_passes_with_a_warning(what):
    pair = [run_of([50, 51], "a"), run_of([60, 61], "b", **OBSTACLES[what])]
    with pytest.raises(NotComparableError) as caught:
        compare(pair)
    assert what in caught.value.what
    assert "--allow-different" in caught.value.next_step
    found = compare(pair, allow_different=True)
    assert [row.setting for row in found.obstacles] == [what]
    assert list(settings_of(found)) == [what]
    assert found.warnings[0].code == "not-alike"
    assert what in found.warnings[0].text


def test_a_renamed_model_a_new_driver_and_a_newer_engine_are_shown_but_no_obstacle():
    base = build.report()
    newer = {
        "model": base.model.model_copy(update={"name": "renamed"}),
        "machine": build.machine(build.REAL_GPU.model_copy(update={"driver": "1000.1"})),
        "engine": base.engine.model_copy(update={"llama_build": "b12000", "backend": Backend.VULKAN}),
        "ceiling_mib": base.ceiling_mib + 8,
    }
    found = compare([run_of([50, 51], "a"), run_of([60, 61], "b", **newer)])
    assert found.obstacles == []
    assert settings_of(found) == {
        "VRAM ceiling": ["5,120 MiB", "5,128 MiB"],
        "model name": ["Big-30B-A3B-Q4_K_M", "renamed"],
        "llama.cpp": ["b11434", "b12000"],
        "back-end": ["cuda", "vulkan"],
        "driver": ["999.10", "1000.1"],
    }


def test_only_settings_that_mean_something_are_shown():
    plain = run_of([50, 51], "a", placement={"policy": "lru"})  # no cache: its policy is no setting
    cached = run_of([60, 61], "b", placement={"hot_k": 22, "shared_budget": True})
    fit = run_of([60, 61], "c", placement={"fit": True})
    assert settings_of(compare([plain, cached, fit])) == {
        "n_cpu_moe": ["48", "48", "by --fit"],
        "hot_k": ["0", "22", "0"],
        "shared_budget": ["–", "yes", "–"],
        "fit": ["no", "no", "yes"],
    }


def test_another_context_is_no_fair_comparison_and_warned_of():
    found = compare([run_of([50, 51], "a"), run_of([60, 61], "b", placement={"context": 8192})])
    assert "not-like-for-like" in codes(found)
    assert "context 4096 (A) but 8192 (B)" in found.warnings[0].text


def test_the_virtual_gpu_is_said():
    found = compare([chosen(build.virtual_report(study=name)) for name in ("a", "b")])
    assert "virtual-gpu" in codes(found)


def test_rows_of_the_benchmark_have_ceilings_of_their_own():
    one, other = run_of([50, 51], "a"), run_of([60, 61], "b")
    cell = Cell(ceiling_percent=17, ceiling_mib=900.0)
    other = Chosen(other.name, other.report, other.arm.model_copy(update={"cell": cell}))
    with pytest.raises(NotComparableError, match=r"5,120 MiB .* but 900 MiB"):
        compare([one, other])


def test_an_arm_without_measurement_is_refused_with_its_outcome():
    failed = build.report(arms=[build.all_cpu(), build.out_of_memory_arm()])
    with pytest.raises(NotComparableError, match="ended as out of memory"):
        compare([chosen(failed, "all-cpu"), chosen(failed, "layers")])


def test_a_replicate_that_failed_leaves_its_round_out():
    a, b = build.all_cpu(), build.hot()
    ended = OutOfMemory(stage="later", detail="x")
    cut = [*b.replicates[:2], b.replicates[2].model_copy(update={"outcome": ended})]
    report = build.report(arms=[a, b.model_copy(update={"replicates": cut})])
    found = compare([chosen(report, "all-cpu"), chosen(report)])
    assert found.against_first[0].changes["turn"].method == "t on paired log-ratios, n=2"
    assert [arm.replicates for arm in found.arms] == [3, 2]


@pytest.mark.parametrize(
    ("speeds", "failed", "why"),
    [
        ([80, 81, 80.5], True, "upper end 0.81"),
        ([100, 101, 99.5], False, "is not below 0.97."),
        ([50, 120, 90], False, "more replicates would tell"),
        ([80], True, "ratio 0.7992 is below 0.97 (there is no interval)"),
        ([99], False, "is not below 0.97 (there is no interval)"),
    ],
)
def test_fail_below_looks_at_the_upper_end_or_else_at_the_ratio(speeds, failed, why):
    found = compare([run_of([100, 100.5, 99.8], "a"), run_of(speeds, "b")])
    (judged,) = judge(found, "decode", 0.97)
    assert judged.failed is failed
    assert why in judged.why


def test_fail_below_fails_what_has_nothing_to_compare():
    bare = run_of([80], "b")
    bare = Chosen(bare.name, bare.report, bare.arm.model_copy(update={"replicates": []}))
    found = compare([run_of([100, 101], "a"), bare])
    assert found.against_first[0].changes == {}
    assert [one.failed for one in judge(found, "turn", 0.97)] == [True]


def test_letters_do_not_end_at_z():
    assert [letter_of(place) for place in (0, 25, 26, 53)] == ["A", "Z", "A2", "B3"]
