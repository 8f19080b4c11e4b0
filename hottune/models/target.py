"""What an inflated model shall look like: counts, widths and the type of every tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hottune.errors import BadSettingError
from hottune.models.base_model import layerless
from hottune.models.codecs import writable_type
from hottune.models.gguf_header import GgufHeader, TensorInfo, read_header_file
from hottune.models.names import split_part
from hottune.models.resolve import hub_repo, model_parts
from hottune.models.shape_of import moe_shape

_T = GGMLQuantizationType
#: Where other architectures keep what qwen3moe has in a tensor of its own.
_ELSEWHERE = {
    "attn_q": ("attn_q", "attn_qkv", "attn_q_b"),
    "attn_k": ("attn_k", "attn_qkv", "attn_kv_b", "attn_k_b"),
    "attn_v": ("attn_v", "attn_qkv", "attn_kv_b", "attn_v_b"),
    "attn_output": ("attn_output", "ssm_out"),
    "ffn_gate_inp": ("ffn_gate_inp",),
    "ffn_gate_exps": ("ffn_gate_exps", "ffn_gate_up_exps"),
    "ffn_up_exps": ("ffn_up_exps", "ffn_gate_up_exps"),
    "ffn_down_exps": ("ffn_down_exps",),
}
MATRICES = tuple(_ELSEWHERE)


class Recipe(StrEnum):
    """Which types a model made from numbers has; names as llama.cpp's."""

    Q4_K_M = "Q4_K_M"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q3_K = "Q3_K"
    Q2_K = "Q2_K"
    MXFP4 = "MXFP4"
    IQ4_XS = "IQ4_XS"
    F16 = "F16"
    BF16 = "BF16"


@dataclass(frozen=True)
class Target:
    """The shape to write; `types` holds for each layer a type for each of `MATRICES`.

    Attributes:
        q_width: width of all query heads together; likewise `kv_width`.
        head_type: type of `output.weight`; None when the embedding serves as the output head.
        tensors: of the model it is like, to say what was not carried over; empty when made from numbers.
        source_layers: for each layer, which layer of that model it stands for.
        remarks: what is not as in that model, beside tensors.
        options: of the command that asked for this.
    """

    name: str
    architecture: str
    n_layers: int
    n_experts: int
    n_used: int
    n_embd: int
    n_ff: int
    q_width: int
    kv_width: int
    n_vocab: int  # 0 = as the small model
    context: int  # 0 = as the small model
    types: tuple[dict[str, GGMLQuantizationType], ...]
    embedding_type: GGMLQuantizationType
    head_type: GGMLQuantizationType | None
    tensors: tuple[TensorInfo, ...] = ()
    source_layers: tuple[int, ...] = ()
    remarks: tuple[str, ...] = field(default=())
    options: tuple[str, ...] = field(default=())


def read_target(argument: str) -> Target:
    """Return the target like a local GGUF or `owner/repo[:quant]`; only headers are read.

    Raises:
        HottuneError: what `target_like`, `model_parts` and `remote_headers` raise.
    """
    if (repo := hub_repo(argument)) is not None:
        from hottune.models import huggingface  # its client takes long to import

        remote = huggingface.remote_headers(*repo)
        return target_like(remote.name, remote.headers)
    parts = model_parts(Path(argument).expanduser())
    split = split_part(parts[0].name)
    return target_like(split[0] if split else parts[0].stem, [read_header_file(part) for part in parts])


def target_like(name: str, headers: Sequence[GgufHeader]) -> Target:
    """Return the nearest qwen3moe shape to the model with these headers (of all its parts, in order).

    Expert tensors keep count, shape and type, merged gate-and-up ones as two. Layers without experts are left
    out, since qwen3moe has none. Attention keeps its widths where the model has ordinary attention.

    Raises:
        NotMoeError, ModelCorruptError: as `moe_shape`.
        BadSettingError: the expert tensors are such that qwen3moe cannot have them.
    """
    shape = moe_shape(headers)
    tensors = {tensor.name: tensor for header in headers for tensor in header.tensors}
    moe_layers = [layer for layer in range(shape.n_layers) if shape.layer_expert_bytes[layer]]
    remarks: list[str] = []
    if left := shape.n_layers - len(moe_layers):
        remarks.append(f"{left} of {shape.n_layers} layers have no experts and were left out")
    first = moe_layers[0]
    down = tensors.get(f"blk.{first}.ffn_down_exps.weight")
    if down is None or len(down.shape) != 3:
        raise BadSettingError(
            f"{name} keeps its experts in a way that cannot be copied (no stacked ffn_down_exps).",
            f"Its architecture is {shape.architecture}.",
            "Give the shape by numbers: --layers, --experts, --used, --embd, --ff.",
        )
    n_ff, n_embd, n_experts = down.shape
    if n_embd != shape.n_embd:
        remarks.append(f"experts work on {n_embd} channels, the model has {shape.n_embd}: all have {n_embd}")
    q_width, kv_width, kind = _attention(headers[0], tensors, moe_layers)
    if kind:
        remarks.append(kind)
    embedding = tensors.get("token_embd.weight")
    head = tensors.get("output.weight")
    embedding_type = embedding.type if embedding else _T.Q8_0
    types = tuple(_types(tensors, layer) for layer in moe_layers)
    return Target(
        name=name,
        architecture=shape.architecture,
        n_layers=len(moe_layers),
        n_experts=n_experts,
        n_used=shape.n_used,
        n_embd=n_embd,
        n_ff=n_ff,
        q_width=q_width,
        kv_width=kv_width,
        n_vocab=shape.n_vocab,
        context=shape.context_train,
        types=types,
        embedding_type=embedding_type,
        head_type=head.type if head else None,
        tensors=tuple(
            tensor
            for tensor in tensors.values()
            if tensor.name == layerless(tensor.name) or _layer(tensor.name) < shape.n_layers
        ),
        source_layers=tuple(moe_layers),
        remarks=tuple(remarks),
    )


