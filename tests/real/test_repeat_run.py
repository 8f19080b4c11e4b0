"""Someone who has only the Markdown repeats the run on a fresh clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hottune_command import ROOT, Command, require_engine

from hottune.cli.common import cache_dir

pytestmark = pytest.mark.real


def shell_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)\n```$", markdown, re.MULTILINE | re.DOTALL)


def fresh_clone(folder: Path) -> Path:
    """Copy what a clone would have, and what is not committed; its environment is the one of this test."""
    clone = folder / "clone"
    # Whoever owns the checkout: git refuses those of others.
    listing = [
        "git",
        "-c",
        "safe.directory=*",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "-co",
        "--exclude-standard",
    ]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # else it was deleted, and that is not committed yet
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    # `make setup` makes .venv unless it is newer than pyproject.toml: here it has this Python's packages.
    binaries = clone / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, code in (("python", '"$@"'), ("hottune", '-m hottune.cli.app "$@"')):
        script = binaries / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{clone}" exec "{sys.executable}" {code}\n')
        script.chmod(0o755)
    assert "$(VENV)/.installed" in (ROOT / "Makefile").read_text(), "the Makefile has another way to set up"
    (clone / ".venv" / ".installed").touch()
    return clone


def test_the_command_in_the_markdown_runs_on_a_fresh_clone(tmp_path: Path) -> None:
    require_engine()
    first = Command(tmp_path / "first")
    first.folder.mkdir()
    small = ("--scale", "0.1", "--trials", "2", "--replicates", "2", "--top", "1", "--study", "demo-again")
    ended = first.run("run", "demo", *small)
    assert ended.returncode == 0, ended.stderr
    markdown = (first.folder / "reports" / "demo-again.md").read_text(encoding="utf-8")

    clone, home = fresh_clone(tmp_path), tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "HOTTUNE_CACHE": str(cache_dir()), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-e", "-c", shell_blocks(markdown)[0]],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before = json.loads((first.folder / "reports" / "demo-again.json").read_text())
    after = json.loads((clone / "reports" / "demo-again.json").read_text())
    assert [arm["name"] for arm in after["arms"]] == [arm["name"] for arm in before["arms"]]
    for part in ("ceiling_mib", "workload", "objective"):
        assert after[part] == before[part]
    assert after["model"]["fingerprint"] == before["model"]["fingerprint"]
