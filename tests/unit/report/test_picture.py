"""The main chart as a picture."""

import io

import matplotlib.image
import report_builder as build
from matplotlib.text import Text

from hottune.outcomes import OutOfMemory
from hottune.report import Format, render_bytes
from hottune.report.picture import figure


def texts(report) -> list[str]:
    return [item.get_text() for item in figure(report).findobj(Text) if item.get_text()]


def size(report) -> tuple[int, int]:
    height, width, _ = matplotlib.image.imread(io.BytesIO(render_bytes(report, Format.PNG))).shape
    return width, height


def test_it_has_the_size_that_forums_scale_and_more_height_for_more_arms():
    assert size(build.report()) == (1600, 900)
    many = [build.layers()] * 9
    assert size(build.report(arms=many))[1] > 900


def test_answer_numbers_changes_and_setup_are_drawn():
    shown = "\n".join(texts(build.report()))
    for part in (
        "Use this: hot",
        "→ hot",
        "61.0 ± 2.0",
        "faster +10% ±4%",
        "best baseline",
        "not engaged",
        "Example GPU 24GB",
        "Example CPU 9000",
        "Big-30B-A3B-Q4_K_M",
        "5,120 MiB",
        "hottune 0.1.0",
    ):
        assert part in shown
    assert "VIRTUAL" not in shown
    assert "inflated" not in shown


def test_virtual_gpu_and_inflated_model_are_said():
    report = build.virtual_report()
    model = report.model.model_copy(update={"inflated": build.inflation()})
    shown = "\n".join(texts(report.model_copy(update={"model": model})))
    assert shown.startswith("VIRTUAL GPU") or "\nVIRTUAL GPU" in shown
    assert "an inflated model, not a released one" in shown


def test_when_all_failed_every_bar_says_how():
    arms = [
        build.out_of_memory_arm(),
        build.failed_arm("all-cpu", build.placement(), OutOfMemory(stage="load", detail="x")),
    ]
    report = build.report(arms=arms, winner=None)
    assert texts(report).count("out of memory") == 6
    assert size(report) == (1600, 900)


def test_no_text_is_outside_of_the_picture_or_over_a_text_of_its_row():
    made = figure(build.report())
    renderer = made.canvas.get_renderer()
    width, height = made.get_size_inches() * made.dpi
    boxes = [
        (item.get_text(), item.get_window_extent(renderer)) for item in made.findobj(Text) if item.get_text()
    ]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for place, (text, box) in enumerate(boxes):
        for other, beside in boxes[place + 1 :]:
            assert not box.shrunk(0.95, 0.7).overlaps(beside.shrunk(0.95, 0.7)), (text, other)


def test_a_dollar_sign_is_no_formula_and_an_unknown_letter_no_end():
    model = build.report().model.model_copy(update={"name": "a$_{b$ 模型"})
    report = build.report(model=model, study="x")
    assert any("a$_{b$" in text for text in texts(report))
    render_bytes(report, Format.PNG)


def test_an_interval_that_says_nothing_is_left_out():
    wide = build.change(1.5, 0.001, 400.0)
    arm = build.hot().model_copy(update={"versus_turn": wide})
    shown = texts(build.report(arms=[build.layers(), arm]))
    assert "can't tell" in shown
