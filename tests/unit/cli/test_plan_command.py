"""`hottune plan`: what it prints, as JSON and for people, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from hottune.cli import plan as plan_command
from hottune.cli.app import app
from hottune.machine.bandwidth import measure
from hottune.machine.facts import Gpu
from hottune.machine.probe import probe_machine


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    here = probe_machine().model_copy(update={"gpus": (), "notes": ("no NVIDIA GPU found: a test",)})
    monkeypatch.setattr(plan_command, "probe_machine", lambda: here)
    quick = measure(here, seconds=0.005, area_mib=16)
    monkeypatch.setattr(plan_command, "bandwidths", lambda *_, **__: quick)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """A model of 96 MiB of experts, six layers, of which four fit into 64 MiB."""
    path = tmp_path / "Small-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    for add, value in (
        (writer.add_block_count, 6),
        (writer.add_embedding_length, 64),
        (writer.add_head_count, 2),
        (writer.add_context_length, 4096),
        (writer.add_expert_count, 16),
        (writer.add_expert_used_count, 2),
    ):
        add(value)
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), dtype=np.float32))
    for layer in range(6):
        writer.add_tensor(f"blk.{layer}.attn_k.weight", np.zeros((64, 64), dtype=np.float32))
        for kind in ("gate", "up", "down"):
            rows, columns = (64, 1365) if kind == "down" else (1365, 64)
            name = f"blk.{layer}.ffn_{kind}_exps.weight"
            writer.add_tensor(name, np.zeros((16, rows, columns), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield path
    path.unlink()


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout


def call_json(*arguments: object, code: int = 0) -> Any:
    return json.loads(call(*arguments, "--json", "-q", code=code))


def test_one_ceiling_with_a_given_gpu_has_speeds(model: Path) -> None:
    found = call_json(model, "--vram", "600MiB", "--gpu-bandwidth", "1000,25")
    (ceiling,) = found["ceilings"]
    arms = {row["arm"]: row for row in ceiling["placements"]}
    assert set(arms) == {"all-cpu", "layers", "hot", "hot+layers"}
    assert all(row["vram_mib"] <= 600 for row in arms.values())
    assert all(row["speed"]["decode_tok_s"] > 0 for row in arms.values())
    assert found["bytes_read"] is None
    assert found["used"]["hbm"] == 1000
    assert found["tried"] is None
    assert "Qwen3-30B-A3B" in found["assumptions"][0]


def test_without_a_gpu_there_is_only_memory_and_it_says_why(model: Path) -> None:
    found = call_json(model)
    assert [one["ceiling_mib"] for one in found["ceilings"]] == [8192, 12288, 16384, 24576]
    assert found["used"] is None
    assert all(row["speed"] is None for one in found["ceilings"] for row in one["placements"])
    shown = call(model, "-q")
    assert "No speeds" in shown
    assert "a test" in shown
    assert "Decode" not in shown


def test_with_a_gpu_the_ceiling_is_what_is_free(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(index=3, name="NVIDIA Test", vram_total_mib=8000, vram_free_mib=6000)
    here = plan_command.probe_machine().model_copy(update={"gpus": (gpu,)})
    monkeypatch.setattr(plan_command, "probe_machine", lambda: here)
    assert call_json(model)["ceilings"][0]["ceiling_mib"] == 6000 - 512
    assert call_json(model, "--headroom", "1GiB", "--gpu", 3)["ceilings"][0]["ceiling_mib"] == 6000 - 1024
    assert "GPUs here: 3" in call_json(model, "--gpu", 1, code=42)["error"]["next_step"]


def test_people_see_predictions_called_so(model: Path) -> None:
    shown = call(model, "--vram", "600MiB", "--gpu-bandwidth", "1000,25", "-q")
    assert "Predicted under 600 MiB" in shown
    assert "hot+layers" in shown
    assert "not measured" in shown
    assert "Assumed: hit rates of another model" in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--vram", "100MiB"], 40),
        (["--vram", "0"], 42),
        (["--vram", "much"], 42),
        (["--gpu-bandwidth", "1000"], 42),
        (["--gpu-bandwidth", "1000,0"], 42),
        (["--gpu-bandwidth", "nan,1"], 42),
        (["--layers", "2"], 42),
        (["--keep"], 42),
        (["--base", "x.gguf"], 42),
        (["--vram", "600MiB", "--try", "--layers", "9", "--base", "none.gguf"], 42),
        (["--vram", "600MiB", "--try", "--base", "none.gguf"], 10),
    ],
)
def test_what_cannot_be_has_its_exit_code(model: Path, arguments: list[str], code: int) -> None:
    assert call_json(model, *arguments, code=code)["error"]["exit_code"] == code


@pytest.mark.parametrize(
    ("argument", "code"),
    [("http://127.0.0.1:9/m.gguf", 14), ("http://127.0.0.1:9/m.bin", 10), ("/nowhere/m.gguf", 10)],
)
def test_models_that_cannot_be_read_have_theirs(
    argument: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("hottune.models.remote_read._PAUSE_S", 0.001)
    assert call_json(argument, code=code)["error"]["exit_code"] == code
