"""`make bench-device SMOKE=1` in small: real servers on the virtual GPU, the result file and its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hottune_command import ROOT, require_engine

from hottune.cli.common import cache_dir
from hottune.outcomes import Measurement
from hottune.report import load
from hottune.report.schema import Arm, Report

pytestmark = pytest.mark.real

SMALL = (
    "demo",
    "--backend",
    "cpu",
    "--ceilings",
    "50",
    "--ubatches",
    "64",
    "--scale",
    "0.05",
    "--threads",
    "1",
)


def bench_device(folder: Path, *arguments: str) -> tuple[Report, str]:
    """Run a sitting in a process of its own; return the result and what it printed."""
    require_engine()
    done = subprocess.run(
        [sys.executable, "-m", "bench.device", *SMALL, "--out", str(folder / "out.json"), *arguments],
        cwd=ROOT,
        env=os.environ | {"HOTTUNE_CACHE": str(cache_dir()), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load(folder / "out.json"), done.stdout


def by_name(report: Report) -> dict[str, Arm]:
    return {arm.name: arm for arm in report.arms}


def test_a_sitting_leaves_a_result_and_a_table_and_the_next_one_adds_to_it(tmp_path: Path) -> None:
    first, page = bench_device(tmp_path, "--arms", "layers,hot")
    arms = by_name(first)
    assert list(arms) == ["all-cpu", "layers", "hot"]
    assert all(arm.outcome == "measurement" for arm in arms.values()), page
    hot = arms["hot"]
    assert hot.cell is not None
    assert hot.cell.decode is not None
    assert hot.vram_peak_mib is not None
    assert hot.vram_peak_mib <= 1.02 * hot.cell.ceiling_mib
    assert hot.hit_rate is not None
    assert hot.hit_rate > 0
    assert hot.env["GGML_HOT_STREAM"] == "32"
    assert page == (tmp_path / "out.md").read_text()
    assert "Virtual GPU" in page.splitlines()[0]
    assert "| 50 % | hot | 64 |" in page
    again, _ = bench_device(tmp_path, "--arms", "layers,fit,hot", "--add", str(tmp_path / "out.json"))
    assert by_name(again)["fit"].outcome == "measurement"
    assert by_name(again)["hot"].replicates == hot.replicates


def test_two_rounds_are_fresh_servers_and_whole_layers_and_cache_share_a_ceiling(tmp_path: Path) -> None:
    report, page = bench_device(tmp_path, "--arms", "hot+layers", "--rounds", "2", "--stream", "0")
    both = by_name(report)["hot+layers"]
    assert both.outcome == "measurement", page
    assert both.placement.hot_k > 0
    assert 0 < both.placement.n_cpu_moe < report.model.shape.n_layers
    outcomes = [one.outcome for one in both.replicates]
    assert [isinstance(one, Measurement) and one.reused_server for one in outcomes] == [False, False]
    assert [one.position for one in both.replicates] == [1, 2], "A B, then B A"


def test_one_server_serves_all_ceilings_when_asked_to(tmp_path: Path) -> None:
    report, page = bench_device(
        tmp_path, "--arms", "hot", "--ceilings", "25,50", "--stream", "0", "--reuse", "--budget-s", "100"
    )
    hot = [arm.replicates[0].outcome for arm in report.arms if arm.name == "hot"]
    assert [isinstance(one, Measurement) and one.reused_server for one in hot] == [False, True], page
    slots = [one.engagement.hot.slots for one in hot if isinstance(one, Measurement) and one.engagement.hot]
    assert slots[0] < slots[1]
