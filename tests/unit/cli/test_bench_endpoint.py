"""`hottune bench --endpoint` and live addresses in `hottune compare`, as a user types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hottune.cli import common
from hottune.cli.app import app
from hottune.progress import NoProgress

sys.path.insert(0, str(Path(__file__).parents[1] / "workload"))
from fake_openai import FakeOpenAi

SMALL = ("--workload", "chat", "--scale", "0.05")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fake = FakeOpenAi()
    fake.tokenize = True
    yield fake
    fake.close()


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_table_and_a_file(server: FakeOpenAi, tmp_path: Path) -> None:
    ended = run("bench", "--endpoint", server.url, *SMALL, "--replicates", "2", "--label", "my server")
    assert ended.exit_code == 0, ended.stderr
    assert "my server: http://127.0.0.1" in ended.stdout
    assert "pass 2" in ended.stdout and "timed by the client" in ended.stdout
    found = json.loads((tmp_path / "reports" / "endpoint-my-server.json").read_text(encoding="utf-8"))
    assert len(found["passes"]) == 2


def test_json_and_a_file_of_ones_own(server: FakeOpenAi, tmp_path: Path) -> None:
    ended = run("bench", "--endpoint", server.url, *SMALL, "--json", "--quiet", "--out", "x.json")
    found = json.loads(ended.stdout)
    assert found == json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert found["timed"] == "client" and found["workload"]["name"] == "chat"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to measure"),
        (("demo", "--endpoint", "http://127.0.0.1:1"), "has no place beside it"),
        (("--endpoint", "http://127.0.0.1:1", "--hot-k", "3", "--vram", "2GiB"), "--hot-k, --vram with"),
        (("demo", "--model-name", "x"), "--model-name without"),
        (("--endpoint", "nowhere"), "takes a http:// or https:// address"),
        (("--endpoint", "http://127.0.0.1:1", "--api-key-env", "NOT_SET_ANYWHERE"), "is not set"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: tuple[str, ...], said: str) -> None:
    ended = run("bench", *arguments)
    assert ended.exit_code == 42
    assert said in " ".join(ended.stderr.split())


def test_an_endpoint_that_is_not_there_has_its_own_exit_code(server: FakeOpenAi) -> None:
    server.routes = set()
    ended = run("bench", "--endpoint", server.url, *SMALL, "--json")
    assert ended.exit_code == 33
    assert json.loads(ended.stdout)["error"]["type"] == "EndpointError"


def test_what_was_measured_before_a_failure_is_one_document_with_the_error_in_it(
    server: FakeOpenAi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(NoProgress):
        def say(self, line: str) -> None:
            if "pass 1" in line:
                server.error_after = 2

    monkeypatch.setattr(common, "make_progress", lambda quiet: Breaks())
    ended = run("bench", "--endpoint", server.url, *SMALL, "--replicates", "3", "--json", "--out", "x.json")
    assert ended.exit_code == 33
    found = json.loads(ended.stdout)
    assert len(found["passes"]) == 1
    assert "out of blocks" in found.pop("error")["what"]
    assert found == json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))


def test_two_live_servers_are_measured_and_kept_apart(server: FakeOpenAi, tmp_path: Path) -> None:
    server.takes_ignore_eos = True
    run("bench", "--endpoint", server.url, *SMALL, "--replicates", "2", "--label", "before")
    ended = run("compare", "endpoint-before", server.url, server.url, "--passes", "2", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [arm["replicates"] for arm in found["arms"]] == [2, 2, 2]
    assert {"live-2", "live-3"} == {arm["name"].split(" ")[0] for arm in found["arms"][1:]}
    assert (tmp_path / "reports" / "endpoint-live-2.json").is_file()
    # The workload is that of the result beside them, and a second time replaces no first one.
    run("compare", "endpoint-before", server.url, "--passes", "1")
    run("compare", "endpoint-before", server.url, "--passes", "1")
    assert len(list((tmp_path / "reports").glob("endpoint-tests-some-model*.json"))) == 2
    assert found["obstacles"] == []


def test_what_could_not_be_compared_is_not_measured_first(server: FakeOpenAi, tmp_path: Path) -> None:
    run("bench", "--endpoint", server.url, *SMALL, "--label", "before", "--quiet")
    path = tmp_path / "reports" / "endpoint-before.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["machine"]["ram_total_mib"] *= 4
    path.write_text(json.dumps(found), encoding="utf-8")
    server.requests.clear()
    refused = run("compare", "endpoint-before", server.url)
    assert refused.exit_code == 61 and "memory" in refused.stderr
    assert (
        max(body.get("max_tokens", 0) for body in server.bodies)
        < found["workload"]["requests"][0]["output_tokens"]
    )
    assert run("compare", "endpoint-before", server.url, "--passes", "1", "--allow-different").exit_code == 0
