import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hottune.report.html.bars import Bar, Group, bars
from hottune.report.html.svg import WIDTH, Scale, tick_label, ticks
from hottune.report.html.xy import Flag, Line, Point, plot


@given(st.floats(1e-6, 1e9))
def test_ticks_are_few_even_and_reach_the_largest_value(largest):
    steps = ticks(largest)
    assert steps[0] == 0
    assert steps[-1] >= largest * 0.998
    assert 3 <= len(steps) <= 6
    assert steps[-1] <= 2.01 * largest
    assert tick_label(steps[1]).rstrip("k").replace(".", "").lstrip("0")[0] in "125"


def test_an_axis_of_nothing_has_a_length():
    assert ticks(0.0)[-1] == ticks(-1.0)[-1] == ticks(5e-324)[-1] == 1.0


def test_a_scale_keeps_everything_inside():
    scale = Scale(10.0, 100.0, 0.0)
    assert [scale.at(value) for value in (-5, 0, 5, 10, 50)] == [100.0, 100.0, 50.0, 0.0, 0.0]


SPEED = st.floats(0.0, 1e6)


@given(st.lists(st.tuples(SPEED, SPEED, SPEED), min_size=1, max_size=5))
def test_bars_stay_inside_the_drawing(values):
    groups = [
        Group("arm", [Bar(value, "words", value - low, value + high, [value])]) for value, low, high in values
    ]
    body, height = bars(groups, "tok/s")
    for item in ElementTree.fromstring(f"<svg>{body}</svg>").iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(item.get(name, 0)) <= WIDTH
        assert float(item.get("x", 0)) + float(item.get("width", 0)) <= WIDTH
        assert 0 <= float(item.get("y", 0)) <= height


def test_an_interval_far_beyond_the_bars_is_cut_and_has_no_end_mark():
    short, _ = bars([Group("arm", [Bar(10.0, "10", 8.0, 12.0)])], "s")
    cut, _ = bars([Group("arm", [Bar(10.0, "10", 1.0, float("inf"))])], "s")
    assert short.count("whisker") == 3
    assert cut.count("whisker") == 2


def test_steps_go_level_and_then_up_and_flags_stand_above_the_plot():
    body, height = plot(
        "trial",
        "s",
        points=[Point(1, 2, "one")],
        lines=[Line([(0, 2), (1, 1)], "l0", steps=True)],
        flags=[Flag(2, "M", "out of memory")],
    )
    svg = ElementTree.fromstring(f"<svg>{body}</svg>")
    path = next(item.get("d") for item in svg.iter("path"))
    assert "H" in path and "V" in path and "L" not in path
    flag = next(item for item in svg.iter("text") if item.get("class") == "flag")
    point = next(svg.iter("circle"))
    assert float(flag.get("y")) < float(point.get("cy")) < height
    assert float(flag.get("x")) > float(point.get("cx"))


@pytest.mark.parametrize("value", [(0, "0"), (0.5, "0.5"), (20, "20"), (5000, "5k"), (12500, "12.5k")])
def test_tick_labels_are_short(value):
    assert tick_label(value[0]) == value[1]


def test_letters_of_neighbours_stand_apart_and_the_plot_keeps_its_height():
    def letters(trials):
        body, height = plot(
            "trial", "s", points=[Point(300, 1, "")], flags=[Flag(x, "M", "") for x in trials]
        )
        svg = ElementTree.fromstring(f"<svg>{body}</svg>")
        found = [item for item in svg.iter("text") if item.get("class") == "flag"]
        point = next(svg.iter("circle"))
        places = [(float(item.get("x")), float(item.get("y"))) for item in found]
        return places, height - float(point.get("cy"))

    few, plot_of_few = letters([10])
    many, plot_of_many = letters(range(0, 300, 2))
    assert len(few) == 1 and len(many) == 150
    for place, (x, y) in enumerate(many):
        assert y > 12
        assert all(abs(x - other) >= 9.9 for other, row in many[:place] if row == y)
    assert plot_of_few == pytest.approx(plot_of_many)


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_marks_have_the_contrast_that_wcag_asks_for(place):
    css = files("hottune.report.html").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]+);", css.split(":root")[place + 1].split("}")[0]))
    for ground in (colours["page"], colours["panel"]):
        assert all(contrast(colours[name], ground) >= 4.5 for name in ("ink", "soft", "bad"))
        assert all(contrast(colours[name], ground) >= 3 for name in ("won", "b0", "b1", "b2", "front"))
