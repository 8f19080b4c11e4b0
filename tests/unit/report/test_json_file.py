import json

import pytest
import report_builder as build
from hypothesis import given, settings
from hypothesis import strategies as st

from hottune.errors import BadResultError
from hottune.report import Format, load, render, save
from hottune.report.json_file import JsonRenderer
from hottune.report.schema import SCHEMA_VERSION, Report

numbers = st.floats(min_value=1e-6, max_value=1e12, allow_nan=False)


@given(prefill=numbers, decode=numbers, turn=numbers, ratio=numbers, low=st.none() | numbers)
@settings(max_examples=50)
def test_a_report_comes_back_as_it_was(prefill, decode, turn, ratio, low):
    run = build.measurement(prefill, decode, turn)
    arm = build.arm("layers", build.placement(), [run], versus_decode=build.change(ratio, low, low))
    report = build.report(arms=[arm, build.out_of_memory_arm(), build.fit_not_engaged()])
    assert Report.model_validate_json(JsonRenderer().render(report)) == report


def test_saved_files_are_json_markdown_and_html_and_can_be_loaded(tmp_path):
    report = build.virtual_report()
    paths = save(report, tmp_path / "reports")
    assert [path.name for path in paths] == ["big-5gib.json", "big-5gib.md", "big-5gib.html"]
    assert load(paths[0]) == report
    assert paths[1].read_text(encoding="utf-8") == render(report, Format.MARKDOWN)
    assert paths[2].read_text(encoding="utf-8") == render(report, Format.HTML)


def test_a_study_name_cannot_leave_the_folder(tmp_path):
    paths = save(build.report(study="../../etc/x y"), tmp_path)
    assert {path.parent for path in paths} == {tmp_path}
    assert paths[0].name == "etc-x-y.json"


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    save(build.report(), tmp_path)
    before = (tmp_path / "big-5gib.json").read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save(build.report(seconds=9.0), tmp_path)
    assert (tmp_path / "big-5gib.json").read_bytes() == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json", ".md"]


def bad(tmp_path, text: str) -> BadResultError:
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadResultError) as caught:
        load(path)
    assert caught.value.exit_code == 60
    assert caught.value.next_step
    return caught.value


def test_newer_schema_says_to_update(tmp_path):
    newer = json.loads(render(build.report(), Format.JSON)) | {"schema_version": SCHEMA_VERSION + 1, "new": 1}
    error = bad(tmp_path, json.dumps(newer))
    assert f"schema version {SCHEMA_VERSION + 1}" in error.what
    assert "Update hottune" in error.next_step


@pytest.mark.parametrize("text", ["", "{", "not json", "[" * 100_000, '{"a": 1'])
def test_what_is_not_json_is_refused(tmp_path, text):
    assert "is not JSON" in bad(tmp_path, text).what


@pytest.mark.parametrize(
    "data", [{}, [], 3, None, {"schema_version": "1"}, {"schema_version": True}, {"schema_version": 0}]
)
def test_json_of_another_program_is_refused(tmp_path, data):
    assert "not a result of hottune" in bad(tmp_path, json.dumps(data)).what


def test_a_result_with_a_missing_part_names_the_part(tmp_path):
    data = json.loads(render(build.report(), Format.JSON))
    del data["machine"]["cpu"]["name"]
    assert "machine.cpu.name" in bad(tmp_path, json.dumps(data)).what


def test_a_binary_or_missing_file_is_refused(tmp_path):
    binary = tmp_path / "x.json"
    binary.write_bytes(b"\xff\xfe\x00GGUF")
    with pytest.raises(BadResultError, match="is not JSON"):
        load(binary)
    with pytest.raises(BadResultError, match="cannot be read"):
        load(tmp_path / "missing.json")
