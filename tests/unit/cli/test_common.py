from __future__ import annotations

import errno
import io
import json
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.text import Text

from hottune.cli import common
from hottune.errors import NotMoeError
from hottune.outcomes import Rejected
from hottune.progress import Progress


def plain() -> tuple[common.RichProgress, io.StringIO]:
    out = io.StringIO()
    return common.RichProgress(Console(file=out, width=200)), out


def test_an_error_ends_with_its_own_exit_code_and_says_what_why_and_what_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    common.console.cache_clear()
    with pytest.raises(typer.Exit) as ended, common.handled(json_output=True):
        raise NotMoeError("It is dense.", "It has no experts.", "Take another model.")
    common.console.cache_clear()
    assert ended.value.exit_code == 12
    out, err = capsys.readouterr()
    for part in ("It is dense.", "It has no experts.", "Take another model."):
        assert part in err
    assert json.loads(out)["error"] == {
        "type": "NotMoeError",
        "exit_code": 12,
        "what": "It is dense.",
        "why": "It has no experts.",
        "next_step": "Take another model.",
    }


def test_ctrl_c_ends_with_130() -> None:
    with pytest.raises(typer.Exit) as ended, common.handled():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130


def test_a_full_disk_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    common.console.cache_clear()
    with pytest.raises(typer.Exit) as ended, common.handled():
        raise OSError(errno.ENOSPC, "No space left on device")
    common.console.cache_clear()
    assert ended.value.exit_code == 21
    assert "No space left on device" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [40, 80])
def test_lines_on_a_terminal_break_between_words_and_never_within_a_path(width: int) -> None:
    out = Terminal()
    console = Console(file=out, width=width, force_terminal=True, force_interactive=True, color_system=None)
    path = "/home/somebody/" + "folder/" * 12 + "study.json"
    line = f"  #7  ncmoe 6 + hot 49 lru shared   out of memory: no room, says {path}"
    common.print_line(console, Text(line))
    lines = out.getvalue().splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())
    assert all(len(one) <= width or path in one for one in lines)
    assert all(one.startswith("    ") for one in lines[1:])


def test_lines_in_a_file_stay_whole() -> None:
    _, out = plain()
    common.print_line(Console(file=out, width=40), Text("word " * 30))
    assert out.getvalue() == "word " * 30 + "\n"


def test_a_bug_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), common.handled():
        _ = 1 / 0


def test_json_comes_from_models_inside_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    common.emit_json({"outcomes": [Rejected(detail="too large")], "path": Path("/x")})
    shown = json.loads(capsys.readouterr().out)
    assert shown["path"] == "/x"
    (outcome,) = shown["outcomes"]
    assert (outcome["kind"], outcome["detail"]) == ("rejected", "too large")
    assert set(outcome) == set(Rejected.model_fields)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path / "mine"))
    assert common.cache_dir() == tmp_path / "mine"
    assert common.cache_dir().is_dir()


def test_without_a_terminal_progress_is_plain_lines_and_few_of_them() -> None:
    progress, out = plain()
    progress.start("Build", total=1000, unit="steps")
    for step in range(1000):
        progress.update(step)
    progress.finish("ok")
    lines = out.getvalue().splitlines()
    assert lines[0] == "Build ..."
    assert lines[-1].startswith("Build: ok (")
    assert len(lines) == 2, "updates within two seconds say nothing"


def test_plain_progress_has_an_eta_once_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress, out = plain()
    progress.start("Download", total=1000, unit="bytes")
    now[0] += 10
    progress.update(250)
    assert "Download: 250 B/1000 B, ETA 30 s" in out.getvalue()


def test_lines_that_stay_are_printed_as_they_are() -> None:
    progress, out = plain()
    progress.say("[bold]not markup[/bold]")
    assert out.getvalue() == "[bold]not markup[/bold]\n"


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress: Progress = common.make_progress(quiet=True)
    progress.start("x")
    progress.say("y")
    progress.finish()
    assert capsys.readouterr() == ("", "")
