"""Result files of older schema versions stay readable, with every number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report_builder as build
from hypothesis import given, settings
from hypothesis import strategies as st

from hottune.errors import BadResultError
from hottune.outcomes import Timeline
from hottune.report import Format, load, render, render_bytes
from hottune.report.migrations import STEPS, migrated
from hottune.report.schema import SCHEMA_VERSION, Report

REPORTS = Path(__file__).parents[3] / "reports"
FROZEN = Path(__file__).parent / "data" / "v1-demo-run.json"
OLD = [FROZEN, *sorted(REPORTS.glob("h*.json")), *sorted(REPORTS.glob("device/*.json"))]


def version_of(path: Path) -> int | None:
    data = json.loads(path.read_text(encoding="utf-8"))
    return data.get("schema_version") if isinstance(data, dict) else None


RESULTS = [path for path in OLD if version_of(path) == 1]


def within(old: Any, new: Any, where: str = "") -> list[str]:
    """Return the places where the new JSON lacks, or changed, what the old one has."""
    if isinstance(old, dict) and isinstance(new, dict):
        gone = [f"{where}.{key}" for key in old.keys() - new.keys()]
        return gone + [fault for key in old.keys() & new.keys() for fault in within(old[key], new[key], key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [fault for one, other in zip(old, new, strict=True) for fault in within(one, other, where)]
    return [] if old == new else [f"{where}: {old!r} became {new!r}"]


def without_timeline(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_timeline(item) for key, item in value.items() if key != "timeline"}
    return [without_timeline(item) for item in value] if isinstance(value, list) else value


def test_there_are_old_results_to_test_with():
    assert {FROZEN, REPORTS / "h100-24gib.json", REPORTS / "h200-17pct.json"} < set(RESULTS)
    assert sum(path.parent.name == "device" for path in RESULTS) > 5


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_an_old_result_keeps_everything_it_says(path):
    old = json.loads(path.read_text(encoding="utf-8"))
    report = load(path)
    assert report.schema_version == SCHEMA_VERSION
    new = json.loads(render(report, Format.JSON))
    # Moments are written in one of several equal ways: they are compared by the reader.
    assert [fault for fault in within(old, new) if "T" not in fault.partition(": ")[2]] == [
        f"schema_version: 1 became {SCHEMA_VERSION}"
    ]
    assert Report.model_validate(report.model_dump()) == report


@pytest.mark.parametrize("form", list(Format))
def test_the_frozen_result_renders_in_every_format(form):
    shown = render_bytes(load(FROZEN), form)
    assert form.is_binary or b"demo" in shown


def test_a_change_would_be_seen():
    assert within({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2, "c": 0}]}) == []
    assert within({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["b: 2 became 3"]
    assert within({"a": 1}, {}) == [".a"]


numbers = st.floats(min_value=1e-6, max_value=1e12, allow_nan=False)
texts = st.text(max_size=30)
runs = st.builds(
    build.measurement,
    numbers,
    numbers,
    numbers,
    st.sampled_from(["process", "device-change", "virtual"]),
    token_ms_p99=numbers,
    reused_server=st.booleans(),
    engagement=st.sampled_from([build.engagement(), build.engagement(hot=build.hot_stats())]),
)


@st.composite
def reports(draw) -> Report:
    """Reports as they were before there was a timeline."""
    arms = [
        build.arm("all-cpu", build.placement(), draw(st.lists(runs, min_size=1, max_size=3))),
        build.arm("hot", build.placement(hot_k=draw(st.integers(1, 99))), [draw(runs)], detail=draw(texts)),
        draw(st.sampled_from([build.out_of_memory_arm(), build.fit_not_engaged()])),
    ]
    return build.report(
        arms=draw(st.permutations(arms)),
        study=draw(texts),
        command=draw(texts),
        winner=draw(st.sampled_from([None, build.report().winner])),
        keep_free_mib=draw(numbers),
        min_prefill_tok_s=draw(st.none() | numbers),
        trials=draw(st.sampled_from([[], build.trials()])),
    )


@settings(max_examples=50)
@given(reports())
def test_any_report_as_version_1_wrote_it_reads_as_the_same(tmp_path_factory, report):
    old = without_timeline(json.loads(report.model_dump_json())) | {"schema_version": 1}
    before = json.dumps(old)
    path = tmp_path_factory.mktemp("old") / "result.json"
    path.write_text(before, encoding="utf-8")
    assert load(path) == report
    migrated(old, SCHEMA_VERSION)
    assert json.dumps(old) == before, "the file's own JSON is left alone"


def test_every_older_version_has_its_step():
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))


def test_a_file_of_today_goes_through_no_step(tmp_path):
    line = Timeline(at_s=[0.25, 0.5], vram_mib=[8.0, 9.0], hits=[1, 4], misses=[3, 0])
    run = build.measurement(timeline=line)
    report = build.report(arms=[build.arm("layers", build.placement(), [run])])
    path = tmp_path / "result.json"
    path.write_text(render(report, Format.JSON), encoding="utf-8")
    assert load(path) == report


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (SCHEMA_VERSION + 1, f"schema version {SCHEMA_VERSION + 1}"),
        (10**9, "schema version 1000000000"),
        (0, "schema_version is 0"),
        (-1, "schema_version is -1"),
        (True, "schema_version is true"),
        (None, "schema_version is null"),
        ("2", 'schema_version is "2"'),
        (1.5, "schema_version is 1.5"),
        ([1] * 1000, "schema_version is [1, 1"),
    ],
)
def test_an_unknown_version_is_named(tmp_path, version, said):
    data = json.loads(FROZEN.read_text(encoding="utf-8")) | {"schema_version": version}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(BadResultError) as caught:
        load(path)
    assert said in caught.value.what
    assert caught.value.exit_code == 60
    assert len(caught.value.what) < 300


def test_a_missing_version_is_told(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(BadResultError, match="it has no schema_version"):
        load(path)
