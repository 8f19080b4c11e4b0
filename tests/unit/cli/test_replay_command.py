from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hottune.cli.app import app
from hottune.errors import BadProfileError, BadSettingError, BadTraceError
from hottune.models.synthesize import SyntheticSpec, synthesize

cli = CliRunner()
EXPERTS = 8
BANDWIDTHS = {"cpu": 50, "hbm": 1000, "pcie_h2d": 25, "cpu_overlapped": 40, "pcie_overlapped": 20}


def write_trace(path: Path, tokens: int = 200, layers: int = 2, *, ended: bool = True) -> Path:
    rng = np.random.default_rng(1)
    data = bytearray(b"HOTTRACE\x01\x00\x00\x00")
    for token in range(tokens):
        for layer in range(layers):
            if token == 0:
                name = f"blk.{layer}.ffn_up_exps.weight".encode()
                data += b"L" + bytes([layer, EXPERTS, len(name)]) + name
            data += b"B" + bytes([layer, 1, 2]) + bytes(rng.permutation(EXPERTS)[:2].tolist())
    if ended:
        data += b"E" + bytes([tokens & 127 | 128, tokens >> 7])
    path.write_bytes(data)
    return path


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_trace(tmp_path / "t.hottrace")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shape = {"n_layers": 2, "n_experts": EXPERTS, "n_used": 2, "n_embd": 256, "n_ff_expert": 256}
    spec = SyntheticSpec(**shape, n_head=2, n_head_kv=1, with_tokenizer=False)
    synthesize(tmp_path / "m.gguf", spec)
    return tmp_path / "m.gguf"


def as_json(*arguments: str) -> dict:
    ended = cli.invoke(app, ["replay", *arguments, "--json"])
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_every_policy_at_every_size_is_in_the_json(trace: Path) -> None:
    said = as_json(str(trace), "--policy", "static,lru,lfru,window", "--slots", "4,2")
    rows = [(row["result"]["settings"]["policy"], row["result"]["settings"]["slots"]) for row in said["rows"]]
    assert rows == [(policy, k) for policy in ("window", "lru", "lfru", "static") for k in (2, 4)]
    assert (said["tokens"], said["layers"], said["choices"], said["expert_bytes"]) == (200, 2, 800, None)
    assert all(0 < row["result"]["hit_rate"] < 1 for row in said["rows"])
    assert said["references"][0]["random"] == 0.25


def test_the_table_shows_what_the_json_says(trace: Path) -> None:
    ended = cli.invoke(app, ["replay", str(trace), "--policy", "lru", "--slots", "4", "--by-layer"])
    assert ended.exit_code == 0
    said = as_json(str(trace), "--policy", "lru", "--slots", "4")
    assert f"{100 * said['rows'][0]['result']['hit_rate']:.1f}" in ended.stdout
    assert "Replayed, not measured." in ended.stdout


def test_the_csv_has_a_line_for_each_cache_and_layer(trace: Path) -> None:
    as_json(str(trace), "--policy", "lru", "--slots", "2,4", "--csv", "out.csv")
    with Path("out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["slots"], row["layer"]) for row in rows] == [("2", "0"), ("2", "1"), ("4", "0"), ("4", "1")]
    assert all(int(row["hits"]) + int(row["misses"]) == 400 for row in rows)
    assert all(sum(int(row[f"tokens_with_{n}_misses"]) for n in range(3)) == 200 for row in rows)


def test_a_model_gives_sizes_and_bandwidths_give_times(trace: Path, model: Path) -> None:
    Path("b.json").write_text(json.dumps(BANDWIDTHS))
    said = as_json(str(trace), "--model", str(model), "--bandwidths", "b.json", "--slots", "2,6")
    assert said["expert_bytes"] == [3 * 256 * 256 * 144 // 256] * 2  # Q4_K: 144 bytes for 256 weights
    times = [row["prediction"]["total_ms"] for row in said["rows"]]
    assert times[1] < times[0], "more slots, fewer misses, less time"
    first = said["rows"][0]["result"]
    assert first["uploaded_bytes"] == first["uploads"] * said["expert_bytes"][0]


def test_a_profile_comes_first(trace: Path) -> None:
    uses = {f"blk.{layer}.ffn_up_exps.weight": [0, 0, 9, 8, 0, 0, 0, 0] for layer in (0, 1)}
    Path("p.json").write_text(json.dumps({"version": 1, "layers": uses}))
    said = as_json(str(trace), "--policy", "static", "--slots", "2", "--profile", "p.json")
    assert said["rows"][0]["result"]["uploads"] == 4


def test_a_truncated_trace_is_replayed_and_said_to_be(trace: Path) -> None:
    write_trace(trace, ended=False)
    ended = cli.invoke(app, ["replay", str(trace), "--slots", "2"])
    assert ended.exit_code == 0
    assert "has no end" in ended.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"GGUF and so on", "not a routing trace"),
        (b"HOTTRACE\x63\x00\x00\x00", "version 99"),
        (b"HOTTRACE\x01\x00\x00\x00E\x00", "no choice in it"),
        (b"HOTTRACE\x01\x00\x00\x00B\x00\x01\x01\x00", "damaged"),
    ],
)
def test_what_is_no_trace_is_told_so(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    ended = cli.invoke(app, ["replay", str(tmp_path / "x")])
    assert ended.exit_code == BadTraceError.exit_code
    assert says in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "lru,mru"], "'mru' is no policy"),
        (["--slots", "8,x"], "no list of slots"),
        (["--slots", "99999999"], "no list of slots"),
        (["--expert-bytes", "many"], "--expert-bytes"),
        (["--bandwidths", "b.json"], "needs the model's sizes"),
        (["--by-layer", "--slots", "1,2,3,4,5,6"], "not 18"),
    ],
)
def test_options_that_make_no_sense_are_told_so(trace: Path, arguments: list[str], says: str) -> None:
    Path("b.json").write_text(json.dumps(BANDWIDTHS))
    ended = cli.invoke(app, ["replay", str(trace), *arguments])
    assert ended.exit_code == BadSettingError.exit_code
    assert says in ended.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("GGUF", "imatrix"),
        ("[", "no profile"),
        ('{"version": 2, "layers": {}}', "no profile"),
        ('{"version": 1, "layers": {"a": [-1]}}', "below 0"),
        ('{"version": 1, "layers": {"a": ["x"]}}', "no profile"),
    ],
)
def test_what_is_no_profile_is_told_so(trace: Path, content: str | None, says: str) -> None:
    if content is not None:
        Path("p.json").write_text(content)
    ended = cli.invoke(app, ["replay", str(trace), "--profile", "p.json"])
    assert ended.exit_code == BadProfileError.exit_code
    assert says in ended.stderr


def test_a_model_or_a_profile_of_another_model_is_refused(trace: Path, model: Path) -> None:
    write_trace(trace, layers=3)
    ended = cli.invoke(app, ["replay", str(trace), "--model", str(model)])
    assert ended.exit_code == BadSettingError.exit_code
    assert "another model" in ended.stderr
    Path("p.json").write_text('{"version": 1, "layers": {"blk.9.ffn_up_exps.weight": [1, 2]}}')
    ended = cli.invoke(app, ["replay", str(trace), "--profile", "p.json"])
    assert ended.exit_code == BadSettingError.exit_code
    assert "names no layer" in ended.stderr
