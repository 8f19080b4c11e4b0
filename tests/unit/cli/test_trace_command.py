"""`hottune trace` without a server: generating, describing, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hottune.cli.app import app
from hottune.cli.trace import without_nan
from hottune.errors import BadSettingError, BadTraceError, HottuneError
from hottune.routing.presets import PRESETS

SAMPLE = Path(__file__).parents[1] / "routing" / "sample.hottrace"
SMALL = ["--layers", "2", "--tokens", "100"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["trace", *arguments])


def answer(*arguments: str) -> dict[str, Any]:
    ended = invoke(*arguments, "--json")
    assert ended.exit_code == 0, ended.output
    data: dict[str, Any] = json.loads(ended.stdout)
    return data


def refused(kind: type[HottuneError], *arguments: str) -> str:
    ended = invoke(*arguments, "--json")
    assert ended.exit_code == kind.exit_code, ended.output
    return str(json.loads(ended.stdout)["error"]["what"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_generated_trace_has_the_presets_shape_and_is_described_as_read_back(folder: Path) -> None:
    said = answer("--generate", "qwen3-30b-a3b", *SMALL, "--prompt-tokens", "50")
    assert said["path"] == str(folder / "qwen3-30b-a3b.hottrace")
    summary = said["summary"]
    assert (summary["tokens"], summary["choices"], len(summary["layers"])) == (100, 100 * 2 * 8, 2)
    assert summary["bytes"] == (folder / "qwen3-30b-a3b.hottrace").stat().st_size
    assert summary["bytes_per_choice"] < 2
    assert summary["lru_hit"] > 2 * summary["random_hit"] == 0.5
    assert answer("qwen3-30b-a3b.hottrace")["summary"] == summary


def test_a_name_with_a_dot_in_it_stays_whole(folder: Path) -> None:
    assert answer("--generate", "glm-4.7-flash", *SMALL)["path"] == str(folder / "glm-4.7-flash.hottrace")


def test_equal_seeds_give_equal_files_and_other_shapes_are_drawn(folder: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        answer("--generate", "glm-4.7-flash", *SMALL, "--experts", "16", "--seed", seed, "-o", name)
    one, same, other = ((folder / name).read_bytes() for name in "abc")
    assert one == same != other
    # the name c is no .hottrace: describe it by its other name
    (folder / "c").rename(folder / "c.hottrace")
    assert answer("c.hottrace")["summary"]["layers"][0]["experts"] == 16


def test_looping_text_caches_better(folder: Path) -> None:
    plain, loops = (
        answer("--generate", "qwen3-30b-a3b", "--layers", "1", "--repetition", share)["summary"]
        for share in ("0", "0.9")
    )
    assert loops["lru_hit"] > plain["lru_hit"]


def test_people_get_a_table_with_one_row_a_layer() -> None:
    ended = invoke("--generate", "qwen3-30b-a3b", *SMALL, "--quiet")
    assert ended.exit_code == 0
    for part in (
        "2 layers, 8 of 128",
        "Bytes a choice",
        "LRU, 25 % of experts",
        "By layer",
        "decoded tokens only",
    ):
        assert part in ended.stdout
    assert sum(line.split()[1:2] == ["100"] for line in ended.stdout.splitlines()) == 2


def test_what_is_no_trace_is_never_overwritten(folder: Path) -> None:
    (folder / "model.gguf").write_bytes(b"GGUF and the rest")
    for arguments in (["--generate", "glm-4.7-flash"], ["demo"]):
        assert "not overwritten" in refused(BadSettingError, *arguments, "-o", "model.gguf")
    assert (folder / "model.gguf").read_bytes() == b"GGUF and the rest"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "nothing to trace"),
        (["demo", "--generate", "glm-4.7-flash"], "needs no MODEL"),
        (["--generate", "gpt-7"], "no generator 'gpt-7'"),
        (["--generate", "glm-4.7-flash", "--repetition", "1"], "No routing can be drawn"),
        (["--generate", "glm-4.7-flash", "--experts", "2", "--layers", "1"], "No routing can be drawn"),
        (["--generate", "glm-4.7-flash", "-o", "none/t"], "no folder"),
        (["demo", "--workload", "poems"], "no workload 'poems'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], what: str) -> None:
    assert what in refused(BadSettingError, *arguments)


def test_what_is_no_trace_is_not_described(folder: Path) -> None:
    (folder / "diary.hottrace").write_text("dear diary")
    assert "diary.hottrace is not a routing trace" in refused(BadTraceError, "diary.hottrace")
    assert "says nothing about routing" in refused(BadTraceError, "absent.hottrace")
    assert "does not use 2 experts" in refused(BadTraceError, str(SAMPLE))


def test_the_unknown_preset_is_told_which_there_are() -> None:
    ended = invoke("--generate", "gpt-7", "--json")
    assert all(name in json.loads(ended.stdout)["error"]["next_step"] for name in PRESETS)


def test_json_has_null_where_there_is_no_number() -> None:
    assert without_nan({"a": [1.5, float("nan")], "b": "x"}) == {"a": [1.5, None], "b": "x"}
