"""What a name or a file means: to `hottune report`, and, in the same way, to compare, share and serve."""

import json
import shutil
import sqlite3
from contextlib import closing

import planned_study
import pytest
import report_builder as build
import typer
from typer.testing import CliRunner

from hottune.cli.compare import compare as compare_command
from hottune.cli.report import report as command
from hottune.cli.serve import _find as to_serve
from hottune.cli.share import share as share_command
from hottune.errors import StudyNotFoundError
from hottune.report import save
from hottune.search.catalogue import reopen
from hottune.search.storage import sqlite_url

app = typer.Typer()
for one in (command, compare_command, share_command):
    app.command()(one)


def run(*arguments: str):
    return CliRunner().invoke(app, ["report", *arguments, "--format", "markdown-long"])


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A folder in which a study was run: studies/one.db, reports/one.*"""
    folder = tmp_path_factory.mktemp("studied")
    planned_study.run(folder, study="one")
    # A process that ends does this; here it goes on.
    with closing(sqlite3.connect(folder / "studies" / "one.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, studied):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(studied / "studies", tmp_path / "studies")
    return tmp_path


def test_a_name_is_the_stored_study_and_needs_no_reports_folder(folder):
    result = run("one")
    assert result.exit_code == 0, result.stderr
    assert "Use this: " in result.stdout


def test_the_stored_study_goes_before_a_report_of_the_same_name(folder):
    save(build.report(study="one"), folder / "reports")
    assert "Big-30B" not in run("one").stdout
    assert "Big-30B" in run("reports/one.json").stdout, "a path means the file"


def test_a_report_without_its_study_is_found(folder):
    save(build.report(study="two"), folder / "reports")
    assert "Big-30B" in run("two").stdout


def test_a_database_file_is_its_study_wherever_it_lies(folder):
    (folder / "studies" / "one.db").rename(folder / "copy.sqlite")
    shutil.rmtree(folder / "studies")
    assert "Use this: " in run("copy.sqlite").stdout
    url = sqlite_url(folder / "copy.sqlite")
    assert "Use this: " in run("one", "--storage", url).stdout
    missing = run("other", "--storage", url)
    assert missing.exit_code == 51
    assert "Here: one" in missing.stderr


def test_a_database_of_several_studies_asks_which(folder):
    url = sqlite_url(folder / "both.db")
    for name in ("a", "b"):
        planned_study.run(folder / "work", study=name, storage=url)
    result = run("both.db")
    assert result.exit_code == 51
    assert "2 studies" in result.stderr
    assert "a, b" in result.stderr
    assert "Use this: " in run("b", "--storage", url).stdout


def test_an_old_study_falls_back_to_its_result_file_and_says_so(folder):
    reopen("one", [sqlite_url(folder / "studies" / "one.db")]).note("basis", None)
    alone = run("one")
    assert alone.exit_code == 60
    assert "hottune studies resume one" in alone.stderr
    save(build.report(study="one"), folder / "reports")
    helped = run("one")
    assert "Big-30B" in helped.stdout
    assert "reports/one.json" in helped.stderr
    asked = run("studies/one.db")
    assert asked.exit_code == 60
    assert "reports/one.json" in asked.stderr


def test_a_damaged_storage_does_not_hide_a_result_file(folder):
    save(build.report(study="two"), folder / "reports")
    (folder / "studies" / "broken.db").write_bytes(b"no database, but long enough to be taken for one" * 9)
    result = run("two")
    assert "Big-30B" in result.stdout
    assert "broken.db" in result.stderr
    assert "reports/two.json" in result.stderr
    assert run("three").exit_code == 50


def test_an_unknown_name_tells_what_is_there(folder):
    save(build.report(study="two"), folder / "reports")
    result = run("ones")
    assert result.exit_code == 51
    assert "one" in result.stderr


def test_a_file_is_itself_also_beside_a_storage(folder):
    save(build.report(study="two"), folder / "reports")
    url = sqlite_url(folder / "studies" / "one.db")
    assert "Big-30B" in run("reports/two.json", "--storage", url).stdout


def test_an_address_is_told_where_it_belongs(folder):
    result = run("http://127.0.0.1:1/v1")
    assert result.exit_code == 51
    assert "bench --endpoint" in result.stderr


# --- other commands ---


def test_stored_studies_are_compared_as_their_result_files_are(folder, studied):
    results = ["one:layers", "studies/one.db:hot", str(studied / "reports" / "one.json")]
    result = CliRunner().invoke(app, ["compare", *results, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [arm["name"] for arm in found["arms"]] == ["one:layers", "one:hot", "one:hot"]
    assert found["arms"][1] | {"letter": "C"} == found["arms"][2]


def test_compare_and_share_look_into_another_storage(folder):
    (folder / "studies" / "one.db").rename(folder / "far.db")
    url = sqlite_url(folder / "far.db")
    compared = CliRunner().invoke(app, ["compare", "one:layers", "one", "--storage", url])
    assert compared.exit_code == 0, compared.stderr
    shared = CliRunner().invoke(app, ["share", "one", "--storage", url, "--yes"])
    assert shared.exit_code == 0, shared.stderr
    assert (folder / "share" / "one.json").is_file()


def test_what_a_study_confirmed_is_served_without_its_report(folder):
    found = to_serve("one", None, None)
    assert (found.study, found.arm, found.confirmed) == ("one", "hot", True)
    url = sqlite_url(folder / "studies" / "one.db")
    assert to_serve("one", None, url) == to_serve("studies/one.db", None, None) == found
    assert to_serve("one", "layers", None).arm == "layers"
    with pytest.raises(StudyNotFoundError):
        to_serve("two", None, url)


def test_of_an_unfinished_study_the_last_result_is_served_or_else_the_best_of_its_search(folder):
    journal = reopen("one", [sqlite_url(folder / "studies" / "one.db")])
    basis = journal.noted("basis")
    basis["config"]["replicates"] = 9  # more than there are
    journal.note("basis", basis)
    journal.note("finished", None)
    assert not to_serve("one", None, None).confirmed
    save(build.report(study="one"), folder / "reports")
    assert to_serve("one", None, None).model.name.startswith("Big-30B")
    assert not to_serve("studies/one.db", None, None).confirmed, "the result may be of another study"
