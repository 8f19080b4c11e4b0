import pytest
import report_builder as build
from hypothesis import given
from hypothesis import strategies as st

from hottune.report import Format, render, searched, verdicts, wording
from hottune.report.schema import Cell, Confirmation, Report
from hottune.report.setup import setup


def test_numbers_keep_about_three_digits():
    assert [wording.number(value) for value in (4582.4, 547.2, 58.94, 1.434, None)] == [
        "4,582",
        "547",
        "58.9",
        "1.43",
        "–",
    ]


def test_spread_needs_two_replicates():
    assert wording.with_spread(58.9, [58.9]) == "58.9"
    assert wording.with_spread(58.9, [57.9, 59.9]) == "58.9 ± 1.4"


def test_change_shows_verdict_percent_and_the_longer_half_of_the_interval():
    assert verdicts.change(build.change(1.31, 1.28, 1.35, "faster")) == "faster +31% ±4%"
    assert verdicts.change(build.change(0.87, 0.85, 0.88, "slower")) == "slower −13% ±2%"
    assert verdicts.change(build.change(1.004, 0.97, 1.04)) == "can't tell +0.4% ±3.6%"


def test_change_without_interval_says_so_instead_of_inventing_one():
    assert verdicts.change(build.change(1.2)) == "can't tell +20%, no interval"
    assert verdicts.change(None) == "–"


@given(ratio=st.floats(0.01, 100), verdict=st.sampled_from(["faster", "slower", "can't tell"]))
def test_change_always_begins_with_its_verdict(ratio, verdict):
    assert verdicts.change(build.change(ratio, ratio * 0.9, ratio * 1.1, verdict)).startswith(verdict)


def test_infinite_bounds_become_no_interval():
    change = build.change(1.1, 0.0, float("inf"))
    assert change.high is None
    assert "no interval" in verdicts.change(change)


def test_a_failed_arm_shows_no_number_even_when_one_is_set():
    arm = build.out_of_memory_arm().model_copy(update={"decode_tok_s": 99.0, "vram_peak_mib": 1.0})
    assert wording.speed(arm, "decode_tok_s") == "–"
    assert wording.vram(arm) == "–"
    assert wording.outcome(arm) == "out of memory"


def test_a_run_that_failed_beside_good_ones_is_told():
    crash = build.Crashed(exit_code=-11, detail="segmentation fault")
    hot = build.hot()
    arm = hot.model_copy(update={"replicates": [*hot.replicates, *build.replicates(crash)]})
    assert wording.outcome(arm) == "3 of 4 runs"
    assert wording.failures(build.report(arms=[arm])) == ["hot: 1 of 4 runs ended as crashed"]


def test_vram_of_the_whole_device_is_marked():
    assert wording.vram(build.all_cpu("device-change")) == "~5,040"
    assert wording.vram(build.all_cpu("process")) == "5,040"


def test_hot_is_compared_with_every_baseline_the_best_first():
    rows = [(row.arm, row.base) for row in wording.comparisons(build.report())]
    assert rows == [("all-cpu", "layers"), ("hot", "layers"), ("hot", "all-cpu")]


def test_search_is_summed_up_by_outcome():
    text = searched.search_summary(build.report())
    assert text == "6 placements tried: 3 measured, 1 out of memory, 1 rejected, 1 crashed"


def test_a_placement_that_was_tried_again_counts_once():
    trials = build.trials()
    again = trials[0].model_copy(update={"number": len(trials)})
    text = searched.search_summary(build.report(trials=[*trials, again]))
    assert text.startswith("6 placements tried in 7 trials: 4 measured")


def test_remeasured_shows_how_the_search_flattered():
    lines = searched.remeasured(build.report())
    assert "hot: decode tok/s, search 66.5 → re-measured 61.0 (−8.3%)" in lines[-1]


def test_without_winner_the_answer_recommends_nothing():
    found = wording.answer(build.report(winner=None))
    assert found.what == "No recommendation"


