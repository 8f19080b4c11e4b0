"""optuna-dashboard on the storage of a real study: what its API and its pages show, and how it ends."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hottune_command import Command, Started, small_study

from hottune.engine.ports import free_port
from hottune.outcomes import OutOfMemory
from hottune.search.catalogue import reopen
from hottune.search.entries import Planned, attributes_of
from hottune.search.storage import sqlite_url

pytestmark = pytest.mark.real
pytest.importorskip("optuna_dashboard", reason="the extra hottune[dashboard] is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STUDY = "small"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with a small study of real servers, and one more trial that ran out of memory."""
    made = small_study(tmp_path_factory.mktemp("work"), STUDY)
    journal = reopen(STUDY, [sqlite_url(made.folder / "studies" / f"{STUDY}.db")])
    too_large = journal.trials()[0].placement.model_copy(update={"hot_k": 100})
    out = OutOfMemory(stage="load", detail="5 MiB asked, 18 of 23 used", log_tail=["failed to allocate"])
    journal._recorder.record(
        journal._search, attributes_of(Planned(too_large, "grid")), lambda placement: out
    )
    return made


@pytest.fixture
def shown(command: Command) -> Iterator[tuple[Started, httpx.Client, str]]:
    started = command.start("studies", "dashboard", "--port", str(free_port()))
    try:
        address = wait_for_address(started)
        with httpx.Client(timeout=30, trust_env=False) as client:
            client.base_url = httpx.URL(address).join("/")
            yield started, client, address
    finally:
        started.kill()


def wait_for_address(started: Started, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := re.search(r"Dashboard: (http://127\.0\.0\.1:\d+/\S+)", started.said):
            return found[1]
        assert started.process.poll() is None, started.said
        time.sleep(0.1)
    raise AssertionError(started.said)


def studies(client: httpx.Client) -> dict[str, dict[str, Any]]:
    listed = client.get("/api/studies").raise_for_status().json()["study_summaries"]
    return {
        one["study_name"]: client.get(f"/api/studies/{one['study_id']}").raise_for_status().json()
        for one in listed
    }


def test_every_plot_that_the_dashboard_asks_for_is_answered(
    shown: tuple[Started, httpx.Client, str],
) -> None:
    started, client, _ = shown
    for one in client.get("/api/studies").json()["study_summaries"]:
        answer = client.get(f"/api/studies/{one['study_id']}/param_importances")
        assert answer.status_code == 200, one
        assert answer.json()["param_importances"][0]
    assert "Traceback" not in started.said


def attributes(one: dict[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in one["user_attrs"]}


def test_names_metrics_trials_and_notes_are_for_people(shown: tuple[Started, httpx.Client, str]) -> None:
    _, client, _ = shown
    found = studies(client)
    assert list(found) == [STUDY, f"{STUDY}/confirm"]
    search, confirm = found.values()
    assert attributes(search)["command"].startswith("hottune run demo")
    assert f"{STUDY}/confirm" in search["note"]["body"]
    assert "Replicates" in confirm["note"]["body"]
    for one in (search, confirm):
        assert one["objective_names"] == ["turn_s"]
        assert one["directions"] == ["minimize"]
    baselines = [trial for trial in search["trials"] if "arm" in attributes(trial)]
    assert {attributes(trial)["arm"] for trial in baselines} == {"all-cpu", "layers", "fit"}
    for trial in [*search["trials"], *confirm["trials"]]:
        said = attributes(trial)
        assert {"label", "result", "hot_k", "seconds"} <= set(said)
        assert max(map(len, said.values())) < 200, "nobody reads JSON"
        if trial["state"] == "Complete":
            assert said["result"].startswith("measured")
            assert float(said["turn_s"]) == pytest.approx(trial["values"][0], abs=0.001)
    failed = next(trial for trial in search["trials"] if "5 MiB asked" in attributes(trial)["result"])
    assert failed["state"] == "Fail"
    assert failed["note"]["body"].startswith("**Out of memory** (stage: load): 5 MiB asked")
    assert "failed to allocate" in failed["note"]["body"]
    assert {attributes(trial)["arm"] for trial in confirm["trials"]} >= {"all-cpu", "hot"}


@pytest.mark.parametrize("page", ["", "/trials", "/analytics", "/note", "/../2"])
def test_the_pages_open_in_a_browser_without_errors(
    shown: tuple[Started, httpx.Client, str], tmp_path: Path, page: str
) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    _, _, address = shown
    argv = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        "--dump-dom",
        address + page,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert STUDY in done.stdout
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # Drivers of a machine without a GPU complain of the dashboard's WebGL charts.
    assert [line for line in said if "WebGL" not in line and "GL Driver" not in line] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_on_a_signal_with_0(shown: tuple[Started, httpx.Client, str], number: signal.Signals) -> None:
    started, client, _ = shown
    assert client.get("/api/studies").status_code == 200
    started.process.send_signal(number)
    ended = started.end(30)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
