"""Inflated models, run in numpy: logits and routing of the small model in the large one's shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf_builder import header
from small_moe import Pass, SmallSpec, write_small_moe

from hottune.errors import BadSettingError
from hottune.models.base_model import UNUSED_TOKEN, BaseModel
from hottune.models.gguf_header import read_header_file
from hottune.models.inflate import foreseen, inflate
from hottune.models.inflation import Inflation, card, inflation_of
from hottune.models.resolve import load_model
from hottune.models.target import Recipe, Target, bytes_of, target_like, target_of_numbers, with_layers

T = GGMLQuantizationType
SPEC = SmallSpec()
TOKENS = np.random.default_rng(0).integers(0, len(SPEC.words) - 1, 24).tolist()
SHAPE: dict[str, Any] = {
    "n_layers": 5,
    "n_experts": 16,
    "n_used": 4,
    "n_embd": 512,
    "n_ff": 256,
    "q_width": 1024,
    "kv_width": 128,
    "recipe": Recipe.Q4_K_M,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_small_moe(path, SPEC)
    return BaseModel(path)


@pytest.fixture(scope="module")
def small(base: BaseModel) -> Pass:
    return Pass(base.path, TOKENS)


def target(**changes: Any) -> Target:
    return target_of_numbers(**(SHAPE | changes))


def inflated(base: BaseModel, wanted: Target, folder: Path) -> tuple[Inflation, Pass, Path]:
    path = folder / "large.gguf"
    found = inflate(path, base, wanted, base_name="small")
    return found, Pass(path, TOKENS), path


class TestTextAndRouting:
    @pytest.mark.parametrize(
        "recipe", [Recipe.Q4_K_M, Recipe.Q5_K, Recipe.Q8_0, Recipe.Q4_0, Recipe.Q3_K, Recipe.Q2_K]
    )
    def test_types_without_loss_give_the_same_logits_and_the_same_routing(
        self, recipe: Recipe, base: BaseModel, small: Pass, tmp_path: Path
    ) -> None:
        found, large, _ = inflated(base, target(recipe=recipe), tmp_path)
        assert found.exact
        assert found.inexact == ()
        assert np.abs(large.logits[:, : len(SPEC.words)] - small.logits).max() < 1e-3 * small.logits.std()
        for layer, of in enumerate(found.layer_of):
            if layer not in found.repeats:
                assert (large.chosen[layer] == small.chosen[of]).all()
                assert np.abs(large.gates[layer] - small.gates[of]).max() < 1e-4

    @pytest.mark.parametrize(
        ("recipe", "least"),
        [(Recipe.F16, 0.99), (Recipe.BF16, 0.95), (Recipe.IQ4_XS, 0.98), (Recipe.MXFP4, 0.95)],
    )
    def test_types_with_loss_say_so_and_keep_most_of_the_routing(
        self, recipe: Recipe, least: float, base: BaseModel, small: Pass, tmp_path: Path
    ) -> None:
        found, large, _ = inflated(base, target(recipe=recipe), tmp_path)
        assert not found.exact
        assert any("ffn_down_exps" in line for line in found.inexact)
        real = [layer for layer in range(found.layers) if layer not in found.repeats]
        same = np.mean([shared(large.chosen[layer], small.chosen[found.layer_of[layer]]) for layer in real])
        assert same >= least

    def test_repeats_route_but_add_nothing(self, base: BaseModel, tmp_path: Path) -> None:
        found, large, _ = inflated(base, target(), tmp_path)
        assert found.repeats
        assert found.trained_layers == SPEC.n_layers
        for layer in found.repeats:
            if layer:
                assert (large.streams[layer] == large.streams[layer - 1]).all()
            assert len({tuple(row) for row in large.chosen[layer]}) > 10

    def test_channels_that_are_not_the_small_models_stay_exactly_zero(
        self, base: BaseModel, tmp_path: Path
    ) -> None:
        _, large, _ = inflated(base, target(), tmp_path)
        for stream in large.streams:
            assert (stream != 0).any(axis=0).sum() == SPEC.n_embd

    def test_types_that_need_two_places_have_every_channel_twice(
        self, base: BaseModel, tmp_path: Path
    ) -> None:
        _, large, _ = inflated(base, target(recipe=Recipe.Q3_K), tmp_path)
        for stream in large.streams:
            alive = np.flatnonzero((stream != 0).any(axis=0))
            assert len(alive) == 2 * SPEC.n_embd
            pairs = stream[:, alive].reshape(len(stream), -1, 2, 32)
            assert (pairs[:, :, 0] == pairs[:, :, 1]).all()

    def test_without_room_for_a_second_place_the_nearest_weight_is_taken(
        self, base: BaseModel, tmp_path: Path
    ) -> None:
        narrow = target(recipe=Recipe.MXFP4, n_embd=SPEC.n_embd, n_ff=SPEC.n_ff, q_width=128)
        found, large, _ = inflated(base, narrow, tmp_path)
        assert any("requantized to MXFP4" in line for line in found.inexact)
        assert (large.streams[0] != 0).any(axis=0).sum() == SPEC.n_embd

    def test_most_weights_are_random_not_zero(self, base: BaseModel, tmp_path: Path) -> None:
        _, large, _ = inflated(base, target(), tmp_path)
        for part in ("attn_q", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            weights = large.w(f"blk.1.{part}")
            assert (weights != 0).mean() > 0.8
            assert (
                len({row.tobytes() for row in weights.reshape(-1, weights.shape[-1])})
                > weights.shape[0] * 5 / 6
            )


class TestOtherCounts:
    @pytest.mark.parametrize("n_experts", [32, 40, 64])
    def test_more_experts_keep_the_text_and_the_routing_up_to_copies(
        self, n_experts: int, base: BaseModel, small: Pass, tmp_path: Path
    ) -> None:
        found, large, _ = inflated(base, target(n_experts=n_experts, recipe=Recipe.Q4_K_M), tmp_path)
        assert "copies" in found.experts
        assert (large.logits.argmax(axis=1) == small.logits.argmax(axis=1)).all()
        used = set()
        for layer, of in enumerate(found.layer_of):
            if layer not in found.repeats:
                assert (
                    np.sort(large.chosen[layer] % SPEC.n_experts, axis=1) == small.chosen[of]
                ).mean() > 0.99
                used |= set(large.chosen[layer].ravel().tolist())
        assert max(used) >= SPEC.n_experts, "copies are used too"

    def test_equal_tokens_choose_equal_copies(self, base: BaseModel, tmp_path: Path) -> None:
        path = tmp_path / "large.gguf"
        inflate(path, base, target(n_experts=64, n_layers=3), base_name="small")
        one = Pass(path, [5, 9, 5])
        for chosen in one.chosen:
            small_experts = [set((row % SPEC.n_experts).tolist()) for row in chosen]
            both = small_experts[0] & small_experts[2]
            first = {expert for expert in chosen[0].tolist() if expert % SPEC.n_experts in both}
            assert first == {expert for expert in chosen[2].tolist() if expert % SPEC.n_experts in both}

    def test_fewer_experts_layers_or_another_top_k_are_said(self, base: BaseModel, tmp_path: Path) -> None:
        found, large, _ = inflated(base, target(n_experts=8, n_layers=2, n_used=2), tmp_path)
        assert len(found.inexact) == 3
        assert not found.exact
        assert found.layer_of == (0, 2)
        assert large.chosen[0].shape == (24, 2)
        assert np.isfinite(large.logits).all()

    def test_added_tokens_never_win_and_are_marked_unused(self, base: BaseModel, tmp_path: Path) -> None:
        _, large, path = inflated(base, target(n_vocab=300), tmp_path)
        assert large.logits.shape[1] == 300
        assert large.logits.argmax(axis=1).max() < len(SPEC.words) - 1
        fields = gguf.GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        assert tokens[:100] == list(SPEC.words)
        assert len(set(tokens)) == 300
        assert fields["tokenizer.ggml.token_type"].contents() == [1] * 99 + [5] * 201

    def test_without_an_unused_token_the_vocabulary_cannot_grow(self, tmp_path: Path) -> None:
        write_small_moe(tmp_path / "plain.gguf", replace(SPEC, words=("a", "b", "c")))
        plain = BaseModel(tmp_path / "plain.gguf")
        with pytest.raises(BadSettingError, match=r"no token <\|unused\|>"):
            inflate(tmp_path / "out.gguf", plain, target(n_vocab=10), base_name="plain")
        assert not (tmp_path / "out.gguf").exists()
        assert UNUSED_TOKEN in SPEC.words

    def test_narrow_models_share_blocks_and_say_what_that_costs(
        self, base: BaseModel, small: Pass, tmp_path: Path
    ) -> None:
        found, large, _ = inflated(base, target(n_embd=256, q_width=256), tmp_path)
        assert any(line.startswith("attn_q.weight") and "requantized" in line for line in found.inexact)
        assert shared(large.chosen[0], small.chosen[0]) > 0.5

    @pytest.mark.parametrize("change", [{"n_embd": 32}, {"n_ff": 16}, {"n_embd": 780}, {"n_used": 17}])
    def test_shapes_that_cannot_hold_it_are_refused(
        self, change: dict[str, Any], base: BaseModel, tmp_path: Path
    ) -> None:
        with pytest.raises(BadSettingError):
            inflate(tmp_path / "out.gguf", base, target(**change), base_name="small")


def _layer(layer: int, embd: int, ff: int, n: int, kind: T, merged: bool = False) -> dict[str, Any]:
    block = f"blk.{layer}.ffn_"
    parts = {"gate_up": 2} if merged else {"gate": 1, "up": 1}
    return {
        f"{block}gate_inp.weight": ((embd, n), T.F32),
        **{f"{block}{part}_exps.weight": ((embd, ff * times, n), kind) for part, times in parts.items()},
        f"{block}down_exps.weight": ((ff, embd, n), kind),
    }


def _attention(layer: int, embd: int, q: int, kv: int, kind: T, output: int = 0) -> dict[str, Any]:
    block = f"blk.{layer}.attn_"
    return {
        f"{block}q.weight": ((embd, q), kind),
        f"{block}k.weight": ((embd, kv), kind),
        f"{block}v.weight": ((embd, kv), kind),
        f"{block}output.weight": ((output or q, embd), kind),
    }


_EMBEDDING = {"token_embd.weight": ((2048, 500), T.Q4_K), "output.weight": ((2048, 500), T.Q6_K)}
#: Tensors, metadata, and what must be said: widths no multiple of 256 with MXFP4 and biases; linear attention
#: beside gated attention, 512 experts, merged gate and up; latent attention and a dense first layer.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "gpt-oss": (
        {
            "token_embd.weight": ((2880, 500), T.Q8_0),
            "output.weight": ((2880, 500), T.Q8_0),
            **_attention(0, 2880, 4096, 512, T.Q8_0),
            **_layer(0, 2880, 2880, 32, T.MXFP4),
            "blk.0.attn_sinks.weight": ((64,), T.F32),
        },
        {"block_count": 1, "embedding_length": 2880, "expert_count": 32, "expert_used_count": 4},
        ["attn_sinks.weight (1 tensors, 256 bytes)"],
    ),
    "hybrid": (
        {
            **_EMBEDDING,
            **_attention(0, 2048, 8192, 512, T.Q4_K, output=4096),
            **_layer(0, 2048, 512, 512, T.Q4_K, merged=True),
            **_layer(1, 2048, 512, 512, T.Q4_K, merged=True),
            "blk.1.ssm_out.weight": ((4096, 2048), T.Q4_K),
            "blk.1.ffn_up_shexp.weight": ((2048, 512), T.Q4_K),
        },
        {"block_count": 2, "embedding_length": 2048, "expert_count": 512, "expert_used_count": 10},
        [
            "1 of 2 layers have another kind",
            "ffn_up_shexp.weight",
            "ssm_out.weight",
            "ffn_gate_up_exps.weight",
        ],
    ),
    "latent": (
        {
            **_EMBEDDING,
            "blk.0.ffn_up.weight": ((2048, 4096), T.Q4_K),
            **_layer(1, 2048, 1408, 64, T.Q5_0),
            "blk.1.attn_kv_a_mqa.weight": ((2048, 576), T.Q4_K),
        },
        {
            "block_count": 2,
            "embedding_length": 2048,
            "expert_count": 64,
            "expert_used_count": 6,
            "attention__head_count": 16,
            "attention__head_count_kv": 1,
            "attention__value_length": 512,
            "attention__value_length_mla": 128,
        },
        ["1 of 2 layers have no experts", "no counterpart", "attn_kv_a_mqa.weight"],
    ),
}


class TestLike:
    def test_a_qwen3moe_is_met_tensor_for_tensor(self, base: BaseModel, tmp_path: Path) -> None:
        _, _, first = inflated(base, target(n_vocab=200), tmp_path)
        wanted = target_like("first", [read_header_file(first)])
        (tmp_path / "again").mkdir()
        found, _, again = inflated(base, wanted, tmp_path / "again")
        mine, theirs = (
            {tensor.name: (tensor.shape, tensor.type) for tensor in read_header_file(path).tensors}
            for path in (again, first)
        )
        assert mine == theirs
        assert found.not_carried == ()
        assert found.expert_bytes == found.like_expert_bytes

    def test_the_record_is_in_the_file_the_model_and_the_card(self, base: BaseModel, tmp_path: Path) -> None:
        found, _, path = inflated(base, target(), tmp_path)
        assert inflation_of(read_header_file(path)) == found
        model = load_model(path, "large")
        assert model.synthetic
        assert model.inflated == found
        text = card("large", found)
        assert base.sha256 in text
        assert "repeat" in text

    def test_another_architecture_keeps_its_experts_and_says_what_it_loses(
        self, base: BaseModel, tmp_path: Path
    ) -> None:
        path = tmp_path / "other.gguf"
        write_other(path)
        wanted = target_like("other", [read_header_file(path)])
        found, large, out = inflated(base, wanted, tmp_path)
        said = "\n".join(found.not_carried)
        assert "1 of 4 layers have no experts" in said
        assert "ffn_up_shexp.weight (3 tensors" in said
        assert "ffn_up_exps.bias (3 tensors" in said
        assert found.expert_bytes == found.like_expert_bytes - 3 * 16 * 96 * 4
        assert (wanted.n_layers, wanted.q_width, wanted.kv_width) == (3, 128, 64)
        assert np.isfinite(large.logits).all()
        assert read_header_file(out).architecture == "qwen3moe"

    @pytest.mark.parametrize("model", ["gpt-oss", "hybrid", "latent"])
    def test_well_known_kinds_of_models_keep_every_byte_of_their_experts(
        self, model: str, base: BaseModel
    ) -> None:
        tensors, facts, said = KINDS[model]
        wanted = target_like(model, [header(tensors, architecture=model, **facts)])
        found, n_bytes = foreseen(base, wanted, base_name="small")
        weights = sum(bytes_of(*one) for name, one in tensors.items() if name.endswith("exps.weight"))
        assert found.expert_bytes == weights
        assert n_bytes == found.expert_bytes + found.other_bytes
        for line in said:
            assert any(line in text for text in found.not_carried), found.not_carried

    def test_a_shallower_one_keeps_the_mix_of_types(self) -> None:
        deep = target(n_layers=48)
        shallow = with_layers(deep, 12)
        assert shallow.n_layers == len(shallow.types) == 12
        heavy = [sum(types["ffn_down_exps"] is T.Q6_K for types in one.types) for one in (deep, shallow)]
        assert heavy[1] * 4 == pytest.approx(heavy[0], abs=4)
        assert any("12 of 48 layers" in line for line in shallow.remarks)


class TestFile:
    def test_equal_wishes_give_equal_files_whatever_the_number_of_threads(
        self, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hottune.models.patchwork._PIECE_BYTES", 1 << 16)
        first, second = tmp_path / "1" / "m.gguf", tmp_path / "2" / "m.gguf"
        monkeypatch.setattr("hottune.models.patchwork._WORKERS", 1)
        inflate(first, base, target(), base_name="small")
        monkeypatch.setattr("hottune.models.patchwork._WORKERS", 5)
        inflate(second, base, target(), base_name="small")
        assert first.read_bytes() == second.read_bytes()

    def test_a_base_of_another_type_is_refused(self, tmp_path: Path, base: BaseModel) -> None:
        inflate(tmp_path / "large.gguf", base, target(), base_name="small")
        with pytest.raises(BadSettingError, match="cannot be inflated"):
            BaseModel(tmp_path / "large.gguf")


def shared(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return which share of the selections is the same."""
    pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))


def write_other(path: Path) -> None:
    """Write a model of another architecture: a dense first layer, shared experts, expert biases."""
    writer = gguf.GGUFWriter(path, "other")
    writer.add_block_count(4)
    writer.add_embedding_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_expert_count(16)
    writer.add_expert_used_count(4)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))

    add("token_embd.weight", 120, 96)
    add("output.weight", 120, 96)
    for layer in range(4):
        block = f"blk.{layer}."
        for part, rows, columns in (("q", 128, 96), ("k", 64, 96), ("v", 64, 96), ("output", 96, 128)):
            add(f"{block}attn_{part}.weight", rows, columns)
        if layer == 0:
            add(f"{block}ffn_up.weight", 64, 96)
            continue
        add(f"{block}ffn_gate_inp.weight", 16, 96)
        add(f"{block}ffn_up_shexp.weight", 32, 96)
        add(f"{block}ffn_up_exps.bias", 16, 96)
        for part, rows, columns in (("gate", 96, 96), ("up", 96, 96), ("down", 96, 96)):
            add(f"{block}ffn_{part}_exps.weight", 16, rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
