import json

import pytest
import report_builder as build
import typer
from typer.testing import CliRunner

from hottune.cli.report import report as command
from hottune.report import save

app = typer.Typer()
app.command()(command)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(build.report(), tmp_path / "reports")
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_study_name_means_its_result_in_the_reports_folder(folder):
    result = run("big-5gib")
    assert result.exit_code == 0
    assert "Use this: hot" in result.stdout


def test_a_file_means_itself_and_json_comes_back_whole(folder):
    result = run("reports/big-5gib.json", "--json")
    assert json.loads(result.stdout)["winner"]["arm"] == "hot"


@pytest.mark.parametrize(
    ("format", "start"),
    [
        ("markdown", "**Use this"),
        ("markdown-long", "**Use this"),
        ("csv", "study,"),
        ("json", "{"),
        ("jsonl", '{"build_commit": '),
        ("html", "<!DOCTYPE html>"),
    ],
)
def test_formats(folder, format, start):
    assert run("big-5gib", "--format", format).stdout.startswith(start)


def test_output_goes_to_the_file_and_only_there(folder):
    result = run("big-5gib", "--format", "markdown", "--output", "out/post.md")
    assert result.stdout == ""
    assert (folder / "out/post.md").read_text(encoding="utf-8").startswith("**Use this")


def test_output_that_cannot_be_written_is_a_clear_error(folder):
    (folder / "file").write_text("x")
    result = run("big-5gib", "--output", "file/post.md")
    assert result.exit_code == 42
    assert "cannot be written" in result.stderr


def test_an_unknown_study_names_those_that_are_there(folder):
    result = run("big-5gb")
    assert result.exit_code == 51
    assert "big-5gib" in result.stderr


def test_a_file_that_is_no_result_ends_with_code_60(folder):
    (folder / "other.json").write_text("{}")
    result = run("other.json", "--json")
    assert result.exit_code == 60
    assert json.loads(result.stdout)["error"]["type"] == "BadResultError"


def test_a_picture_goes_to_a_file_and_not_to_a_terminal(folder, monkeypatch):
    assert run("big-5gib", "--format", "png", "--output", "out.png").exit_code == 0
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    assert run("big-5gib", "--format", "png").stdout_bytes.startswith(b"\x89PNG"), "a pipe takes it"
    monkeypatch.setattr("hottune.cli.report.sys", Terminal())
    refused = run("big-5gib", "--format", "png")
    assert refused.exit_code == 42
    assert "--output big-5gib.png" in refused.stderr


class Terminal:
    class stdout:
        @staticmethod
        def isatty():
            return True


def test_a_link_stands_in_the_markdown_and_must_be_one(folder):
    text = run("big-5gib", "--format", "markdown", "--link", "https://example.org/big.json").stdout
    assert "[big-5gib.json](https://example.org/big.json)" in text
    refused = run("big-5gib", "--format", "markdown", "--link", "javascript:alert(1)")
    assert refused.exit_code == 42
    assert "no address" in refused.stderr
