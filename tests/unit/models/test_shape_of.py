"""What counts as an expert, what as dense, and what a token adds to the KV cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from gguf_builder import F32, Q4_K, header, moe_layer, write_small_gguf

from hottune.errors import ModelCorruptError, NotMoeError
from hottune.models.gguf_header import GgufHeader, read_header_file
from hottune.models.shape_of import moe_shape

KEYS = {
    "block_count": 2,
    "embedding_length": 256,
    "expert_count": 8,
    "expert_used_count": 2,
    "attention__head_count": 4,
    "attention__head_count_kv": 2,
    "context_length": 4096,
}
ENDS = {
    "token_embd.weight": ((256, 100), Q4_K),
    "output_norm.weight": ((256,), F32),
    "output.weight": ((256, 100), Q4_K),
}
TABLE_BYTES = 100 * 144
EXPERT_BYTES = 3 * 256 * 512 * 8 // 256 * 144
MXFP4 = GGMLQuantizationType.MXFP4


def model(*layers: dict, **changes: object) -> GgufHeader:
    tensors = dict(ENDS)
    for layer in layers:
        tensors |= layer
    return header(tensors, **(KEYS | changes))


def test_counts_and_bytes_of_an_ordinary_model() -> None:
    shape = moe_shape([model(moe_layer(0), moe_layer(1))])
    assert (shape.n_layers, shape.n_experts, shape.n_used, shape.n_ff_expert) == (2, 8, 2, 512)
    assert shape.layer_expert_bytes == (EXPERT_BYTES, EXPERT_BYTES)
    dense = (256 * 256 + 256 * 128) // 256 * 144 + 256 * 8 * 4
    assert shape.layer_dense_bytes == (dense, dense)
    assert shape.other_bytes == TABLE_BYTES + 256 * 4
    assert shape.host_bytes == TABLE_BYTES
    assert (shape.n_vocab, shape.quant, shape.context_train) == (100, "Q4_K", 4096)
    assert shape.one_expert_bytes == EXPERT_BYTES // 8


def test_a_model_written_by_the_reference_writer_has_its_bytes_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_small_gguf(path)
    parsed = read_header_file(path)
    shape = moe_shape([parsed])
    everything = sum(tensor.n_bytes for tensor in parsed.tensors)
    tied_head = shape.host_bytes
    assert shape.expert_bytes + shape.dense_bytes + shape.host_bytes - tied_head == everything


def test_a_tied_output_head_takes_vram_of_its_own() -> None:
    tensors = {name: facts for name, facts in ENDS.items() if name != "output.weight"} | moe_layer(0)
    tied = moe_shape([header(tensors, **(KEYS | {"block_count": 1}))])
    own = moe_shape([model(moe_layer(0), block_count=1)])
    assert tied.other_bytes == own.other_bytes


def test_leading_dense_layers_have_no_expert_bytes() -> None:
    dense = {"blk.0.ffn_up.weight": ((256, 512), Q4_K), "blk.0.attn_k.weight": ((256, 128), Q4_K)}
    shape = moe_shape([model(dense, moe_layer(1))])
    assert shape.layer_expert_bytes == (0, EXPERT_BYTES)
    assert shape.n_moe_layers == 1


@pytest.mark.parametrize(
    ("name", "is_expert"),
    [
        ("blk.0.ffn_gate_up_exps.weight", True),
        ("blk.0.ffn_down_exps.bias", True),
        ("blk.0.ffn_up_exps.scale", True),
        ("blk.0.ffn_gate_chexps.weight", True),
        ("blk.0.ffn_norm_exps.weight", False),
        ("blk.0.ffn_gate_shexp.weight", False),
        ("blk.0.ffn_gate_inp_shexp.weight", False),
        ("blk.0.ffn_exp_probs_b.bias", False),
    ],
)
def test_names_decide_what_is_an_expert(name: str, is_expert: bool) -> None:
    plain = moe_shape([model(moe_layer(0), block_count=1)])
    more = moe_shape([model(moe_layer(0), {name: ((256, 8), F32)}, block_count=1)])
    assert more.expert_bytes - plain.expert_bytes == (256 * 8 * 4 if is_expert else 0)
    assert more.dense_bytes - plain.dense_bytes == (0 if is_expert else 256 * 8 * 4)


def test_the_quantization_is_the_one_with_most_expert_bytes() -> None:
    mixed = moe_layer(0) | {"blk.0.ffn_down_exps.weight": ((512, 256, 8), GGMLQuantizationType.Q6_K)}
    assert moe_shape([model(mixed, block_count=1)]).quant == "Q4_K"
    mxfp4 = {name: (facts[0], MXFP4) if "_exps" in name else facts for name, facts in moe_layer(0).items()}
    assert moe_shape([model(mxfp4, block_count=1)]).quant == "MXFP4"


def test_parts_of_a_split_model_are_added_up() -> None:
    whole = moe_shape([model(moe_layer(0), moe_layer(1))])
    assert moe_shape([model(moe_layer(0)), header(moe_layer(1), architecture="")]) == whole


def test_layers_for_multi_token_prediction_are_left_out() -> None:
    shape = moe_shape([model(moe_layer(0), moe_layer(1), nextn_predict_layers=1)])
    assert shape.n_layers == 1
    assert shape.expert_bytes == EXPERT_BYTES


class TestKv:
    def elements(self, *layers: dict, **changes: object) -> tuple[int, int]:
        shape = moe_shape([model(*(layers or (moe_layer(0), moe_layer(1))), **changes)])
        return shape.kv_elements_k, shape.kv_elements_v

    def test_head_size_defaults_to_width_over_heads(self) -> None:
        assert self.elements() == (2 * 2 * 64, 2 * 2 * 64)

    def test_key_and_value_lengths_are_used_where_given(self) -> None:
        lengths = {"attention__key_length": 128, "attention__value_length": 32}
        assert self.elements(**lengths) == (2 * 2 * 128, 2 * 2 * 32)

    def test_kv_heads_may_differ_by_layer_and_be_none(self) -> None:
        assert self.elements(attention__head_count_kv=(0, 4)) == (4 * 64, 4 * 64)

    def test_without_a_count_of_kv_heads_all_heads_have_one(self) -> None:
        assert self.elements(attention__head_count_kv=None) == (2 * 4 * 64, 2 * 4 * 64)

    def test_latent_attention_keeps_one_compressed_vector_and_no_values(self) -> None:
        mla = {
            "attention__head_count_kv": 1,
            "attention__key_length": 576,
            "attention__value_length": 512,
            "attention__key_length_mla": 192,
        }
        assert self.elements(**mla) == (2 * 576, 0)

    def test_recurrent_layers_add_nothing(self) -> None:
        recurrent = moe_layer(0) | {"blk.0.ssm_conv1d.weight": ((4, 256), F32)}
        del recurrent["blk.0.attn_k.weight"]
        assert self.elements(recurrent, moe_layer(1)) == (2 * 64, 2 * 64)

    def test_a_layer_with_both_recurrence_and_attention_counts(self) -> None:
        both = moe_layer(0) | {"blk.0.ssm_conv1d.weight": ((4, 256), F32)}
        assert self.elements(both, moe_layer(1)) == (2 * 2 * 64, 2 * 2 * 64)

    def test_windowed_layers_may_have_other_head_sizes_but_keep_every_position(self) -> None:
        windowed = {
            "attention__key_length": 128,
            "attention__value_length": 128,
            "attention__key_length_swa": 64,
            "attention__value_length_swa": 64,
            "attention__sliding_window_pattern": (True, False),
        }
        assert self.elements(**windowed) == (2 * 64 + 2 * 128, 2 * 64 + 2 * 128)


def test_a_dense_model_is_refused_with_advice() -> None:
    dense = {"blk.0.ffn_up.weight": ((256, 512), Q4_K)}
    with pytest.raises(NotMoeError) as caught:
        moe_shape([model(dense, block_count=1)])
    assert "dense" in caught.value.what
    assert "demo" in caught.value.next_step


def test_a_model_with_one_tensor_an_expert_is_told_to_be_converted_again() -> None:
    old = {f"blk.0.ffn_up.{expert}.weight": ((256, 512), Q4_K) for expert in range(8)}
    with pytest.raises(NotMoeError, match="tensor of its own"):
        moe_shape([model(old, block_count=1)])


def test_a_vocabulary_alone_is_no_model() -> None:
    with pytest.raises(ModelCorruptError, match="no weights"):
        moe_shape([header({}, **KEYS)])


def test_a_header_without_layers_or_with_absurdly_many_is_refused() -> None:
    with pytest.raises(ModelCorruptError, match="block_count"):
        moe_shape([model(moe_layer(0), block_count=None)])
    with pytest.raises(ModelCorruptError, match="layers"):
        moe_shape([model(moe_layer(0), block_count=1 << 31)])
