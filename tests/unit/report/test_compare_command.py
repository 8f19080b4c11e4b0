"""`hottune compare` as a user types it: who is meant, what is printed, exit codes."""

import json
from pathlib import Path

import pytest
import report_builder as build
import typer
from typer.testing import CliRunner

from hottune.cli.compare import compare as command
from hottune.report import save

PUBLISHED = Path(__file__).parents[3] / "reports"

app = typer.Typer()
app.command()(command)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(build.report(study="before"), tmp_path / "reports")
    slower = [build.measurement(3000.0 + d, 40.0 + d, 9.0 + d / 100) for d in (0, 1, 2)]
    after = [build.all_cpu(), build.arm("hot", build.placement(hot_k=12), slower), build.fit_not_engaged()]
    save(build.report(study="after", arms=after), tmp_path / "reports")
    save(build.report(study="none", winner=None), tmp_path / "reports")
    save(build.report(study="rows", arms=[build.layers(), build.layers(), build.hot()]), tmp_path / "reports")
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_winners_of_two_studies_with_what_differs_between_them():
    result = run("before", "reports/after.json")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == [
        "A",
        "before:hot",
        "ncmoe",
        "48",
        "+",
        "hot",
        "22/60",
        "ub",
        "512",
        "3",
        "runs",
    ]
    assert [line.split() for line in lines if line.startswith("hot_k")] == [["hot_k", "22", "12"]]
    assert "threads" not in result.stdout
    (decode,) = [line for line in lines if line.startswith("decode")]
    assert decode.split()[2:5] == ["61.0", "41.0", "0.67×"]
    assert decode.endswith("slower")
    assert "Welch's t on log values, unpaired, n=3 and 3" in result.stdout


def test_arms_by_name_and_all_of_them():
    named = run("before:layers", "before:hot", "--json")
    assert [arm["name"] for arm in json.loads(named.stdout)["arms"]] == ["before:layers", "before:hot"]
    every = run("before", "--all-arms", "--json")
    arms = [arm["name"] for arm in json.loads(every.stdout)["arms"]]
    assert arms == ["before:all-cpu", "before:layers", "before:hot"]


def test_a_file_with_a_colon_in_its_name_means_itself(folder):
    (folder / "day:hot").write_text((folder / "reports/after.json").read_text(encoding="utf-8"))
    result = run("before", "day:hot", "--json")
    assert json.loads(result.stdout)["arms"][1]["name"] == "day:hot:hot"


def test_rows_of_one_name_are_numbered():
    refused = run("rows:layers", "rows")
    assert refused.exit_code == 42
    assert "layers#1" in refused.stderr
    result = run("rows:layers#2", "rows", "--json")
    assert json.loads(result.stdout)["arms"][0]["name"] == "rows:layers#2"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["before"], 42, "only one arm"),
        (["before", "nowhere"], 51, "nowhere"),
        (["before", "nowhere:hot"], 51, "no report or study named 'nowhere'"),
        (["before", "after:fit"], 61, "ended as not engaged"),
        (["before", "after:probe"], 42, "has no arm named 'probe'"),
        (["before", "none"], 61, "recommends no arm"),
        (["before", "after", "--fail-below", "0"], 42, "above 0"),
        (["before", "after", "--metric", "speed", "--fail-below", "1"], 2, "speed"),
    ],
)
def test_what_cannot_be_done_has_its_exit_code_and_says_why(arguments, code, said):
    result = run(*arguments)
    assert result.exit_code == code
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_result_of_another_ceiling_needs_leave(folder):
    save(build.report(study="larger", ceiling_mib=8192.0), folder / "reports")
    refused = run("before", "larger")
    assert refused.exit_code == 61
    assert "VRAM ceiling 5,120 MiB (before:hot) but 8,192 MiB (larger:hot)" in refused.stderr
    allowed = run("before", "larger", "--allow-different")
    assert allowed.exit_code == 0
    assert allowed.stdout.index("Not alike") < allowed.stdout.index("speed ratio")


def test_a_regression_ends_with_62_and_its_reason_after_the_comparison():
    result = run("before", "after", "--fail-below", "0.97")
    assert result.exit_code == 62
    assert "FAILED B / A, turn: the interval's upper end" in result.stdout
    assert "is below 0.97" in result.stderr
    passed = run("after", "before", "--fail-below", "0.97", "--metric", "prefill")
    assert passed.exit_code == 0
    assert "passed B / A, prefill" in passed.stdout


def test_json_of_a_regression_is_one_document():
    result = run("before", "after", "--fail-below", "0.97", "--json")
    assert result.exit_code == 62
    data = json.loads(result.stdout)
    assert data["fail_below"][0]["failed"] is True
    assert data["against_first"][0]["changes"]["turn"]["verdict"] == "slower"


def test_published_results_compare():
    studies = [str(PUBLISHED / f"h200-{share}pct.json") for share in (17, 35)]
    result = run(*studies, "--allow-different")
    assert result.exit_code == 0
    assert "cache hits     56.6%  78.3%" in result.stdout


def test_quality_stands_there_only_where_both_arms_have_it(folder):
    arms = [
        arm.model_copy(update={"kld_to_all_cpu": kld})
        for arm, kld in ((build.all_cpu(), 0.0), (build.layers(), 0.00002), (build.hot(), None))
    ]
    save(build.report(study="scored", arms=arms), folder / "reports")
    lines = run("scored", "--all-arms").stdout.splitlines()
    assert [line.split()[-3:] for line in lines if line.startswith("KLD")] == [["0", "<", "0.0001"]]
    assert sum(line.startswith("decode") for line in lines) == 2


def test_a_verdict_by_holm_is_explained_where_there_is_one():
    assert "each interval is for its own" in " ".join(run("before", "--all-arms").stdout.split())
    assert "Holm" not in run("before", "after").stdout


def test_the_virtual_gpu_is_named_above_the_table(folder):
    for name in ("one", "two"):
        save(build.virtual_report(study=name), folder / "reports")
    result = run("one", "two")
    assert result.exit_code == 0
    assert result.stdout.index("Virtual GPU") < result.stdout.index("speed ratio")
