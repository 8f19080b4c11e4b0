"""The live view of a real study, in a real pseudo-terminal and away from one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hottune_command import Command, require_engine
from terminal import Terminal

pytestmark = pytest.mark.real

RUN = ("run", "demo", "--backend", "cpu", "--quick")
SHORT = (*RUN, "--scale", "0.2")
Open = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    require_engine()
    opened: list[Terminal] = []

    def start(*arguments: str, **options: object) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for one in opened:
        one.kill()


def is_clean(one: Terminal) -> bool:
    """Tell whether nothing of a view is left, and the cursor is back."""
    left = [line for line in one.scrolled if re.match(r"(Now  |VRAM [█░┃]|Best (?!baseline))", line)]
    return not left and not one.screen.cursor.hidden


def in_search(lines: list[str]) -> bool:
    text = "\n".join(lines)
    return all(
        re.search(part, text, re.MULTILINE)
        for part in (
            r"^Search \d/5 servers +[━─]+ .*ETA .*study up to ",
            r"^Now  ncmoe .*: request \d of \d",
            r"^VRAM .*█.* of \d+ MiB, peak \d+ +hits \d+\.\d%$",
            r"^Best .*turn \d",
            r"^     (single measurement|mean of \d measurements), not a verdict",
        )
    )


def test_a_study_shows_stage_best_vram_and_hits_and_leaves_a_clean_screen(terminal: Open) -> None:
    one = terminal(*RUN)
    one.wait(in_search)
    assert one.screen.cursor.hidden
    assert any(re.match(r"  #0 +all-cpu: ", line) for line in one.scrolled), "finished trials stay"
    assert one.end() == 0
    assert is_clean(one)
    text = "\n".join(one.scrolled)
    for stage in ("Baselines", "Search", "Confirm"):
        assert re.search(rf"^{stage}: \d+ servers \(", text, re.MULTILINE)
    assert "Serve it" in text
    assert re.search(rb"\x1b\[[\d;]*3[2346]m", one.written), "in colours"


def test_ctrl_c_leaves_a_clean_screen_and_what_to_do(terminal: Open) -> None:
    one = terminal(*SHORT)
    one.wait(lambda lines: any(line.startswith("Now  ncmoe") for line in lines))
    one.press(b"\x03")
    assert one.end() == 130
    assert is_clean(one)
    assert "the same command goes on from there" in " ".join(one.shown)


def test_a_signal_to_end_leaves_a_clean_screen(terminal: Open) -> None:
    one = terminal(*SHORT)
    one.wait(lambda lines: any(line.startswith("Now  ncmoe") for line in lines))
    one.process.terminate()
    assert one.end() == 143
    assert is_clean(one)


def test_a_low_window_gets_no_more_than_fits_and_a_larger_one_more(terminal: Open) -> None:
    one = terminal(*SHORT, columns=60, rows=4)
    one.wait(lambda lines: any(line.startswith("Now ") for line in lines))
    assert not any(line.startswith("Best") for line in one.shown)
    one.resize(120, 30)
    one.wait(lambda lines: any(line.startswith("Best ") and len(line) > 60 for line in lines))
    assert one.end() == 0
    assert "Serve it" in "\n".join(one.scrolled)
    assert not one.screen.cursor.hidden


def test_no_color_has_no_colours_and_the_view_all_the_same(terminal: Open) -> None:
    one = terminal(*SHORT, NO_COLOR="1")
    one.wait(lambda lines: any(line.startswith("VRAM") for line in lines))
    assert one.end() == 0
    assert is_clean(one)
    codes = {code for found in re.findall(rb"\x1b\[([\d;]*)m", one.written) for code in found.split(b";")}
    assert codes <= {b"", b"0", b"1", b"2", b"22"}, "bold and dim are no colours"


def test_a_dumb_terminal_gets_plain_lines(terminal: Open) -> None:
    one = terminal(*SHORT, TERM="dumb")
    assert one.end() == 0
    assert b"\x1b" not in re.sub(rb"\x1b\[[\d;]*m", b"", one.written)
    assert b"Search ..." in one.written
    assert b"Now " not in one.written


def test_a_file_gets_lines_without_control_characters(tmp_path: Path) -> None:
    require_engine()
    ended = Command(tmp_path).run(*SHORT)
    assert ended.returncode == 0, ended.stderr
    assert not re.findall(r"[\x00-\x09\x0b-\x1f\x7f]", ended.stdout + ended.stderr)
    assert re.search(r"^  #0 +all-cpu: .* turn ", ended.stderr, re.MULTILINE)
    assert "Search ..." in ended.stderr
    assert "Serve it" in ended.stdout


def test_quiet_says_nothing_but_the_report(tmp_path: Path) -> None:
    require_engine()
    ended = Command(tmp_path).run(*SHORT, "--quiet")
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert "Serve it" in ended.stdout
