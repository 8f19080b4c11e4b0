"""`hottune run`, `bench` and `studies` with real servers on the virtual GPU."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

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
    assert list(arms) == ["all-cpu", "layers", "fit", "hot", "hot-2"]
    assert all(arm["outcome"] == "measurement" for arm in arms.values()), ended.stderr
    assert all(len(arm["replicates"]) == 2 for arm in arms.values())
    assert all(0 < arm["vram_peak_mib"] <= 1.02 * report["ceiling_mib"] for arm in arms.values())
    assert arms["hot"]["hit_rate"] > 0
    assert arms["hot"]["placement"] != arms["hot-2"]["placement"]
    assert report["confirmation"] == {"rounds": 2, "level": 0.95, "ended": "fixed"}
    assert all(arm["text_equal"] for arm in arms.values())
    assert all(arm["scored_positions"] == 64 for arm in arms.values()), ended.stderr
    assert all(0 <= arm["kld_to_all_cpu"] < 0.01 and arm["same_top_token"] > 0.9 for arm in arms.values())
    assert all(arm["cold_turn_s"] > 0 and arm["cold_decode_tok_s"] > 0 for arm in arms.values())
    assert all(arm["bound_share"] is None for arm in arms.values())
    assert "virtual GPU" in report["roofline"]["reason"]
    assert report["winner"]["arm"] in arms
    assert sum(1 for trial in report["trials"] if trial["arm"] is None) == 3
    outcomes = [one["outcome"] for arm in arms.values() for one in arm["replicates"]]
    outcomes += [one["outcome"] for one in report["trials"] if one["outcome"]["kind"] == "measurement"]
    states = [outcome["machine_state"] for outcome in outcomes]
    assert all(state["settled"] and state["during"]["swap_growth_mib"] is not None for state in states)
    for outcome in outcomes:
        hot, line = outcome["engagement"]["hot"], outcome["timeline"]
        if hot is not None:  # without a cache, the virtual GPU answers nobody while it runs
            assert line["at_s"] == sorted(line["at_s"])
            assert len(line["at_s"]) == len(line["vram_mib"]) == len(line["hits"]) <= 60
            assert 0 < sum(line["hits"]) <= hot["hits"]
            assert sum(line["misses"]) <= hot["misses"]
            assert 0 < max(line["vram_mib"]) <= outcome["vram_peak_mib"] + 0.1
    assert report["ballast"] is None, "the virtual GPU has just the ceiling's size"
    saved = list((command.folder / "reports").glob("*.json"))
    assert [load(path).study for path in saved] == [report["study"]]
    assert saved[0].with_suffix(".md").exists()
    assert saved[0].with_suffix(".html").exists()
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


def benched(command: Command, *options: str) -> dict[str, Any]:
    ended = command.run("bench", *SMALL, *options, "--json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_requests_of_several_users_at_once_hit_the_cache_in_their_batches(command: Command) -> None:
    several = benched(command, "--hot-k", "16", "--parallel", "4")
    assert several["placement"]["prefill_bypass"] == 4
    assert several["multi"]["tokens"] > several["multi"]["blocks"] > 0
    assert several["multi"]["hits"] > 0
    samples = several["outcomes"][0]["requests"]
    assert len(samples) == 12
    assert sum(sample["warmup"] for sample in samples) == 4
    assert len(set(several["text_sha256"])) == 12, "everybody asks something else"
    starts = [sample["started_s"] for sample in samples]
    ends = [sample["started_s"] + sample["turn_s"] for sample in samples]
    assert max(starts[4:8]) < min(ends[4:8]), "all four of a wave are in flight at once"


def test_a_draft_without_a_model_goes_through_the_cache_as_one_batch(command: Command) -> None:
    # A fresh prompt of more than 49 tokens does not: what is in those batches is drafts.
    run = benched(command, "--hot-k", "16", "--spec-type", "ngram-simple", "--scale", "0.5")
    assert run["drafts"]["drafted"] > 0
    assert run["multi"]["hits"] > 0
    plain = benched(command, "--hot-k", "16", "--scale", "0.5")
    assert plain["drafts"]["drafted"] == 0
    assert run["text_sha256"] == plain["text_sha256"]


def test_fit_places_the_rest_beside_the_cache(command: Command) -> None:
    run = benched(command, "--fit", "--hot-k", "12", "--stream", "0")
    engagement = run["outcomes"][0]["engagement"]
    assert engagement["fit"]["overrides"], "some layers have their experts in RAM"
    assert engagement["hot"]["hits"] > 0
    assert engagement["hot"]["slots"] >= 12, "the budget of all layers, spread over those that fit left"
    assert engagement["hot"]["layers"] < 6
    assert run["vram_peak_mib"] <= 1.02 * run["ceiling_mib"]


def test_fit_that_leaves_nothing_to_cache_is_not_engaged(command: Command) -> None:
    ended = command.run("bench", *SMALL, "--fit", "--hot-k", "2", "--vram", "500MiB", "--json")
    assert ended.returncode == 32
    assert "nothing to cache" in json.loads(ended.stdout)["outcomes"][0]["detail"]


def test_a_saved_profile_fills_the_next_cache_first(command: Command) -> None:
    profile = command.folder / "uses.json"
    benched(command, "--hot-k", "16", "--save-profile", str(profile))
    saved = profile.read_bytes()
    cold = benched(command, "--hot-k", "16", "--policy", "lru")
    seeded = benched(command, "--hot-k", "16", "--policy", "static", "--profile", str(profile))
    assert seeded["hit_rate"] > 0
    hot = seeded["outcomes"][0]["engagement"]["hot"]
    assert hot["uploads"] == 16 * hot["layers"], "once each, and they stay"
    assert hot["policy"] == "static"
    assert cold["outcomes"][0]["engagement"]["hot"]["evictions"] > 0
    assert profile.read_bytes() == saved, "a server gets a copy"


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
