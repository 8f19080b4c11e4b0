"""`hottune bench`: what its options mean together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hottune.cli.app import app
from hottune.errors import BadSettingError


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--profile", "uses.json"], "--profile without a cache"),
        (["--save-profile", "uses.json"], "--save-profile without a cache"),
        (["--hot-k", "4", "--profile", "absent.json"], "no file"),
        (["--spec-ngram", "3"], "--spec-type none"),
        (["--spec-ngram", "3", "--spec-type", "ngram-cache"], "--spec-type ngram-cache"),
    ],
)
def test_options_that_would_do_nothing_are_refused_before_anything_is_built(
    options: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["bench", "demo", *options, "--json"])
    assert ended.exit_code == BadSettingError.exit_code
    assert what in json.loads(ended.stdout)["error"]["what"]
