"""Write a small trained model as a large one: its text and its routing, another model's shapes and bytes.

How, in short (docs/inflate.md has the picture): the small model's channels lie scattered in wide rows; all
other channels of the residual stream are exactly zero at every point. Weights that meet those zeros are
random, so that memory and arithmetic do what they do in a real model. Weights that would write to those
channels, or read what the small model has no counterpart for, are zero.

RMS normalisation averages over all channels, of which only the share n/D is not zero: norm weights are
multiplied by sqrt(n/D) and epsilon by n/D, which gives the small model's values again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from hottune.errors import BadSettingError
from hottune.models.base_model import ARCHITECTURE, BaseModel, Groups, layerless
from hottune.models.codecs import GROUP, Fidelity, codec, writable_type
from hottune.models.gguf_write import PlannedTensor, key_value, write_gguf
from hottune.models.inflate_limits import check_room, not_carried
from hottune.models.inflation import INFLATED_KEY, Inflation, sentence
from hottune.models.layout import (
    Places,
    arrange_experts,
    arrange_heads,
    arrange_layers,
    channels,
    chosen_copies,
    head_rows,
    heads_needed,
    spread,
    steering_weights,
)
from hottune.models.patchwork import Patchwork, Pools
from hottune.models.synthesize import SYNTHETIC_KEY
from hottune.models.target import Target, fitting_type
from hottune.progress import Progress

_T = GGMLQuantizationType
_FLOATS = (_T.F32, _T.F16, _T.BF16)
_STEERING = 0.02  # of the steering channels against an embedding's deviation: 1e-5 of its energy
_LIFT = 40.0  # router logits that steering adds even where the residual stream has grown _GROWTH times
_GROWTH = 64.0


def inflate(
    path: Path, base: BaseModel, target: Target, *, base_name: str, progress: Progress | None = None
) -> Inflation:
    """Write `base` in the shape of `target` to `path`, as a stream; memory stays below 1 GiB at any size.

    Equal bases and targets give equal files.

    Raises:
        BadSettingError: the target is too small for the base, or no qwen3moe model can have its shape.
        NoSpaceError: the disk has too little room; found before anything is written.
    """
    plan = _Plan(base, target)
    tensors = plan.tensors()
    found = plan.inflation(base_name, tensors)
    pairs = plan.pairs(path.stem, found)
    tokenizer, n_keys = base.tokenizer(plan.n_vocab)
    metadata = b"".join(key_value(key, value) for key, value in pairs.items()) + tokenizer
    write_gguf(path, metadata, len(pairs) + n_keys, tensors, progress)
    return found


def foreseen(base: BaseModel, target: Target, *, base_name: str) -> tuple[Inflation, int]:
    """Return what `inflate` would say of the model and how many bytes of weights it would write.

    Raises:
        BadSettingError: as `inflate`.
    """
    plan = _Plan(base, target)
    tensors = plan.tensors()
    return plan.inflation(base_name, tensors), sum(tensor.n_bytes for tensor in tensors)


class _Plan:
    """Plans every tensor of the large model; the weights are made when they are written."""

    def __init__(self, base: BaseModel, target: Target) -> None:
        self.base, self.target = base, target
        check_room(base, target)
        self.kept: Counter[tuple[str, str]] = Counter()  # matrices that are not exact, by name and why
        self.pools = Pools()
        self.layers = arrange_layers(base.n_layers, target.n_layers)
        self.experts = arrange_experts(base.n_experts, target.n_experts)
        wanted = (
            max(1, round(target.q_width / base.head_dim)),
            max(1, round(target.kv_width / base.head_dim)),
        )
        small = (base.n_head, base.n_head_kv)
        self.n_head, self.n_head_kv = heads_needed(small, wanted)
        self.heads = arrange_heads(small, (self.n_head, self.n_head_kv), base.head_dim)
        n_groups = base.n_embd // GROUP
        steered = int(self.experts.n_copies > 1)
        terms = _terms(target, n_groups + steered, target.n_embd)
        found = spread(n_groups + steered, target.n_embd, terms)
        self.stream = Places.of(found[:n_groups])
        self.steering = [places[0] for places in found[n_groups:]]  # one, when copies are chosen
        n_hidden = base.n_ff // GROUP
        self.hidden = Places.of(spread(n_hidden, target.n_ff, _terms(target, n_hidden, target.n_ff)))
        self.n_vocab = max(base.n_vocab, target.n_vocab)
        self.share = terms * base.n_embd / target.n_embd

    def tensors(self) -> list[PlannedTensor]:
        """Return all tensors in the order in which they are written."""
        base, target = self.base, self.target
        found = [*self._embeddings(), self._norm("output_norm.weight", scaled=True)]
        q_width, kv_width = self.n_head * base.head_dim, self.n_head_kv * base.head_dim
        for number, (role, types) in enumerate(zip(self.layers, target.types, strict=True)):
            here, there = f"blk.{number}.", f"blk.{role.of}."

            def name(part: str, here: str = here, there: str = there) -> tuple[str, str]:
                return f"{here}{part}.weight", f"{there}{part}.weight"

            found += [
                self._norm(*name("attn_norm"), scaled=True),
                self._norm(*name("ffn_norm"), scaled=True, steered=True),
                self._norm(*name("attn_q_norm")),
                self._norm(*name("attn_k_norm")),
                self._matrix(*name("attn_q"), (target.n_embd, q_width), types["attn_q"], rows=self._q_rows()),
                self._matrix(
                    *name("attn_k"), (target.n_embd, kv_width), types["attn_k"], rows=self._kv_rows()
                ),
                self._matrix(
                    *name("attn_v"), (target.n_embd, kv_width), types["attn_v"], rows=self._kv_rows()
                ),
                self._matrix(
                    *name("attn_output"),
                    (q_width, target.n_embd),
                    types["attn_output"],
                    places=Places(self.heads.delivers, self.heads.seconds),
                    live=range(q_width // GROUP),
                    rows=self._residual_rows(role.repeat),
                ),
                self._router(*name("ffn_gate_inp"), number, types["ffn_gate_inp"]),
            ]
            for part in ("ffn_gate_exps", "ffn_up_exps"):
                rows = self.hidden.rows(target.n_ff)
                shape = (target.n_embd, target.n_ff, target.n_experts)
                found.append(
                    self._matrix(
                        *name(part),
                        shape,
                        types[part],
                        live=self.steering,
                        rows=self._stacked(rows, base.n_ff),
                    )
                )
            rows = self._residual_rows(role.repeat)
            found.append(
                self._matrix(
                    *name("ffn_down_exps"),
                    (target.n_ff, target.n_embd, target.n_experts),
                    types["ffn_down_exps"],
                    places=self.hidden,
                    rows=self._stacked(rows, base.n_embd),
                )
            )
        return found

    def pairs(self, name: str, inflation: Inflation) -> dict[str, str | bool | int | float]:
        """Return the metadata beside the tokenizer's."""
        base, target = self.base, self.target
        numbers: dict[str, int | float] = {
            "block_count": target.n_layers,
            "context_length": max(base.context, target.context),
            "embedding_length": target.n_embd,
            "feed_forward_length": target.n_ff * target.n_used,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv,
            "attention.key_length": base.head_dim,
            "attention.value_length": base.head_dim,
            "attention.layer_norm_rms_epsilon": base.epsilon * self.share,
            "expert_count": target.n_experts,
            "expert_used_count": target.n_used,
            "expert_feed_forward_length": target.n_ff,
        }
        kept = {
            key: value
            for key, value in base.header.metadata.items()
            if key.startswith(f"{ARCHITECTURE}.") and isinstance(value, (str, bool, int, float))
        }
        pairs: dict[str, str | bool | int | float] = {
            "general.architecture": ARCHITECTURE,
            "general.name": name,
            "general.type": "model",
            "general.quantization_version": 2,
            SYNTHETIC_KEY: True,
            INFLATED_KEY: inflation.model_dump_json(),
        }
        pairs |= kept | {f"{ARCHITECTURE}.{key}": value for key, value in numbers.items()}
        pairs[f"{ARCHITECTURE}.vocab_size"] = self.n_vocab
        return pairs

    def inflation(self, base_name: str, tensors: list[PlannedTensor]) -> Inflation:
        """Return the record of what was done; to be called after `tensors`."""
        base, target = self.base, self.target
        expert_bytes = sum(tensor.n_bytes for tensor in tensors if "_exps." in tensor.name)
        like_experts = sum(tensor.n_bytes for tensor in target.tensors if "_exps." in tensor.name)
        exact_weights = not self.kept
        inexact = [f"{name} ({count} tensors) {why}" for (name, why), count in sorted(self.kept.items())]
        inexact += self._behaviour()
        repeats = tuple(number for number, role in enumerate(self.layers) if role.repeat)
        missing = [*target.remarks, *self._heads_remark(), *not_carried(target, tensors)]
        unlike = bool(missing)
        return Inflation(
            base=base_name,
            base_sha256=base.sha256,
            like=target.name,
            like_architecture=target.architecture,
            exact=exact_weights and not self._behaviour(),
            layers=target.n_layers,
            trained_layers=target.n_layers - len(repeats),
            layer_of=tuple(role.of for role in self.layers),
            repeats=repeats,
            experts=self._experts_sentence(),
            inexact=tuple(inexact),
            not_carried=tuple(missing),
            expert_bytes=expert_bytes,
            like_expert_bytes=like_experts,
            other_bytes=sum(tensor.n_bytes for tensor in tensors) - expert_bytes,
            like_other_bytes=sum(tensor.n_bytes for tensor in target.tensors) - like_experts,
            options=target.options,
            sentence=sentence(base_name, target.name, len(repeats), target.n_layers, unlike),
        )

    def _behaviour(self) -> list[str]:
        """Return where the computation itself differs, whatever the types."""
        base, target, found = self.base, self.target, []
        if target.n_layers < base.n_layers:
            found.append(f"{base.n_layers - target.n_layers} of the small model's layers are missing")
        if target.n_experts < base.n_experts:
            found.append(f"{base.n_experts - target.n_experts} of its experts are missing in every layer")
        if target.n_used != base.n_used:
            found.append(f"{target.n_used} experts are used for a token, it was trained with {base.n_used}")
        return found

    def _experts_sentence(self) -> str:
        base, target = self.base, self.target
        if target.n_experts == base.n_experts:
            return f"the small model's {base.n_experts}, one for one"
        if target.n_experts < base.n_experts:
            return f"{target.n_experts} of the small model's {base.n_experts}, evenly by number"
        return (
            f"up to {self.experts.n_copies} copies of each of the small model's {base.n_experts}; which copy "
            f"is used depends on the token, in {self.experts.n_teams} teams of experts independently. How "
            "well caches do with more experts than trained follows from that rule, not from training"
        )

    def _heads_remark(self) -> list[str]:
        base, target = self.base, self.target
        found = []
        for what, width, heads in (
            ("queries", target.q_width, self.n_head),
            ("keys and values", target.kv_width, self.n_head_kv),
        ):
            if width != heads * base.head_dim:
                found.append(f"{what} are {heads * base.head_dim} wide instead of {width}")
        return found

    def _embeddings(self) -> list[PlannedTensor]:
        base, target = self.base, self.target
        rows = np.arange(self.n_vocab, dtype=np.int64)
        if self.n_vocab > base.n_vocab:
            rows[base.n_vocab :] = base.unused_token
        shape = (target.n_embd, self.n_vocab)
        places, source, kind = self.stream.everywhere, base.groups("token_embd.weight"), target.embedding_type
        head_type = target.head_type
        if self.steering or _coarse(kind):
            # A row is not summed, and each group needs its own scale; a table that is looked up a row at a
            # time costs nothing.
            kind, head_type = _T.Q8_0, head_type or kind
        if self.steering:
            places = [*places, (self.steering[0], base.n_embd // GROUP)]
            source = self._steered(source)
        everywhere = range(target.n_embd // GROUP)
        found = [
            self._matrix(
                "token_embd.weight",
                "",
                shape,
                kind,
                places=Places(places),
                live=everywhere,
                rows=rows,
                source=source,
            )
        ]
        if head_type is not None:
            origin = "output.weight" if base.has_head else "token_embd.weight"
            found.append(self._matrix("output.weight", origin, shape, head_type, rows=rows))
        elif base.has_head:
            raise BadSettingError(
                f"{target.name} has no output matrix, and the small model's differs from its embedding.",
                "",
                "Choose another target, or a small model without an output matrix.",
            )
        return found

    def _steered(self, table: Groups) -> Groups:
        """Add the group of steering channels to the embedding."""
        q = np.zeros((len(table.q), 1, GROUP), dtype=np.int8)
        copies = chosen_copies(len(table.q), self.experts)
        teams = np.arange(self.experts.n_teams)
        q[np.arange(len(q))[:, None], 0, teams * self.experts.n_copies + copies] = 1
        d = np.full((len(q), 1), self._deviation(table) * _STEERING, dtype=np.float16)
        return Groups(np.concatenate([table.d, d], axis=1), np.concatenate([table.q, q], axis=1))

    def _deviation(self, table: Groups) -> float:
        energy = (table.q.astype(np.float32) ** 2).mean(axis=2) * table.d.astype(np.float32) ** 2
        return float(np.sqrt(energy.mean()))

    def _matrix(
        self,
        name: str,
        origin: str,
        shape: tuple[int, ...],
        kind: GGMLQuantizationType,
        *,
        rows: NDArray[np.int64],
        places: Places | None = None,
        live: Sequence[int] = (),
        source: Groups | None = None,
    ) -> PlannedTensor:
        written = fitting_type(kind, shape[0])

        def patchwork(small: Groups) -> Patchwork:
            return Patchwork(name, written, shape[0], small, places or self.stream, rows, live)

        empty = Groups(np.zeros((0, 0), np.float16), np.zeros((0, 0, GROUP), np.int8))
        if (fidelity := patchwork(empty).fidelity) is not Fidelity.EXACT and (rows >= 0).any():
            self.kept[layerless(name), f"{fidelity.value} to {written.name}"] += 1

        def make() -> Iterator[NDArray[Any]]:
            return patchwork(source or self.base.groups(origin)).pieces(self.pools)

        return PlannedTensor(name, shape, written, make)

    def _norm(
        self, name: str, origin: str | None = None, *, scaled: bool = False, steered: bool = False
    ) -> PlannedTensor:
        """Plan a norm: `scaled` runs over the residual stream, only `steered` lets steering through."""
        small = self.base.floats(origin or name)
        if not scaled:
            return PlannedTensor(name, (len(small),), _T.F32, lambda: [small])
        width, factor = self.target.n_embd, math.sqrt(self.share)

        def make() -> list[NDArray[np.float32]]:
            rng = np.random.default_rng([*name.encode()])
            weights = rng.choice(small, width).astype("<f4")  # meets zeros: any plausible value
            of = self.stream.rows(width)
            weights[of >= 0] = small[of[of >= 0]]
            weights[channels(self.steering)] = float(steered)
            weights *= np.float32(factor)
            return [weights]

        return PlannedTensor(name, (width,), _T.F32, make)

    def _router(self, name: str, origin: str, layer: int, kind: GGMLQuantizationType) -> PlannedTensor:
        small, experts, width = self.base.floats(origin), self.experts, self.target.n_embd
        written = kind if kind in _FLOATS else _T.F32
        if written is not _T.F32:
            self.kept[layerless(name), f"rounded to {written.name}"] += 1

        def make() -> list[NDArray[Any]]:
            rng = np.random.default_rng([*name.encode()])
            weights = rng.standard_normal((len(experts.of), width), dtype=np.float32) * small.std()
            of = self.stream.rows(width)
            weights[:, of >= 0] = small[experts.of][:, of[of >= 0]]
            weights[:, channels([position for position, _ in self.stream.seconds])] = 0
            if self.steering:
                # What the ffn norm makes of the steering channels at most _GROWTH times down the stream.
                arrives = _STEERING / _GROWTH
                weights[:, channels(self.steering)] = steering_weights(experts, layer, _LIFT / arrives)
            return [weights if written is _T.F32 else quantize(weights, written)]

        return PlannedTensor(name, (width, len(experts.of)), written, make)

    def _q_rows(self) -> NDArray[np.int64]:
        return head_rows(self.heads.q, self.base.head_dim)

    def _kv_rows(self) -> NDArray[np.int64]:
        return head_rows(self.heads.kv, self.base.head_dim)

    def _residual_rows(self, nothing: bool) -> NDArray[np.int64]:
        """Return the rows that write to the residual stream; `nothing`: they all must give zero."""
        rows = self.stream.rows(self.target.n_embd)
        return np.full_like(rows, -1) if nothing else rows

    def _stacked(self, rows: NDArray[np.int64], per_expert: int) -> NDArray[np.int64]:
        """Return one expert's rows for all experts, one after the other."""
        stacked = rows + self.experts.of[:, None].astype(np.int64) * per_expert
        return np.where(rows < 0, -1, stacked).ravel()


def _terms(target: Target, n_groups: int, width: int) -> int:
    """Return in how many places each of `n_groups` lies in a row of `width`: two if a type needs them."""
    kinds = {kind for types in target.types for kind in types.values()}
    kinds |= {target.embedding_type, target.head_type or target.embedding_type}
    return 2 if any(map(_coarse, kinds)) and width // (2 * GROUP) >= n_groups else 1


def _coarse(kind: GGMLQuantizationType) -> bool:
    """Return whether a type holds the small model's weights only as sums of two."""
    return codec(writable_type(kind)).sum_fidelity is not None
