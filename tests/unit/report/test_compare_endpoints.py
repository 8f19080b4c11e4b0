"""Endpoints beside results: what is compared, what is warned of, what stands in the way."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
import report_builder as build
import typer
from typer.testing import CliRunner

from hottune.cli.compare import compare as compare_command
from hottune.cli.report import report as report_command
from hottune.cli.share import share as share_command
from hottune.errors import BadResultError, NotComparableError
from hottune.machine.facts import Machine
from hottune.report import load_any, save
from hottune.report.endpoint import EndpointPass, EndpointResult
from hottune.tasks.comparable import Chosen
from hottune.tasks.comparison import compare
from hottune.tasks.endpoint_compared import ChosenEndpoint
from hottune.workload.endpoint_facts import EndpointSample

STUDY = build.report(study="mine")
SAMPLE = EndpointSample(
    workload="chat",
    warmup=False,
    asked_prompt_tokens=100,
    asked_output_tokens=50,
    prompt_tokens=100,
    output_tokens=50,
    counted="usage",
    ttft_ms=100,
    decode_ms=1000,
    turn_s=1.1,
    started_s=0,
    chunk_ms=[1000 / 49] * 49,
    text_sha256="t",
)


def endpoint(decode: list[float], *, machine: Machine | None = STUDY.machine, **changes) -> EndpointResult:
    passes = [
        EndpointPass(
            started=datetime(2026, 1, 1, tzinfo=UTC),
            prefill_tok_s=1000.0,
            decode_tok_s=speed,
            ttft_ms=100.0,
            turn_s=300 / speed,
            as_asked=True,
            requests=[SAMPLE],
        )
        for speed in decode
    ]
    said = {
        "hottune_version": "0",
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "command": "hottune bench --endpoint http://127.0.0.1:1/v1",
        "label": "other",
        "url": "http://127.0.0.1:1/v1",
        "loopback": machine is not None,
        "machine": machine,
        "model": "owner/model",
        "server": {"owned_by": "vllm", "version": "0.9"},
        "route": "completions",
        "fields": ["extensions", "seed", "usage"],
        "prompts": "exact",
        "round_trip_ms": 0.5,
        "workload": STUDY.workload,
        "passes": passes,
    }
    return EndpointResult(**(said | changes))


def live(decode: list[float], **changes) -> ChosenEndpoint:
    return ChosenEndpoint("other", endpoint(decode, **changes))


def mine() -> Chosen:
    return Chosen("mine:hot", STUDY, next(arm for arm in STUDY.arms if arm.name == "hot"))


def codes(found) -> list[str]:
    return [note.code for note in found.warnings]


def test_an_endpoint_is_compared_with_a_study_and_says_what_that_is_worth() -> None:
    found = compare([mine(), live([30.0, 31.0, 32.0])])
    row = found.against_first[0]
    assert not row.paired
    assert row.changes["decode"].verdict == "slower"
    assert row.changes["decode"].ratio == pytest.approx(31 / 61, rel=0.02)
    assert [arm.timed for arm in found.arms] == ["server", "client"]
    assert codes(found) == ["client-timed", "one-server", "unchecked-model", "loopback", "unpaired"]
    assert "B: timed by the client, A by the server" in found.warnings[0].text
    assert not found.obstacles


def test_an_endpoint_may_come_first_and_two_may_be_compared() -> None:
    found = compare([live([30.0, 31.0]), mine(), live([60.0, 61.0], server={"owned_by": "llamacpp"})])
    assert [change.changes["decode"].verdict for change in found.against_first] == ["faster", "faster"]
    assert "A, C: timed by the client, B by the server" in found.warnings[0].text
    both = compare([live([30.0, 31.0]), live([60.0, 61.0], server={"owned_by": "llamacpp"})])
    assert "All timed by the client" in both.warnings[0].text
    assert {row.setting for row in both.differences} == {"endpoint's software", "endpoint's build"}


def test_an_unknown_machine_is_a_warning_and_a_known_other_one_an_obstacle() -> None:
    assert "unknown-machine" in codes(compare([mine(), live([30.0], machine=None)]))
    elsewhere = STUDY.machine.model_copy(update={"ram_total_mib": 4 * STUDY.machine.ram_total_mib})
    with pytest.raises(NotComparableError, match="memory"):
        compare([mine(), live([30.0], machine=elsewhere)])


def test_another_workload_is_an_obstacle() -> None:
    work = STUDY.workload.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(NotComparableError, match="workload"):
        compare([mine(), live([30.0], workload=work)])


def test_turns_of_other_lengths_are_not_compared() -> None:
    passes = [one.model_copy(update={"as_asked": False}) for one in endpoint([30.0, 31.0]).passes]
    found = compare([mine(), live([], passes=passes)])
    assert "turn" not in found.against_first[0].changes
    assert "no-turn" in codes(found)


def test_a_pass_that_is_the_first_ones_own_is_named() -> None:
    assert "same-measurements" in codes(compare([live([30.0, 31.0]), live([30.0, 31.0])]))


# --- commands ---

app = typer.Typer()
for one in (compare_command, report_command, share_command):
    app.command()(one)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(STUDY, tmp_path / "reports")
    text = endpoint([30.0, 31.0, 32.0]).model_dump_json()
    (tmp_path / "reports" / "endpoint-other.json").write_text(text, encoding="utf-8")
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_files_of_endpoints_are_results_to_compare(folder) -> None:
    shown = run("compare", "mine", "endpoint-other")
    assert shown.exit_code == 0, shown.stderr
    assert "vllm 0.9, /completions" in shown.stdout and "3 passes" in shown.stdout
    assert "Warning: B: timed by the client" in " ".join(shown.stdout.split())
    refused = run("compare", "mine", "endpoint-other:hot")
    assert refused.exit_code == 42 and "no arms" in refused.stderr


def test_they_are_shown_and_come_back_as_they_were(folder) -> None:
    assert "pass 3" in run("report", "endpoint-other").stdout
    path = folder / "reports" / "endpoint-other.json"
    assert load_any(path) == endpoint([30.0, 31.0, 32.0])
    assert json.loads(run("report", "endpoint-other", "--json").stdout)["kind"] == "endpoint"


def test_what_needs_arms_says_that_there_are_none(folder) -> None:
    for arguments in (("report", "endpoint-other", "--format", "csv"), ("share", "endpoint-other", "--yes")):
        refused = run(*arguments)
        assert refused.exit_code == 60
        assert "of an endpoint" in refused.stderr and "posted as it is" in refused.stderr


@pytest.mark.parametrize(("change", "said"), [({"schema_version": 99}, "newer"), ({"passes": 3}, "passes")])
def test_damaged_files_are_refused(folder, change, said) -> None:
    path = folder / "reports" / "endpoint-other.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(BadResultError, match=said):
        load_any(path)