def target_of_numbers(
    *,
    n_layers: int,
    n_experts: int,
    n_used: int,
    n_embd: int,
    n_ff: int,
    q_width: int,
    kv_width: int,
    recipe: Recipe,
    n_vocab: int = 0,
    name: str = "",
) -> Target:
    """Return a target with the types that the recipe's name stands for."""
    types = tuple(_recipe_types(recipe, layer, n_layers) for layer in range(n_layers))
    mixed = recipe is Recipe.Q4_K_M
    plain = _plain(recipe)
    return Target(
        name=name or f"{n_layers} layers, {n_experts} experts of {n_ff}, width {n_embd}, {recipe}",
        architecture="qwen3moe",
        n_layers=n_layers,
        n_experts=n_experts,
        n_used=n_used,
        n_embd=n_embd,
        n_ff=n_ff,
        q_width=q_width,
        kv_width=kv_width,
        n_vocab=n_vocab,
        context=0,
        types=types,
        embedding_type=plain,
        head_type=_T.Q6_K if mixed else plain,
    )


def with_layers(target: Target, n_layers: int) -> Target:
    """Return the target at another depth: its layers, evenly taken, so that types keep their shares."""
    if n_layers == target.n_layers:
        return target
    chosen = [layer * target.n_layers // n_layers for layer in range(n_layers)]
    sources = tuple(target.source_layers[layer] for layer in chosen) if target.source_layers else ()
    return replace(
        target,
        n_layers=n_layers,
        types=tuple(target.types[layer] for layer in chosen),
        source_layers=sources,
        remarks=(*target.remarks, f"{n_layers} of {target.n_layers} layers, as asked for"),
    )


def fitting_type(kind: GGMLQuantizationType, width: int) -> GGMLQuantizationType:
    """Return a type that can be written and whose blocks divide a row of `width`."""
    kind = writable_type(kind)
    return kind if width % GGML_QUANT_SIZES[kind][0] == 0 else _T.Q8_0


def _recipe_types(recipe: Recipe, layer: int, n_layers: int) -> dict[str, GGMLQuantizationType]:
    plain = _plain(recipe)
    types = dict.fromkeys(MATRICES, plain) | {"ffn_gate_inp": _T.F32}
    # Which layers get more bits for V and down: `use_more_bits` in llama.cpp's src/llama-quant.cpp.
    eighth = n_layers // 8
    more = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
    if recipe is Recipe.Q4_K_M and more:
        types |= {"attn_v": _T.Q6_K, "ffn_down_exps": _T.Q6_K}
    return types


def _plain(recipe: Recipe) -> GGMLQuantizationType:
    return GGMLQuantizationType["Q4_K" if recipe is Recipe.Q4_K_M else recipe.value]


def _attention(
    header: GgufHeader, tensors: dict[str, TensorInfo], layers: Sequence[int]
) -> tuple[int, int, str]:
    """Return the widths of queries and of keys, and what is not ordinary ("" when all is)."""
    pairs: Counter[tuple[int, int]] = Counter()
    for layer in layers:
        q, k = tensors.get(f"blk.{layer}.attn_q.weight"), tensors.get(f"blk.{layer}.attn_k.weight")
        output = tensors.get(f"blk.{layer}.attn_output.weight")
        if q and k and output and len(k.shape) == 2:
            pairs[output.shape[0], k.shape[1]] += 1  # a gated query tensor is wider than its heads
    ordinary = sum(pairs.values())
    if ordinary:
        (q_width, kv_width), _ = pairs.most_common(1)[0]
        if ordinary == len(layers) and len(pairs) == 1:
            return q_width, kv_width, ""
        return (
            q_width,
            kv_width,
            (
                f"{len(layers) - pairs[q_width, kv_width]} of {len(layers)} layers have another kind or "
                "width of attention; here all have the same"
            ),
        )
    heads = _number(header, "attention.head_count", 32)
    size = _number(header, "attention.value_length_mla", _number(header, "attention.value_length", 128))
    kv_heads = min(heads, _number(header, "attention.head_count_kv", heads))
    return heads * size, kv_heads * size, "its attention has no counterpart; ordinary attention stands in"


def _number(header: GgufHeader, key: str, default: int) -> int:
    value = header.of_architecture(key)
    items = value if isinstance(value, tuple) else (value,)
    found = [item for item in items if isinstance(item, int) and not isinstance(item, bool) and item > 0]
    return max(found, default=default)


def _types(tensors: dict[str, TensorInfo], layer: int) -> dict[str, GGMLQuantizationType]:
    types = {}
    for name, places in _ELSEWHERE.items():
        found = (tensors.get(f"blk.{layer}.{place}.weight") for place in places)
        types[name] = next((tensor.type for tensor in found if tensor), _T.Q8_0)
    return types


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def bytes_of(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Return the bytes of a tensor."""
    block, n_bytes = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * n_bytes
