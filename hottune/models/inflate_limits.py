"""What an inflated model cannot be: shapes that are too small, and what of the target it leaves out."""

from __future__ import annotations

from collections import Counter

from gguf.constants import GGMLQuantizationType

from hottune.errors import BadSettingError
from hottune.models.base_model import BaseModel, layerless
from hottune.models.codecs import GROUP
from hottune.models.gguf_write import PlannedTensor
from hottune.models.target import Target


def not_carried(target: Target, tensors: list[PlannedTensor]) -> list[str]:
    """Return the tensors that the target's model has and this one has not, or has otherwise, by name."""
    ours = {tensor.name: tensor for tensor in tensors}
    number_of = {source: number for number, source in enumerate(target.source_layers)}
    missing: Counter[str] = Counter()
    changed: Counter[tuple[str, str]] = Counter()
    n_bytes: Counter[str] = Counter()
    for tensor in target.tensors:
        plain = layerless(tensor.name)
        name = plain
        if plain != tensor.name:
            source = int(tensor.name.split(".")[1])
            name = f"blk.{number_of.get(source, -1)}.{plain}"
            if source not in number_of:
                plain = f"layers left out: {plain}"
        mine = ours.get(name)
        if mine is None:
            missing[plain] += 1
            n_bytes[plain] += tensor.n_bytes
        elif mine.shape != tensor.shape or mine.type != tensor.type:
            there, here = _short(tensor.shape, tensor.type), _short(mine.shape, mine.type)
            changed[plain, f"{there} there, {here} here"] += 1
    lines = [f"{name} ({count} tensors, {n_bytes[name]:,} bytes)" for name, count in sorted(missing.items())]
    return [*lines, *(f"{name} ({count} tensors): {how}" for (name, how), count in sorted(changed.items()))]


def _short(shape: tuple[int, ...], kind: GGMLQuantizationType) -> str:
    return f"{'×'.join(str(size) for size in shape)} {kind.name}"


def check_room(base: BaseModel, target: Target) -> None:
    """Make sure that the small model fits into the target.

    Raises:
        BadSettingError: it does not.
    """
    too_small = [
        f"{what} {have} is below {need}"
        for what, have, need in (
            ("width", target.n_embd, base.n_embd),
            ("expert width", target.n_ff, base.n_ff),
            ("layers", target.n_layers, 1),
            ("experts", target.n_experts, max(2, target.n_used)),
            ("experts used", target.n_used, 1),
        )
        if have < need
    ]
    too_small += [
        f"{what} {size} is no multiple of {GROUP}"
        for what, size in (("width", target.n_embd), ("expert width", target.n_ff))
        if size % GROUP
    ]
    if target.n_experts > base.n_experts and target.n_embd < base.n_embd + GROUP:
        too_small.append(f"width {target.n_embd} leaves no room beside {base.n_embd} to choose expert copies")
    if target.n_experts > base.n_experts * GROUP or target.n_layers > 512 or target.n_experts > 1024:
        too_small.append(f"{target.n_layers} layers of {target.n_experts} experts are too many")
    if too_small:
        raise BadSettingError(
            f"The small model does not fit into {target.name}: {'; '.join(too_small)}.",
            "It has to lie whole in the large one's rows.",
            "Choose a larger shape.",
        )
