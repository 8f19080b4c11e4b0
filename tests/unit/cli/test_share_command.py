import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hottune.cli import share as module
from hottune.report import load
from hottune.report.private_text import Identity

ENDINGS = ("json", "md", "html")
SOURCE = Path(__file__).parents[3] / "reports" / "h100-24gib.json"

app = typer.Typer()
app.command()(module.share)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study of marlene's on her machine, in the reports folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "this_identity", lambda: Identity("marlene", "/home/marlene", ("kraken",)))
    data = json.loads(SOURCE.read_text(encoding="utf-8"))
    data["study"] = "marlene-24"
    data["command"] = "hottune run /home/marlene/models/big.gguf --worker kraken-gpu0"
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "marlene-24.json").write_text(json.dumps(data), encoding="utf-8")
    return tmp_path


def run(*arguments: str, **options):
    return CliRunner().invoke(app, list(arguments), **options)


def test_with_yes_the_redacted_result_is_written_and_nothing_private_is_in_it(folder):
    result = run("marlene-24", "--yes")
    assert result.exit_code == 0
    files = sorted(path.name for path in (folder / "share").iterdir())
    assert files == sorted(f"REDACTED-USER-24.{ending}" for ending in ENDINGS)
    for name in files:
        text = (folder / "share" / name).read_text(encoding="utf-8").lower()
        assert "marlene" not in text
        assert "kraken" not in text
    report = load(folder / "share" / "REDACTED-USER-24.json")
    assert report.command == "hottune run big.gguf --worker REDACTED-HOST-gpu0"
    assert report.winner == load(SOURCE).winner.model_copy(update={"command": report.winner.command})


def test_it_shows_what_was_replaced_masked_and_the_size_of_every_field(folder):
    shown = run("marlene-24", "--yes").stderr
    assert "user name" in shown
    assert "marlene-24" not in shown
    assert "command: hottune run big.gguf" in shown
    assert "trials" in shown
    assert "Nothing was sent" in shown


def test_where_nobody_can_be_asked_it_only_shows(folder):
    result = run("marlene-24")
    assert result.exit_code == 0
    assert "Add --yes" in result.stderr
    assert not (folder / "share").exists()


@pytest.mark.parametrize(("answer", "written"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks(folder, monkeypatch, answer, written):
    monkeypatch.setattr(module, "_can_ask", lambda: True)
    assert run("marlene-24", input=answer).exit_code == 0
    assert (folder / "share").exists() is written


def test_json_tells_the_same_to_programs(folder):
    facts = json.loads(run("marlene-24", "--json", "--yes", "--out", "post").stdout)
    assert {"path", "host name", "user name"} <= {item["kind"] for item in facts["replaced"]}
    assert "marlene" not in json.dumps(facts)
    assert [Path(name).name for name in facts["written"]] == [
        f"REDACTED-USER-24.{ending}" for ending in ENDINGS
    ]
    assert facts["bytes_after"]["command"] < facts["bytes_before"]["command"]


def test_the_result_itself_is_not_overwritten(folder):
    result = run(str(SOURCE), "--yes", "--out", str(SOURCE.parent))
    assert result.exit_code == 42
    assert "replace the result itself" in result.stderr


def test_a_folder_that_cannot_be_written_is_a_clear_error(folder):
    (folder / "file").write_text("x")
    result = run("marlene-24", "--yes", "--out", "file")
    assert result.exit_code == 42
    assert "cannot be written" in result.stderr


def test_an_unknown_study_is_a_clear_error(folder):
    assert run("no-such").exit_code == 51


def test_this_machine_has_a_home():
    assert module.this_identity().home == str(Path.home())


def test_a_picture_and_a_link_are_written_when_asked_for(folder):
    link = "https://example.org/result.json"
    assert run("marlene-24", "--yes", "--png", "--link", link).exit_code == 0
    assert (folder / "share" / "REDACTED-USER-24.png").read_bytes().startswith(b"\x89PNG")
    assert f"({link})" in (folder / "share" / "REDACTED-USER-24.md").read_text(encoding="utf-8")
    assert run("marlene-24", "--yes", "--link", "no link").exit_code == 42