def test_a_baseline_as_winner_is_not_compared_with_itself():
    winner = build.Winner(arm="layers", reason="Nothing beat it.", command="llama-server")
    found = wording.answer(build.report(winner=winner))
    assert found.what.startswith("Use this: layers")
    assert found.against == ""


@pytest.mark.parametrize(
    ("report", "virtual"), [(build.report(), False), (build.virtual_report(), True)], ids=["real", "virtual"]
)
def test_virtual_gpu_is_recognised(report, virtual):
    assert wording.is_virtual(report) is virtual


def test_an_arm_that_was_never_measured_again_is_not_a_measurement():
    arm = build.hot().model_copy(
        update={"outcome": "not_confirmed", "detail": "not measured again", "replicates": []}
    )
    assert wording.outcome(arm) == "not confirmed"
    assert wording.failures(build.report(arms=[arm])) == ["hot: not measured again"]
    assert searched.remeasured(build.report(arms=[arm])) == []


def test_an_inflated_model_is_named_as_one_in_the_setup():
    model = build.report().model
    inflated = model.model_copy(update={"synthetic": True, "inflated": build.inflation()})
    shown = dict(setup(build.report(model=inflated)))
    assert "demo inflated to the shape of Big-30B-Q4_K_M" in shown["Model"]
    assert "inflated" not in dict(setup(build.report()))["Model"]


def test_a_benchmark_of_the_device_recommends_nothing():
    cell = Cell(ceiling_percent=25.0, ceiling_mib=900.0)
    arms = [arm.model_copy(update={"cell": cell}) for arm in build.report().arms]
    report = build.report().model_copy(update={"arms": arms, "winner": None})
    assert wording.answer(report).what == "A benchmark"


def candidates(winner: str) -> Report:
    """A report with a second candidate, equal to the first but for its name."""
    report = build.report()
    hot = next(arm for arm in report.arms if arm.name == "hot")
    assert report.winner is not None
    return report.model_copy(
        update={
            "arms": [*report.arms, hot.model_copy(update={"name": "hot-2"})],
            "winner": report.winner.model_copy(update={"arm": winner}),
        }
    )


@pytest.mark.parametrize(("winner", "first"), [("hot", "hot"), ("hot-2", "hot-2"), ("layers", "hot")])
def test_the_leading_candidate_is_compared_with_every_baseline(winner: str, first: str) -> None:
    report = candidates(winner)
    bases = {
        name: [row.base for row in wording.comparisons(report) if row.arm == name]
        for name in ("hot", "hot-2")
    }
    assert len(bases[first]) > 1
    assert [len(found) for name, found in bases.items() if name != first] == [1]


def test_a_second_candidate_stands_in_every_form_of_the_report() -> None:
    report = candidates("hot-2")
    for form in Format:
        if not form.is_binary:  # what a picture has is looked at in test_picture
            assert "hot-2" in render(report, form)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("fixed", "6 rounds of fresh servers: as asked for; intervals at 97%"),
        ("precise", "every interval that decides was within ±3%; intervals at 97%"),
        ("most", "not every interval"),
        ("time", "the time budget ended"),
        ("interrupted", "then it was interrupted"),
    ],
)
def test_the_report_says_why_replicates_ended(ended: str, words: str) -> None:
    told = Confirmation(rounds=6, level=0.97, ended=ended)
    report = build.report().model_copy(update={"confirmation": told})
    assert words in searched.search_lines(report)[1]
    assert all("rounds" not in line for line in searched.search_lines(build.report()))


def test_the_names_of_placements_are_explained_as_far_as_they_stand_there():
    report = build.report()
    assert wording.legend(report).startswith("ncmoe N: the experts of N layers in RAM; hot K/T: K experts")
    assert "hot K" not in wording.legend(report.model_copy(update={"arms": report.arms[:1]}))
    assert wording.legend(report.model_copy(update={"arms": []})) == ""
