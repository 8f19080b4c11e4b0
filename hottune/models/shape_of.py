"""From GGUF headers to a `MoeShape`: which bytes are experts, which are dense, what a token adds to KV."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hottune.errors import ModelCorruptError, NotMoeError
from hottune.models.gguf_header import ArraySummary, GgufHeader, MetaValue, TensorInfo
from hottune.models.shape import MoeShape

#: The tensors that llama.cpp's `--cpu-moe` and `--n-cpu-moe` keep in host memory (LLM_FFN_EXPS_REGEX in
#: common/common.h): expert weights, their biases and scales. `ffn_norm_exps` and `_shexp` are not among them.
_EXPERTS = re.compile(r"blk\.(\d{1,6})\.ffn_(up|down|gate|gate_up)_(ch|)exps(\.|$)")
_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
#: One tensor an expert, as conversions before April 2024 had it; llama.cpp no longer loads those.
_OLD_EXPERTS = re.compile(r"blk\.\d+\.ffn_(up|down|gate)\.\d+\.weight")
#: Tables that llama.cpp looks rows up in on the CPU (LLM_TENSOR_LAYER_INPUT in src/llama-arch.cpp).
_HOST_TABLES = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.", "masked_embd_")

_MAX_LAYERS = 4096  # llama.cpp itself stops at 512


def moe_shape(headers: Sequence[GgufHeader]) -> MoeShape:
    """Return the shape of the model whose parts have these headers, in order.

    The KV numbers are those of a cache that keeps every position in every attention layer. Sliding windows
    and layers that share another layer's cache are not taken off, and so they are an upper bound there;
    layers without a cache (recurrent, linear attention, short convolution) count as 0, and so does their
    small fixed state. Layers for multi-token prediction are left out: llama.cpp does not load them unless
    asked.

    Raises:
        NotMoeError: the model has no routed experts.
        ModelCorruptError: the header lacks the keys that describe a language model.
    """
    main = headers[0]
    n_layers = max(0, _count(main, "block_count") - _count(main, "nextn_predict_layers", 0))
    if n_layers > _MAX_LAYERS:
        raise ModelCorruptError(f"The GGUF claims {n_layers} layers.", "It is damaged.", "Download it again.")
    tensors = [tensor for header in headers for tensor in header.tensors]
    tensors = [tensor for tensor in tensors if (_layer_of(tensor) or 0) < n_layers]
    experts = [tensor for tensor in tensors if _EXPERTS.match(tensor.name)]
    if not experts:
        _refuse(main, tensors)
    n_experts = _count(main, "expert_count", _n_experts(experts))
    n_used = _count(main, "expert_used_count", 1)
    _check_experts(experts, n_experts, n_used)

    expert_bytes, dense_bytes = [0] * n_layers, [0] * n_layers
    other_bytes = host_bytes = 0
    for tensor in tensors:
        layer = _layer_of(tensor)
        if layer is None and tensor.name.startswith(_HOST_TABLES):
            host_bytes += tensor.n_bytes
        elif layer is None:
            other_bytes += tensor.n_bytes
        elif _EXPERTS.match(tensor.name):
            expert_bytes[layer] += tensor.n_bytes
        else:
            dense_bytes[layer] += tensor.n_bytes
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is not None and not any(tensor.name == "output.weight" for tensor in tensors):
        other_bytes += embedding.n_bytes  # tied: the output head is a second copy, in VRAM

    kv_k, kv_v = _kv_elements(main, tensors, n_layers)
    by_type: Counter[str] = Counter()
    for tensor in experts:
        by_type[tensor.type.name] += tensor.n_bytes
    return MoeShape(
        architecture=main.architecture,
        n_layers=n_layers,
        n_experts=n_experts,
        n_used=n_used,
        n_embd=_count(main, "embedding_length"),
        n_ff_expert=_n_ff_expert(experts),
        n_params=sum(tensor.n_elements for tensor in tensors),
        layer_expert_bytes=tuple(expert_bytes),
        layer_dense_bytes=tuple(dense_bytes),
        other_bytes=other_bytes,
        host_bytes=host_bytes,
        kv_elements_k=kv_k,
        kv_elements_v=kv_v,
        context_train=_count(main, "context_length", 0),
        n_vocab=_n_vocab(main, embedding),
        quant=by_type.most_common(1)[0][0],
    )


def _refuse(header: GgufHeader, tensors: Sequence[TensorInfo]) -> None:
    if not tensors:
        raise ModelCorruptError(
            f"The GGUF ({header.architecture or 'no architecture'}) has no weights.",
            "It is a vocabulary or a projector alone, or one part of a split model.",
            "Give the model itself; of a split model, the first part, with the others beside it.",
        )
    if any(_OLD_EXPERTS.match(tensor.name) for tensor in tensors):
        raise NotMoeError(
            "The model keeps each expert in a tensor of its own.",
            "Conversions from before April 2024 did; llama.cpp no longer loads them.",
            "Take a newer conversion of the model.",
        )
    raise NotMoeError(
        f"The model ({header.architecture}) is dense: it has no experts to place.",
        "Only Mixture-of-Experts models can keep some of their weights in RAM at little cost.",
        "Choose an MoE model, for example Qwen3-30B-A3B, gpt-oss or GLM-4.5-Air; or try `demo`.",
    )


def _layer_of(tensor: TensorInfo) -> int | None:
    match = _LAYER.match(tensor.name)
    return int(match[1]) if match else None


def _count(header: GgufHeader, key: str, default: int | None = None) -> int:
    """Return an integer of the architecture; where layers differ, the largest."""
    values = _per_layer(header.of_architecture(key))
    if values:
        return max(values)
    if default is None:
        raise ModelCorruptError(
            f"The GGUF's header does not say {header.architecture or '<architecture>'}.{key}.",
            "It is not a language model, or the conversion was broken.",
            "Choose another file of the model.",
        )
    return default


def _per_layer(value: MetaValue | None) -> tuple[int, ...]:
    """Return integers from a number or an array of numbers; nothing from anything else."""
    if isinstance(value, ArraySummary) or value is None:
        return ()
    items = value if isinstance(value, tuple) else (value,)
    return tuple(int(item) for item in items if isinstance(item, int) and item >= 0)


def _n_experts(experts: Sequence[TensorInfo]) -> int:
    return max((tensor.shape[-1] for tensor in experts if tensor.shape), default=0)


def _check_experts(experts: Sequence[TensorInfo], n_experts: int, n_used: int) -> None:
    """Compare what the metadata say about experts with the shapes of their weights."""
    wrong = ""
    if not 1 <= n_used <= n_experts:
        wrong = f"it says that {n_used} of {n_experts} experts are used for a token"
    for tensor in experts:
        whole = len(tensor.shape) == 3 and "_chexps" not in tensor.name  # chunks of experts are fewer
        if whole and tensor.shape[-1] != n_experts:
            wrong = wrong or f"{tensor.name} has {tensor.shape[-1]} experts, the metadata say {n_experts}"
        if not tensor.n_bytes:
            wrong = wrong or f"{tensor.name} has no weights"
    if wrong:
        raise ModelCorruptError(
            f"The GGUF's header contradicts itself: {wrong}.",
            "It is damaged, or the conversion was broken.",
            "Download it again, or choose another file of the model.",
        )


def _n_ff_expert(experts: Sequence[TensorInfo]) -> int:
    """Width of an expert: the inner dimension of its down projection, whose shape is ff x embd x experts."""
    downs = [one.shape[0] for one in experts if one.shape and "ffn_down_exps.weight" in one.name]
    return max(downs, default=0)


def _n_vocab(header: GgufHeader, embedding: TensorInfo | None) -> int:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if embedding is not None and len(embedding.shape) == 2:
        return embedding.shape[1]
    if isinstance(tokens, ArraySummary):
        return tokens.length
    return _count(header, "vocab_size", 0)


def _kv_elements(header: GgufHeader, tensors: Sequence[TensorInfo], n_layers: int) -> tuple[int, int]:
    """Return the elements of K and of V that one token adds, all layers together.

    As in llama.cpp's llama-kv-cache.cpp: head size x KV heads, layer by layer. With multi-head latent
    attention (`key_length_mla` present) K holds the compressed vector and its rotary part, and there is no V.
    """
    heads = _per_layer(header.of_architecture("attention.head_count")) or (1,)
    kv_heads = _per_layer(header.of_architecture("attention.head_count_kv")) or heads
    head_size = _count(header, "embedding_length") // max(1, *heads)
    key = _count(header, "attention.key_length", head_size)
    value = _count(header, "attention.value_length", head_size)
    if _count(header, "attention.key_length_mla", 0):
        value = 0
    pattern = header.of_architecture("attention.sliding_window_pattern")
    windowed = pattern if isinstance(pattern, tuple) else ()  # one flag a layer; a lone number is a period
    key_windowed = _count(header, "attention.key_length_swa", key)
    value_windowed = _count(header, "attention.value_length_swa", value)
    cacheless = _layers_without_cache(tensors)
    total_k = total_v = 0
    for layer in range(n_layers):
        n = kv_heads[layer] if layer < len(kv_heads) else kv_heads[-1]
        if layer in cacheless:
            continue
        short = len(windowed) > layer and windowed[layer]
        total_k += n * (key_windowed if short else key)
        total_v += n * (value_windowed if short else value)
    return total_k, total_v


def _layers_without_cache(tensors: Sequence[TensorInfo]) -> set[int]:
    """Return the layers that mix positions by a recurrence or a convolution alone."""
    parts: dict[int, set[str]] = {}
    for tensor in tensors:
        if match := _LAYER.match(tensor.name):
            parts.setdefault(int(match[1]), set()).add(match[2].split(".")[0])
    attention = {"attn_k", "attn_kv_a_mqa"}
    recurrent = ("ssm_", "shortconv", "time_mix")
    return {
        layer
        for layer, names in parts.items()
        if not names & attention and any(name.startswith(recurrent) for name in names)
    }
