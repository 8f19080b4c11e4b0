"""Quality, cold start and roofline in every rendering."""

from __future__ import annotations

from io import StringIO

import pandas as pd
import pytest
import report_builder as build
from rich.cells import cell_len

from hottune.report import Format, beside, render
from hottune.report.schema import Report, Roofline
from hottune.routing.bound import Bandwidths

MACHINE = Bandwidths(cpu=90.5, hbm=2000, pcie_h2d=50, cpu_overlapped=60, pcie_overlapped=40)


def full() -> Report:
    scored = {"same_top_token": 63 / 64, "scored_positions": 64}
    cold = {"cold_turn_s": 6.9, "cold_decode_tok_s": 48.0}
    halves = {"cold_first_100_tok_s": 40.1, "cold_later_tok_s": 52.3}
    bound = {"bound_decode_tok_s": 98.4, "bound_share": 0.62}
    hot = build.hot().model_copy(update={"kld_to_all_cpu": 0.00312} | scored | cold | halves | bound)
    cpu = build.all_cpu().model_copy(update={"kld_to_all_cpu": 0.0, "same_top_token": 1.0} | cold)
    cpu = cpu.model_copy(update={"scored_positions": 64})
    return build.report(arms=[cpu, build.layers(), hot], roofline=Roofline(bandwidths=MACHINE))


@pytest.mark.parametrize("format", [Format.TERMINAL, Format.MARKDOWN_LONG])
def test_quality_cold_start_and_roofline_are_told_in_words(format: Format) -> None:
    text = " ".join(render(full(), format, width=160, color=False).split())
    assert "hot: KL divergence 0.0031 nats a position, same top token at 98.4% of 64 positions" in text
    assert "all-cpu, again: KL divergence 0 nats" in text
    assert "hot: first turn 6.90 s (warm 5.90), decode 48.0 tok/s (warm 61.0)" in text
    assert "its first 100 tokens at 40.1 tok/s, the rest at 52.3" in text
    assert "hot: decode 61.0 of at most 98.4 tok/s at the measured hit rate, 62.0%" in text
    assert "RAM to CPU 90.5 (60.0 beside uploads)" in text


def test_the_divergence_stands_in_the_row_of_the_speeds() -> None:
    text = render(full(), Format.TERMINAL, width=120, color=False)
    row = next(line for line in text.splitlines() if "hot, 3 runs" in line)
    assert "61.0" in row
    assert "0.0031" in row


@pytest.mark.parametrize("width", [80, 100])
def test_a_full_report_fits_a_narrow_terminal(width: int) -> None:
    report = full()
    lines = render(report, Format.TERMINAL, width=width, color=False).splitlines()
    assert [line for line in lines if cell_len(line) > width] == [report.winner.command]
    assert any("0.0031" in line and "61.0" in line for line in lines)


def test_a_small_divergence_is_not_rounded_to_none() -> None:
    arm = build.hot()
    words = {value: beside.kld(arm.model_copy(update={"kld_to_all_cpu": value})) for value in (0, 1e-6, 0.2)}
    assert words == {0: "0", 1e-6: "< 0.0001", 0.2: "0.2000"}
    assert beside.kld(arm) == beside.NOTHING


def test_without_bandwidths_the_report_says_why_there_is_no_bound() -> None:
    report = build.report(roofline=Roofline(reason="a virtual GPU has none"))
    assert beside.roofline(report) == ["No bound: a virtual GPU has none."]
    assert beside.roofline(build.report()) == []


def test_arms_that_were_not_scored_say_nothing() -> None:
    assert beside.quality(build.report()) == []
    assert beside.cold_start(build.report()) == []


def test_a_spreadsheet_gets_every_number() -> None:
    rows = pd.read_csv(StringIO(render(full(), Format.CSV))).set_index("arm")
    assert rows.loc["hot", "kld_to_all_cpu"] == pytest.approx(0.00312)
    assert rows.loc["hot", "bound_share"] == pytest.approx(0.62)
    assert rows.loc["hot", "cold_turn_s"] == pytest.approx(6.9)
    assert pd.isna(rows.loc["layers", "kld_to_all_cpu"])
