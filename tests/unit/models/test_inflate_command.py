"""`hottune models inflate`: from a header or from numbers to a file, its card, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import write_small_gguf
from hub_server import running_hub
from small_moe import write_small_moe
from typer.testing import CliRunner

from hottune.cli import models
from hottune.models.gguf_header import read_header_file

NUMBERS = [
    "--layers",
    4,
    "--experts",
    16,
    "--used",
    4,
    "--embd",
    256,
    "--ff",
    256,
    "--heads",
    4,
    "--kv-heads",
    1,
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_small_moe(tmp_path / "small.gguf")
    return tmp_path / "small.gguf"


def call(*arguments: object, code: int = 0) -> Any:
    words = ["inflate", *(str(argument) for argument in arguments), "--json"]
    result = CliRunner().invoke(models.app, words)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_numbers_give_a_model_of_that_shape_with_a_card_beside_it(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "large.gguf"
    found = call(small, out, *NUMBERS, "--quant", "q8_0", "--vocab", 120)
    shape = found["model"]["shape"]
    assert (shape["n_layers"], shape["n_embd"], shape["n_vocab"], shape["quant"]) == (4, 256, 120, "Q8_0")
    assert found["model"]["inflated"]["base"] == "small"
    assert found["peak_rss_mib"] > 0
    assert "layers repeat" in Path(found["card"]).read_text()
    shown = CliRunner().invoke(models.app, ["inspect", str(out)]).stdout
    assert "Inflated" in " ".join(shown.split())


def test_like_takes_everything_from_a_header_and_layers_its_depth(small: Path, tmp_path: Path) -> None:
    call(small, tmp_path / "first.gguf", *NUMBERS)
    call(small, tmp_path / "second.gguf", "--like", tmp_path / "first.gguf", "--layers", 3)
    first, second = (read_header_file(tmp_path / f"{name}.gguf") for name in ("first", "second"))
    kept = {tensor.name: (tensor.shape, tensor.type) for tensor in second.tensors}
    assert all(kept[tensor.name][0] == tensor.shape for tensor in first.tensors if tensor.name in kept)
    assert second.of_architecture("block_count") == 3


def test_like_a_repository_reads_its_header_only(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(small, tmp_path / "first.gguf", *NUMBERS)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["owner/Model-GGUF"] = {"Model-Q4_K_M.gguf": (tmp_path / "first.gguf").read_bytes()}
        found = call(small, tmp_path / "second.gguf", "--like", "owner/Model-GGUF:Q4_K_M")
    assert found["model"]["inflated"]["like"] == "Model-Q4_K_M"
    assert found["model"]["inflated"]["not_carried"] == []


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (["--like", "nowhere.gguf"], 10, "no model file"),
        (["--like", "{dense}"], 12, "dense"),
        (["--like", "{small}", "--embd", 512], 42, "already says the shape"),
        (["--embd", 300], 42, "no multiple of 32"),
        (["--experts", 4, "--used", 8], 42, "experts 4 is below 8"),
    ],
)
def test_what_cannot_be_has_its_own_exit_code(
    extra: list[object], code: int, said: str, small: Path, tmp_path: Path
) -> None:
    write_small_gguf(tmp_path / "dense.gguf", moe=False)
    named = [str(word).format(dense=tmp_path / "dense.gguf", small=small) for word in extra]
    error = call(small, tmp_path / "out.gguf", *named, code=code)["error"]
    assert said in error["what"]
    assert not (tmp_path / "out.gguf").exists()


def test_the_small_model_is_never_overwritten(small: Path) -> None:
    before = small.read_bytes()
    assert "itself" in call(small, small, *NUMBERS, code=42)["error"]["what"]
    assert small.read_bytes() == before


def test_the_model_says_with_which_options_it_is_made_again(small: Path, tmp_path: Path) -> None:
    first = call(small, tmp_path / "a.gguf", *NUMBERS, "--quant", "q8_0")["model"]
    options = first["inflated"]["options"]
    assert options == [*map(str, NUMBERS), "--quant", "Q8_0"]
    (tmp_path / "elsewhere").mkdir()  # a file's name is in its header
    again = call(small, tmp_path / "elsewhere" / "a.gguf", *options)["model"]
    assert again["fingerprint"] == first["fingerprint"]
    like = call(small, tmp_path / "c.gguf", "--like", tmp_path / "a.gguf", "--layers", 3)["model"]
    assert like["inflated"]["options"] == ["--like", "a.gguf", "--layers", "3"], "not where it lies here"
