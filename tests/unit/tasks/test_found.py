"""What a name or a file means to `hottune report`."""

import shutil
import sqlite3
from contextlib import closing

import planned_study
import pytest
import report_builder as build
import typer
from typer.testing import CliRunner

from hottune.cli.report import report as command
from hottune.report import save
from hottune.search.catalogue import reopen
from hottune.search.storage import sqlite_url

app = typer.Typer()
app.command()(command)


def run(*arguments: str):
    return CliRunner().invoke(app, [*arguments, "--format", "markdown-long"])


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


def test_an_unknown_name_tells_what_is_there(folder):
    save(build.report(study="two"), folder / "reports")
    result = run("ones")
    assert result.exit_code == 51
    assert "one" in result.stderr
