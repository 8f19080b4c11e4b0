"""Timelines in the reports: charts, their data, and the sparkline."""

import re

import pytest
import report_builder as build
from test_html_page import Page, charts, drawn, titles

from hottune.outcomes import Timeline
from hottune.report import Format, render
from hottune.report.timeline import WIDEST, hit_lines, merged, middles, warmup_end_s

LINE = Timeline(
    at_s=[1.0, 2.0, 3.0, 4.0],
    vram_mib=[4000.0, 5000.0, 5040.0, 5040.0],
    hits=[10, 0, 55, 99],
    misses=[90, 0, 45, 1],
)


def with_line(line: Timeline | None, arm=None):
    arm = arm or build.hot()
    warm_up = build.sample(turn_s=1.5).model_copy(update={"warmup": True, "started_s": 0.1})
    runs = [
        one.model_copy(
            update={
                "outcome": one.outcome.model_copy(
                    update={"timeline": line, "requests": [warm_up, *one.outcome.requests]}
                )
            }
        )
        for one in arm.replicates
    ]
    return arm.model_copy(update={"replicates": runs})


def report(line: Timeline | None = LINE):
    plain = with_line(Timeline(at_s=[2.0], vram_mib=[3000.0]), build.all_cpu()) if line else build.all_cpu()
    return build.report(arms=[plain, with_line(line)])


def test_a_sparkline_goes_from_the_first_hit_rate_to_the_last():
    assert hit_lines(report()) == ["hot: hits ▁·▅█ 10% → 99%, from the first request on, 1 s a bar"]


def test_a_long_timeline_has_a_short_sparkline_of_whole_counts():
    n = 60
    line = Timeline(at_s=[n_ / 4 for n_ in range(1, n + 1)], hits=[0, 0, 3] * 20, misses=[0, 1, 0] * 20)
    (text,) = hit_lines(report(line))
    assert f"hits {'▇' * WIDEST} 75% → 75%" in text
    assert text.endswith("0.75 s a bar")


@pytest.mark.parametrize(
    "line", [None, Timeline(at_s=[1.0], vram_mib=[1.0]), Timeline(at_s=[1.0], hits=[0], misses=[0])]
)
def test_without_a_lookup_there_is_no_sparkline(line):
    assert hit_lines(report(line)) == []
    assert "Hit rate over time" not in render(report(line), Format.TERMINAL, width=100)


@pytest.mark.parametrize("form", [Format.TERMINAL, Format.MARKDOWN_LONG])
def test_terminal_and_markdown_show_the_sparkline(form):
    assert "hits ▁·▅█ 10% → 99%" in render(report(), form, width=100, color=False)


def test_an_interval_stands_at_its_middle_and_the_warm_up_ends_with_its_last_answer():
    assert middles(LINE) == [0.5, 1.5, 2.5, 3.5]
    assert warmup_end_s(report().arms[1].replicates[0].outcome) == 1.6
    assert warmup_end_s(build.measurement()) == 0


def test_hit_rate_over_time_is_a_line_with_its_warm_up_and_its_numbers():
    text = render(report(), Format.HTML)
    svg = charts(text)["Hit rate over time"]
    assert [words for words in titles(svg) if words] == [
        "hot, 0.50 s: 10.0% hits",
        "hot, 2.50 s: 55.0% hits",
        "hot, 3.50 s: 99.0% hits",
    ]
    assert [item.get("class") for item in svg.iter("path")] == ["l0", "l0 warm"]
    assert "hot from 10.0% to 99.0%" in svg.findtext("desc")
    table = text[text.index("<summary>Data: Hit rate over time") :].partition("</table>")[0]
    rows = [re.findall(r">([^<>\n]+)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    assert rows[:3] == [
        ["hot", "1.00", "warm-up", "10.0%", "10", "90"],
        ["hot", "2.00", "measured", "–", "0", "0"],
        ["hot", "3.00", "measured", "55.0%", "55", "45"],
    ]


def test_vram_over_time_has_every_arm_and_the_ceiling():
    svg = charts(render(report(), Format.HTML))["VRAM over time"]
    assert [item.get("class") for item in svg.iter("path")][:3] == ["l0", "l1", "reference"]
    assert "all-cpu from 3,000 to at most 3,000; hot from 4,000 to at most 5,040" in svg.findtext("desc")
    assert "6k" in drawn(svg)


def test_old_results_have_no_chart_over_time():
    text = render(report(None), Format.HTML)
    assert "over time" not in Page(text).text
    assert Page(text).open == []


def test_lines_that_lie_on_each_other_have_marks_in_different_places():
    line = Timeline(at_s=[float(n) for n in range(1, 41)], vram_mib=[5000.0] * 40)
    arms = [with_line(line, build.all_cpu()), with_line(line, build.layers())]
    told = titles(charts(render(build.report(arms=arms), Format.HTML))["VRAM over time"])
    seconds = {name: {words for words in told if words.startswith(name)} for name in ("all-cpu", "layers")}
    assert all(len(found) == 8 for found in seconds.values())
    assert not {words.partition(",")[2] for words in seconds["all-cpu"]} & {
        words.partition(",")[2] for words in seconds["layers"]
    }


def test_the_table_of_a_long_timeline_has_few_rows_and_every_hit():
    line = Timeline(
        at_s=[n / 4 for n in range(1, 61)], vram_mib=[5000.0] * 60, hits=[3] * 60, misses=[1] * 60
    )
    text = render(report(line), Format.HTML)
    table = text[text.index("<summary>Data: Hit rate over time") :].partition("</table>")[0]
    assert table.count("<tr>") == 21
    assert merged(line, 7).hits == [24, 27, 24, 27, 24, 27, 27]
    assert sum(merged(line, 7).misses) == 60
    assert merged(line, 7).at_s[-1] == 15.0
    assert merged(line, 60) == merged(line, 999) == line
