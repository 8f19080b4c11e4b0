"""Synthetic models: valid files of the planned size, weights of the planned spread, the planned routing."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from gguf_builder import write_vocabulary
from numpy.typing import NDArray
from pydantic import ValidationError

from hottune.errors import BadSettingError, ModelCorruptError, NoSpaceError
from hottune.models import gguf_write
from hottune.models.blocks import WeightType, make_pool, quantize_q8_0
from hottune.models.gguf_header import ArraySummary, read_header_file
from hottune.models.shape_of import moe_shape
from hottune.models.synthesize import (
    SPEC_KEY,
    SYNTHETIC_KEY,
    SyntheticSpec,
    synthesize,
)
from hottune.models.vocabulary import read_vocabulary

WORDS = ["the", "Ġharbour", "ä", "Ċ", "Ġ", "def", "<bos>", "<eos>"]
SMALL = SyntheticSpec(
    n_layers=2,
    n_experts=16,
    n_used=4,
    n_embd=256,
    n_ff_expert=256,
    n_head=4,
    n_head_kv=2,
    head_dim=64,
    n_vocab=500,
    with_tokenizer=False,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "small.gguf"
    synthesize(path, SMALL)
    return path


def weights(path: Path, name: str) -> NDArray[np.float32]:
    (tensor,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name]
    return dequantize(tensor.data, tensor.tensor_type)


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    grown = np.exp(values - values.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


class TestPools:
    @pytest.mark.parametrize("kind", list(WeightType))
    def test_blocks_dequantize_to_the_planned_spread_around_zero(self, kind: WeightType) -> None:
        pool = make_pool(kind, np.random.default_rng(0), 0.05)
        raw = pool.draw(np.random.default_rng(1), 4096).reshape(4096, -1).view(np.uint8)
        values = dequantize(
            raw if kind != WeightType.F16 else raw.view(np.float16), gguf.GGMLQuantizationType[kind]
        )
        assert raw.shape[1] == kind.block_bytes
        assert values.shape == (4096, kind.block)
        assert values.std() == pytest.approx(0.05, rel=0.02)
        assert abs(values.mean()) < 0.001
        assert np.isfinite(values).all()

    def test_q4_k_weights_are_never_zero(self) -> None:
        raw = make_pool(WeightType.Q4_K, np.random.default_rng(0), 1.0).rows.view(np.uint8)
        assert np.abs(dequantize(raw, gguf.GGMLQuantizationType.Q4_K)).min() > 0.05

    def test_q8_0_agrees_with_the_reference_quantization(self) -> None:
        values = np.random.default_rng(3).standard_normal((100, 32), dtype=np.float32)
        values[7] = 0
        ours = dequantize(quantize_q8_0(values), gguf.GGMLQuantizationType.Q8_0)
        theirs = dequantize(
            gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
        )
        assert np.abs(ours - values).max() <= 1.1 * np.abs(theirs - values).max()


class TestFile:
    def test_the_reference_reader_and_ours_see_the_same_model(self, small: Path) -> None:
        header = read_header_file(small)
        assert len(gguf.GGUFReader(small).tensors) == len(header.tensors)
        shape = moe_shape([header])
        assert (shape.n_layers, shape.n_experts, shape.n_used, shape.n_ff_expert) == (2, 16, 4, 256)
        assert (shape.architecture, shape.quant, shape.n_vocab) == ("qwen3moe", "Q4_K", 500)

    def test_it_says_that_it_is_synthetic_and_how_it_was_made(self, small: Path) -> None:
        metadata = read_header_file(small).metadata
        assert metadata[SYNTHETIC_KEY] is True
        assert SyntheticSpec.model_validate_json(str(metadata[SPEC_KEY])) == SMALL

    def test_equal_specs_give_equal_files_and_another_seed_another(self, small: Path, tmp_path: Path) -> None:
        again, other = tmp_path / "small.gguf", tmp_path / "other" / "small.gguf"
        synthesize(again, SMALL)
        synthesize(other, SMALL.model_copy(update={"seed": 2}))
        assert again.read_bytes() == small.read_bytes()
        assert other.read_bytes()[-100_000:] != small.read_bytes()[-100_000:]

    def test_every_expert_is_different(self, small: Path) -> None:
        experts = weights(small, "blk.1.ffn_up_exps.weight")
        assert len({expert.tobytes() for expert in experts}) == 16

    def test_no_two_tokens_have_the_same_output_row(self, tmp_path: Path) -> None:
        synthesize(tmp_path / "model.gguf", SMALL.model_copy(update={"n_vocab": 20_000}))
        rows = weights(tmp_path / "model.gguf", "output.weight")
        assert len({row.tobytes() for row in rows}) == 20_000

    @pytest.mark.parametrize("quant", list(WeightType))
    def test_every_weight_type_can_be_written(self, quant: WeightType, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        synthesize(path, SMALL.model_copy(update={"quant": quant}))
        assert moe_shape([read_header_file(path)]).quant == quant
        assert np.isfinite(weights(path, "blk.0.ffn_down_exps.weight")).all()

    def test_nothing_is_left_when_writing_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stops(gguf_write.NoProgress):
            def update(self, done: float, total: float | None = None, note: str = "") -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path / "model.gguf", SMALL, progress=Stops())
        assert list(tmp_path.iterdir()) == []

    def test_a_pipe_is_not_replaced_by_a_model(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with pytest.raises(BadSettingError, match="no file"):
            synthesize(pipe, SMALL)
        assert pipe.is_fifo()

    def test_what_a_killed_process_left_is_removed(self, tmp_path: Path) -> None:
        abandoned = tmp_path / ".model.gguf.999999999.part"
        alive = tmp_path / ".model.gguf.1.part"
        abandoned.write_bytes(b"x")
        alive.write_bytes(b"x")
        synthesize(tmp_path / "model.gguf", SMALL)
        assert not abandoned.exists()
        assert alive.exists()

    def test_a_model_larger_than_the_disk_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        huge = SyntheticSpec(
            n_layers=512, n_experts=512, n_embd=16384, n_ff_expert=65536, with_tokenizer=False
        )
        with pytest.raises(NoSpaceError):
            synthesize(tmp_path / "huge.gguf", huge)
        assert list(tmp_path.iterdir()) == []


class TestTokenizer:
    @pytest.fixture
    def vocabulary(self, tmp_path: Path) -> Path:
        path = tmp_path / "vocabulary.gguf"
        write_vocabulary(path, WORDS)
        return path

    def test_only_plain_text_is_speakable(self, vocabulary: Path) -> None:
        found = read_vocabulary(vocabulary)
        said = [word for word, speakable in zip(WORDS, found.speakable, strict=True) if speakable]
        assert said == ["the", "Ġharbour", "def"]

    def test_it_is_copied_whole(self, vocabulary: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        synthesize(path, SMALL.model_copy(update={"with_tokenizer": True}), tokenizer_vocab=vocabulary)
        fields = gguf.GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"]
        assert [bytes(tokens.parts[index]).decode() for index in tokens.data] == WORDS
        assert fields["tokenizer.ggml.eos_token_id"].contents() == len(WORDS) - 1
        assert read_header_file(path).metadata["tokenizer.ggml.tokens"] == ArraySummary(8, len(WORDS))

    def test_tokens_that_are_not_plain_text_get_logit_zero(self, vocabulary: Path, tmp_path: Path) -> None:
        path = tmp_path / "model.gguf"
        synthesize(path, SMALL.model_copy(update={"with_tokenizer": True}), tokenizer_vocab=vocabulary)
        head = weights(path, "output.weight")
        assert [bool(row.any()) for row in head] == list(read_vocabulary(vocabulary).speakable)

    def test_it_must_be_given_when_wanted(self, tmp_path: Path, small: Path) -> None:
        wanting = SMALL.model_copy(update={"with_tokenizer": True})
        with pytest.raises(BadSettingError):
            synthesize(tmp_path / "model.gguf", wanting)
        with pytest.raises(ModelCorruptError, match="no tokenizer"):
            synthesize(tmp_path / "model.gguf", wanting, tokenizer_vocab=small)


class TestRouting:
    """What the router sees is computed here as llama.cpp does, for the first MoE block's input."""

    def selections(self, tmp_path: Path, layer: int, skew: float) -> NDArray[np.intp]:
        spec = SMALL.model_copy(
            update={"n_vocab": 3000, "n_experts": 64, "n_used": 8, "n_layers": 3, "skew": skew}
        )
        path = tmp_path / f"skew-{skew}.gguf"
        synthesize(path, spec)
        residual = weights(path, "token_embd.weight")
        # Stand-in for what attention and the layers before have added, with the energy the recipe plans.
        added = np.sqrt((2 * layer + 1) * 2.0 / (2 * spec.n_layers))
        noise = np.random.default_rng(5).standard_normal(residual.shape, dtype=np.float32) * added
        residual = residual + noise
        normed = residual / np.sqrt((residual**2).mean(axis=1, keepdims=True))
        normed = normed * weights(path, f"blk.{layer}.ffn_norm.weight")
        logits = normed @ weights(path, f"blk.{layer}.ffn_gate_inp.weight").T
        assert logits.std() == pytest.approx(2.0, rel=0.25)
        assert 0.15 < (softmax(np.sort(logits)[:, -8:]) ** 2).sum(axis=1).mean() < 0.4
        return np.argpartition(-logits, 8, axis=1)[:, :8]

    def share_of_top_quarter(self, chosen: NDArray[np.intp]) -> float:
        counts = np.sort(np.bincount(chosen.ravel(), minlength=64))[::-1]
        return float(counts[:16].sum() / counts.sum())

    def test_the_most_used_quarter_of_the_experts_gets_about_60_percent(self, tmp_path: Path) -> None:
        assert 0.5 < self.share_of_top_quarter(self.selections(tmp_path, 2, 0.65)) < 0.7

    def test_early_layers_are_flatter(self, tmp_path: Path) -> None:
        early = self.share_of_top_quarter(self.selections(tmp_path, 0, 0.65))
        late = self.share_of_top_quarter(self.selections(tmp_path, 2, 0.65))
        assert early < late - 0.05

    def test_without_skew_no_expert_is_preferred_but_tokens_still_differ(self, tmp_path: Path) -> None:
        chosen = self.selections(tmp_path, 2, 0.0)
        assert self.share_of_top_quarter(chosen) < 0.35
        assert len({tuple(sorted(row)) for row in chosen[:200]}) > 190


class TestSpec:
    @pytest.mark.parametrize(
        "change",
        [
            {"n_embd": 300},
            {"n_ff_expert": 128},
            {"n_used": 17},
            {"n_head_kv": 3},
            {"quant": "Q8_0", "n_embd": 290},
            {"n_experts": 1},
        ],
    )
    def test_shapes_that_no_file_can_hold_are_refused(self, change: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            SyntheticSpec(**(SMALL.model_dump() | change))
