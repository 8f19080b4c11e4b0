"""`hottune run`, `bench` and `studies` with real servers on the virtual GPU."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from hottune_command import Command, require_engine
from typer.testing import CliRunner

from hottune.cli.app import app
from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.facts import Backend
from hottune.report import load
from hottune.tasks import prepare

pytestmark = pytest.mark.real

SMALL = ("demo", "--backend", "cpu", "--scale", "0.1")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    require_engine()
    return Command(tmp_path_factory.mktemp("work"))


def test_a_run_ends_with_baselines_trials_a_confirmed_winner_and_its_files(command: Command) -> None:
    ended = command.run("run", *SMALL, "--trials", "3", "--replicates", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert list(arms) == ["all-cpu", "layers", "fit", "hot"]
    assert all(arm["outcome"] == "measurement" for arm in arms.values()), ended.stderr
    assert all(len(arm["replicates"]) == 2 for arm in arms.values())
    assert all(0 < arm["vram_peak_mib"] <= 1.02 * report["ceiling_mib"] for arm in arms.values())
    assert arms["hot"]["hit_rate"] > 0
    assert all(arm["text_equal"] for arm in arms.values())
    assert report["winner"]["arm"] in arms
    assert sum(1 for trial in report["trials"] if trial["arm"] is None) == 3
    saved = list((command.folder / "reports").glob("*.json"))
    assert [load(path).study for path in saved] == [report["study"]]
    assert saved[0].with_suffix(".md").exists()
    assert "these numbers show the tool, not a gain" in ended.stderr


def test_a_finished_run_measures_nothing_again_and_is_listed(command: Command) -> None:
    first = command.run("run", *SMALL, "--trials", "3", "--replicates", "2", "--json")
    again = command.run("run", *SMALL, "--trials", "3", "--replicates", "2", "--json")
    assert first.returncode == again.returncode == 0, again.stderr
    first_report, second = json.loads(first.stdout), json.loads(again.stdout)
    assert first_report["trials"] == second["trials"]
    listed = json.loads(command.run("studies", "list", "--json").stdout)
    assert second["study"] in [one["name"] for one in listed]
    shown = command.run("studies", "show", second["study"], "--json")
    assert len(json.loads(shown.stdout)["trials"]) == len(second["trials"])


def test_the_cache_is_on_with_hot_k_and_off_without_and_the_text_is_the_same(
    command: Command,
) -> None:
    on = command.run("bench", *SMALL, "--hot-k", "16", "--json")
    off = command.run("bench", *SMALL, "--hot-k", "0", "--json")
    assert on.returncode == off.returncode == 0, on.stderr + off.stderr
    with_cache, without = json.loads(on.stdout), json.loads(off.stdout)
    assert with_cache["hit_rate"] > 0
    assert with_cache["hot_engaged"] is True
    assert without["hit_rate"] is None
    assert without["outcomes"][0]["engagement"]["hot"] is None
    assert with_cache["text_sha256"] == without["text_sha256"]


def test_a_device_that_cannot_be_loaded_is_never_a_measurement(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = find_engine(BuildOptions(backend=Backend.CPU), cache_dir=cache_dir())
    assert build is not None
    broken = tmp_path / "libggml-hot.so"
    broken.write_bytes(b"no library")
    hidden = build.model_copy(update={"device_library": broken})
    monkeypatch.setattr(prepare, "build_engine", lambda *_, **__: hidden)
    ended = CliRunner().invoke(app, ["bench", *SMALL, "--hot-k", "16", "--json", "--quiet"])
    assert ended.exit_code == 32
    assert json.loads(ended.stdout)["outcomes"][0]["kind"] == "not_engaged"


def test_a_taken_port_has_its_own_exit_code(command: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = command.run("bench", *SMALL, "--port", str(taken.getsockname()[1]))
    assert ended.returncode == 30
    assert "--port" in ended.stderr


def test_a_ceiling_below_the_model_has_its_own_exit_code(command: Command) -> None:
    ended = command.run("run", *SMALL, "--vram", "5MiB", "--json")
    assert ended.returncode == 40
    assert json.loads(ended.stdout)["error"]["type"] == "CeilingTooSmallError"


def test_a_placement_above_the_ceiling_runs_out_of_memory_for_real(command: Command) -> None:
    ended = command.run("bench", *SMALL, "--n-cpu-moe", "0", "--json")
    assert ended.returncode == 31
    assert json.loads(ended.stdout)["outcomes"][0]["kind"] == "out_of_memory"


def test_a_dry_run_prints_every_command_and_starts_nothing(command: Command) -> None:
    ended = command.run("run", *SMALL, "--trials", "3", "--dry-run", "--json", "--study", "dry")
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout)
    assert [one["arm"] for one in shown["servers"]] == ["all-cpu", "layers", "fit", "hot", "hot", "hot"]
    fit = next(one for one in shown["servers"] if one["arm"] == "fit")
    assert "-fit" in fit["argv"]
    assert not {"-ngl", "-ncmoe", "-ot"} & set(fit["argv"])
    assert not (command.folder / "studies" / "dry.db").exists()
