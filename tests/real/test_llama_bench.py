"""The JSONL has exactly the keys and types that this very llama-bench writes."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from hottune_command import require_engine

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine
from hottune.models.demo import demo_path
from hottune.report import Format, load, render
from hottune.report.jsonl_file import rows
from hottune.report.schema import Report

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    require_engine()
    engine = find_engine(BuildOptions(backend="cpu"), cache_dir=cache_dir())
    assert engine is not None
    program = engine.llama_server.with_name("llama-bench")
    if not program.exists():
        pytest.skip("this engine was built without llama-bench")
    argv = [program, "-m", demo_path(), "-o", "jsonl", "-p", "0", "-n", "4", "-r", "2", "-t", "1"]
    done = subprocess.run(
        [*map(str, argv), "--repack", "0"], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0 and "--repack" in done.stderr:
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def report() -> Report:
    from hottune_command import ROOT

    return load(ROOT / "reports" / "h100-24gib.json")


def test_keys_and_their_order_are_those_of_llama_bench(theirs: dict[str, Any], report: Report) -> None:
    for row in rows(report):
        ours = [key for key in row if not key.startswith("hottune_")]
        assert ours == list(theirs)


def test_types_are_those_of_llama_bench(theirs: dict[str, Any], report: Report) -> None:
    for line in render(report, Format.JSONL).splitlines():
        row = json.loads(line)
        assert {key: type(row[key]) for key in theirs} == {key: type(value) for key, value in theirs.items()}
        for key in ("samples_ns", "samples_ts"):
            assert {type(item) for item in row[key]} <= {type(item) for item in theirs[key]}
            assert len(row[key]) == 3
