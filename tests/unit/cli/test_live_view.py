"""The live view of a study: what stands in it, and that it fits every screen and leaves nothing behind."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from hottune.cli import common
from hottune.cli.live import StudyView, lines
from hottune.progress import BestSoFar, StudyState

BEST = BestSoFar(
    label="ncmoe 31 + hot 22/60 ub 512 t 3",
    value="turn 1.23 s",
    basis="single measurement, not a verdict",
    ratio=1.312,
    baseline="layers",
)
STATE = StudyState(
    stage="Search",
    done=5,
    total=14,
    began_at=100.0,
    stage_ends_at=660.0,
    study_ends_at=1150.0,
    label="ncmoe 31 + hot 16/60 ub 512 t 3",
    step="request 2 of 4: code-cpp, 512 tokens in, 100 out",
    label_at=288.0,
    best=BEST,
    ceiling_mib=12288.0,
    vram_mib=9310.0,
    vram_peak_mib=9402.0,
    hit_rate=0.752,
)
NOW = 300.0
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=60)


def shown(state: StudyState = STATE, width: int = 101, height: int = 30) -> list[str]:
    return [line.plain for line in lines(state, NOW, width, height)]


def recorded(width: int, height: int = 24, **environment: str) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    environ = {"TERM": "xterm-256color"} | environment
    return Console(file=out, width=width, height=height, force_terminal=True, _environ=environ), out


def on_screen(text: str, width: int, height: int = 24) -> tuple[list[str], pyte.Screen]:
    screen = pyte.Screen(width, height)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display], screen


def test_the_five_lines_of_a_search() -> None:
    stage, doing, vram, best, basis = shown()
    assert stage.startswith("Search 5/14 servers  ━")
    assert stage.endswith("─  3 min 20 s, ETA 6 min 00 s, study up to 14 min 10 s")
    assert re.fullmatch(r"Now  ncmoe 31 \+ hot 16/60 ub 512 t 3: request 2 of 4: code-cpp, .* +12 s", doing)
    assert re.fullmatch(r"VRAM █+┃░+  9,310 of 12,288 MiB, peak 9,402 +hits 75.2%", vram)
    assert re.fullmatch(r"Best ncmoe 31 \+ hot 22/60 ub 512 t 3 +turn 1.23 s, 1.31× layers", best)
    assert basis == "     single measurement, not a verdict"


def test_eighty_columns_hold_all_that_matters() -> None:
    text = "\n".join(shown(width=80))
    for part in (
        "5/14",
        "ETA 6 min 00 s",
        "request 2",
        "9,310 of 12,288",
        "peak 9,402",
        "75.2%",
        "1.31× layers",
    ):
        assert part in text, part


def test_nothing_known_yet_is_no_number() -> None:
    stage, doing, vram, best = shown(StudyState("Baselines", total=3, began_at=NOW, ceiling_mib=512.0))
    assert "ETA" not in stage
    assert "between two servers" in doing
    assert vram.endswith("hits –")
    assert "– of 512 MiB" in vram
    assert "nothing measured yet" in best


def test_an_end_that_is_past_is_not_shown() -> None:
    stage = shown(replace(STATE, stage_ends_at=NOW - 1))[0]
    assert "ETA" not in stage
    assert stage.endswith("3 min 20 s, study up to 14 min 10 s")


@pytest.mark.parametrize(("used", "peak", "bar"), [(0, 0, "░" * 30), (512, 512, "█" * 29 + "┃")])
def test_the_bar_is_empty_without_use_and_full_at_the_ceiling(used: float, peak: float, bar: str) -> None:
    state = replace(STATE, ceiling_mib=512.0, vram_mib=used, vram_peak_mib=peak)
    assert shown(state)[2].startswith(f"VRAM {bar} ")


def test_above_the_ceiling_the_bar_is_red() -> None:
    vram = lines(replace(STATE, vram_mib=13000.0), NOW, 101, 30)[2]
    assert "red" in {str(span.style) for span in vram.spans}
    assert "red" not in {str(span.style) for span in lines(STATE, NOW, 101, 30)[2].spans}


numbers = st.one_of(st.none(), st.floats(0, 1e6))
states = st.builds(
    StudyState,
    stage=st.sampled_from(["Baselines", "Search", "Confirm"]),
    done=st.integers(0, 300),
    total=st.integers(0, 300),
    began_at=st.floats(0, 1e5),
    stage_ends_at=numbers,
    study_ends_at=numbers,
    label=WORDS,
    step=WORDS,
    label_at=st.floats(0, 1e5),
    best=st.one_of(
        st.none(),
        st.builds(BestSoFar, label=WORDS, value=WORDS, basis=WORDS, ratio=numbers, baseline=WORDS),
    ),
    ceiling_mib=numbers,
    vram_mib=numbers,
    vram_peak_mib=numbers,
    hit_rate=st.one_of(st.none(), st.floats(0, 1)),
)


@given(state=states, width=st.integers(40, 250), height=st.integers(1, 50))
def test_no_screen_is_too_narrow_or_too_low(state: StudyState, width: int, height: int) -> None:
    found = lines(state, NOW, width, height)
    assert 1 <= len(found) <= max(1, min(5, height - 1))
    assert max(cell_len(line.plain) for line in found) < width
    assert not any("\n" in line.plain for line in found)


@given(width=st.integers(40, 250))
def test_the_best_number_and_that_it_is_no_verdict_are_whole_at_every_width(width: int) -> None:
    *_, best, basis = shown(width=width)
    assert best.endswith("turn 1.23 s, 1.31× layers")
    assert basis.endswith("single measurement, not a verdict")


@given(height=st.integers(1, 10))
def test_the_best_never_stands_without_what_it_rests_on(height: int) -> None:
    text = "\n".join(shown(height=height))
    assert ("1.31×" in text) == ("not a verdict" in text)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_view_is_drawn_in_place_under_lines_that_stay_and_leaves_nothing(width: int) -> None:
    out, text = recorded(width)
    progress = common.RichProgress(out, live=True)
    progress.show(STATE)
    progress.say("  #4 ended")
    progress.show(replace(STATE, done=6))
    screen, _ = on_screen(text.getvalue(), width)
    assert screen[0] == "  #4 ended"
    assert [line[:4].strip() for line in screen[1:7]] == ["Sear", "Now", "VRAM", "Best", "", ""]
    progress.finish("6 servers")
    screen, terminal = on_screen(text.getvalue(), width)
    assert screen[0] == "  #4 ended"
    assert screen[1].startswith("Search: 6 servers (")
    assert not any(screen[2:])
    assert not terminal.cursor.hidden


@pytest.mark.parametrize(("no_reflow", "rows"), [("", 9), ("1", 5)])
def test_lines_that_a_narrower_window_has_wrapped_are_all_erased(
    no_reflow: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STY", raising=False)
    monkeypatch.setenv("XTERM_VERSION", no_reflow)  # xterm itself does not wrap what was drawn
    out, text = recorded(100)
    view = StudyView(out, clock=lambda: NOW)
    view.show(STATE)
    assert [len(line) > 60 for line in shown(width=100)] == [True] * 4 + [False]
    out.width = 60
    before = len(text.getvalue())
    out.print("a line that stays")
    erased = text.getvalue()[before:].split("a line that stays")[0]
    assert erased.count("\x1b[1A\x1b[2K") == rows - 1
    view.stop()


def test_a_new_stage_takes_the_place_of_the_one_before() -> None:
    out, text = recorded(80)
    progress = common.RichProgress(out, live=True)
    progress.show(replace(STATE, stage="Baselines"))
    progress.show(STATE)
    screen, _ = on_screen(text.getvalue(), 80)
    assert screen[0].startswith("Search 5/14")
    progress.close()


def test_after_its_end_nothing_is_drawn_any_more() -> None:
    out, text = recorded(80)
    progress = common.RichProgress(out, live=True)
    progress.show(STATE)
    progress.close()
    before = text.getvalue()
    progress.show(STATE)  # a thread that had not heard of it
    assert text.getvalue() == before
    screen, terminal = on_screen(before, 80)
    assert not any(screen)
    assert not terminal.cursor.hidden


def test_no_color_takes_the_colours_and_leaves_the_view() -> None:
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        out, text = recorded(80, **environment)
        view = StudyView(out, clock=lambda: NOW)
        view.show(STATE)
        view.stop()
        assert "Search 5/14" in text.getvalue()
        codes = {
            code for found in re.findall(r"\x1b\[([\d;]*)m", text.getvalue()) for code in found.split(";")
        }
        assert any(code.startswith(("3", "4", "9")) and len(code) > 1 for code in codes) is coloured


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_lines(term: str, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file: Any = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
    assert common.is_live(Console(file=file, _environ={"TERM": term})) is live
    monkeypatch.setattr(file, "isatty", lambda: False)
    assert not common.is_live(Console(file=file, force_terminal=True, _environ={"TERM": term}))


def test_without_a_terminal_a_study_is_plain_lines_and_readings_make_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = common.RichProgress(Console(file=out, width=200))
    progress.show(replace(STATE, done=0, label="", step=""))
    now[0] += 10
    progress.show(replace(STATE, done=5))
    now[0] += 10
    progress.show(replace(STATE, done=5, vram_mib=1.0))
    progress.finish("5 servers")
    assert out.getvalue().splitlines() == [
        "Search ...",
        "Search: 5/14 servers, ETA 18 s  ncmoe 31 + hot 16/60 ub 512 t 3: request 2 of 4: code-cpp, "
        "512 tokens in, 100 out",
        "Search: 5 servers (20 s)",
    ]
