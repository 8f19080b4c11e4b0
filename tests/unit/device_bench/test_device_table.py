"""The page: facts at the top, a row for each cell, what it comes down to."""

from __future__ import annotations

from pathlib import Path

from device_rows import FakeBench, answer, options, setting

from bench.device.sitting import Pace, Sitting
from bench.device.table import HEAD, markdown
from hottune.outcomes import Measurement, Outcome
from hottune.placement import Placement


def page(folder: Path, *arguments: str, bench: FakeBench | None = None) -> str:
    chosen = options(folder, *arguments)
    return markdown(Sitting(setting(chosen, bench or FakeBench()), Pace(None), lambda line: None).run())


def rows_of(text: str, start: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] == start]


def test_machine_model_and_command_stand_at_the_top(tmp_path: Path) -> None:
    head = page(tmp_path).split("\n| ceiling")[0]
    for fact in (
        "NVIDIA Made Up",
        "driver 580.1",
        "A CPU",
        "10 layers × 100, 8 used",
        "python -m bench.device demo",
    ):
        assert fact in head


def test_every_cell_is_a_row_of_the_heads_length(tmp_path: Path) -> None:
    text = page(tmp_path)
    main = [row for row in rows_of(text, "25 %") if len(row) == len(HEAD)]
    assert [row[1] for row in main] == ["layers", "hot", "layers", "fit", "hot", "hot+layers"]
    hot = dict(zip(HEAD, main[1], strict=True))
    assert (hot["placement"], hot["slots"], hot["hit rate"]) == ("ncmoe 10 + 15", "15", "60.0 %")
    assert (hot["VRAM MiB"], hot["of MiB"]) == ("750", "750")
    assert (hot["cold µs"], hot["fetched GB"]) == ("50.0", "0.00")
    assert len([row for row in rows_of(text, "–") if len(row) == len(HEAD)]) == 2, "all-cpu, by ubatch"


def test_the_summary_has_a_line_for_each_ceiling(tmp_path: Path) -> None:
    text = page(tmp_path)
    line = next(row for row in rows_of(text, "50 %") if len(row) != len(HEAD))
    assert line[1] == "25.00 ub 512 (layers)"
    assert line[2] == "30.00 ub 512 = 1.20"


def test_other_numbers_of_threads_have_a_table_of_their_own(tmp_path: Path) -> None:
    text = page(tmp_path, "--threads", "8,16")
    assert "| arm | ceiling | threads |" in text
    assert [row[2] for row in rows_of(text, "hot") if len(row) == 5] == ["8", "16"]
    assert all(len(row) != len(HEAD) or row[2] != "16" for row in rows_of(text, "25 %"))


def test_an_interval_is_shown_when_it_tells_something(tmp_path: Path) -> None:
    speeds = iter(range(1000))

    def noisy(placement: Placement) -> Outcome:
        found = answer(placement)
        assert isinstance(found, Measurement)
        return found.model_copy(update={"decode_tok_s": found.decode_tok_s + next(speeds) % 7 / 10})

    text = page(tmp_path, "--rounds", "4", bench=FakeBench(noisy))
    hot = next(row for row in rows_of(text, "50 %") if row[1] == "hot")
    assert " to " in hot[6]
    assert " to " not in next(row for row in rows_of(page(tmp_path), "50 %") if row[1] == "hot")[6]
