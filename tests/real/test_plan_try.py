"""`hottune plan --try` for real: a small model is inflated, served, measured, and gone afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hottune_command import Command, require_engine
from small_moe import SmallSpec, byte_words, write_small_moe

from hottune.cli.common import cache_dir
from hottune.models.synthesize import SyntheticSpec, synthesize

pytestmark = pytest.mark.real

BASE = SmallSpec(
    n_layers=2, n_embd=256, head_dim=128, n_experts=32, n_used=4, own_head=True, words=byte_words(700)
)
LIKE = SyntheticSpec(n_layers=6, n_experts=32, n_used=4, n_embd=512, n_ff_expert=512, with_tokenizer=False)
LIKE_THE_DEMO = LIKE.model_copy(update={"n_layers": 8, "n_experts": 128, "n_used": 8, "n_ff_expert": 256})


@pytest.mark.parametrize("base", ["base.gguf", "demo"])
def test_placements_are_measured_on_a_stand_in_that_is_deleted_afterwards(base: str, tmp_path: Path) -> None:
    require_engine()
    write_small_moe(tmp_path / "base.gguf", BASE)
    own = base != "demo"
    synthesize(tmp_path / "like.gguf", LIKE if own else LIKE_THE_DEMO)
    before = set(cache_dir().rglob("try-*.gguf"))
    layers = 4 if own else 6
    started = Command(tmp_path).start(
        *("plan", "like.gguf", "--try", "--layers", str(layers), "--scale", "0.1"),
        *("--threads", "1", "--json", "-q"),
        *(("--base", base) if own else ()),
    )
    ended = started.end(400)
    assert ended.returncode == 0, ended.stderr
    tried = json.loads(ended.stdout)["tried"]
    assert (tried["layers"], tried["layers_of_the_model"]) == (layers, layers + 2)
    assert tried["inflated"]["base"] == base.removesuffix(".gguf")
    assert tried["kept"] is None
    assert tried["inflated"]["like"] == "like"
    arms = {one["arm"]: one for one in tried["tried"]}  # of each the last attempt
    assert {"all-cpu", "layers", "hot"} <= set(arms)
    assert all(one["outcome"] == "measurement" and one["decode_tok_s"] > 0 for one in arms.values()), arms
    assert 0 < arms["hot"]["hit_rate"] <= 1
    assert arms["all-cpu"]["hit_rate"] is None
    assert set(cache_dir().rglob("try-*.gguf")) == before
