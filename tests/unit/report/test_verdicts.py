"""Ratios and how their intervals were made: each said once, and in one way in every report."""

from __future__ import annotations

import re

import pytest
import report_builder as build

from hottune.report import Format, render, verdicts
from hottune.report.schema import Change

PAIRED = "t on paired log-ratios"


def made(*methods: str) -> str:
    return verdicts.methods(
        Change(ratio=1.0, low=None, high=None, verdict="can't tell", method=method) for method in methods
    )


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ([], ""),
        ([f"{PAIRED}, n=3"] * 2, f"{PAIRED}, n=3"),
        (
            [f"{PAIRED}, n=3", f"{PAIRED}, n=3, verdict by Holm over 3"],
            f"{PAIRED}, n=3; where several are compared, verdicts by Holm over 3",
        ),
        (
            [
                f"{PAIRED} at 97 %, n=8, verdict by Holm over 4",
                f"{PAIRED} at 97 %, n=10, verdict by Holm over 6",
            ],
            f"{PAIRED} at 97 %, n=8 or 10; where several are compared, verdicts by Holm over 4 or 6",
        ),
        ([f"{PAIRED} needs n>=2, n=1"], f"{PAIRED} needs n>=2, n=1"),
        (["Welch's t on log values, unpaired, n=3 and 5"], "Welch's t on log values, unpaired, n=3 and 5"),
        (["some other way"], "some other way"),
    ],
)
def test_how_intervals_were_made_is_said_once(methods: list[str], sentence: str) -> None:
    assert made(*methods) == sentence


def test_a_lopsided_interval_is_shown_by_its_ends() -> None:
    assert verdicts.change(build.change(1.12, 1.08, 1.16, "faster")) == "faster +12% ±4%"
    assert verdicts.change(build.change(1.91, 1.20, 3.01, "faster")) == "faster, +20% to +201%"
    assert verdicts.change(build.change(0.88, 0.18, 4.0)) == "can't tell, −82% to +300%"


def test_a_ratio_has_two_digits_and_one_sign() -> None:
    assert verdicts.ratio(0.682) == "0.68×"
    assert verdicts.interval(build.change(1.0342, 0.99, 1.08)) == "1.03× (0.99 to 1.08)"
    assert verdicts.interval(build.change(0.5)) == "0.50× (no interval)"


@pytest.mark.parametrize("format", [Format.TERMINAL, Format.MARKDOWN, Format.HTML])
def test_every_ratio_that_people_read_has_the_same_sign_and_digits(format: Format) -> None:
    report = build.report()
    assert report.winner is not None
    assert "1.03x as fast" in report.winner.reason, "as result files say it"
    text = render(report, format)
    assert "1.03× as fast" in " ".join(text.split())
    assert not re.search(r"\d\.\d+x\b", text)
    assert {len(digits) for digits in re.findall(r"\d\.(\d+)×", text)} == {2}
