"""What an inflated model says about itself: in its metadata, in reports, and as a card beside the file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hottune.models.gguf_header import GgufHeader
from hottune.units import format_bytes

INFLATED_KEY = "hottune.inflated"


class Inflation(BaseModel):
    """How a model was inflated: from what, to whose shape, and what is not as in either."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(description="name of the small trained model")
    base_sha256: str = Field(description="hash of its file")
    like: str = Field(description="the model or the numbers whose shape this is")
    like_architecture: str = Field(description="general.architecture of that model")
    exact: bool = Field(description="whether every weight of the small model is in here without loss")
    layers: int
    trained_layers: int = Field(description="layers that are the small model's; the others repeat one")
    layer_of: tuple[int, ...] = Field(
        description="for each layer, which of the small model's it is or repeats"
    )
    repeats: tuple[int, ...] = Field(description="layers that route but add nothing, from 0")
    experts: str = Field(description="how the small model's experts became this model's")
    inexact: tuple[str, ...] = Field(description="where this model computes otherwise than the small one")
    not_carried: tuple[str, ...] = Field(description="what the model it is like has and this one has not")
    expert_bytes: int = Field(description="bytes of all routed experts here")
    like_expert_bytes: int = Field(description="bytes of all routed experts there; 0 = made from numbers")
    other_bytes: int = Field(description="bytes of everything else here")
    like_other_bytes: int = Field(description="bytes of everything else there; 0 = made from numbers")
    sentence: str = Field(description="one or two sentences for reports")
    options: tuple[str, ...] = Field(
        default=(), description="options of `hottune models inflate` that make it; of a file its name alone"
    )


def inflation_of(header: GgufHeader) -> Inflation | None:
    """Return what the metadata says; None for a model that is not inflated, or not by this hottune."""
    text = header.metadata.get(INFLATED_KEY)
    if not isinstance(text, str):
        return None
    try:
        return Inflation.model_validate_json(text)
    except ValidationError:
        return None


def sentence(base: str, like: str, repeats: int, layers: int, unlike: bool) -> str:
    """Return what a report must say about its inflated model."""
    parts = [f"Inflated: routing and text are those of {base}, shapes and bytes those of {like}"]
    if unlike:
        parts.append(" as nearly as qwen3moe can have them")
    parts.append(".")
    if repeats:
        parts.append(
            f" {repeats} of {layers} layers repeat another's routing, so their misses come together; "
            "in the real model they are more independent."
        )
    return "".join(parts)


def card(name: str, inflation: Inflation) -> str:
    """Return the model card as Markdown."""
    one = inflation
    lines = [
        f"# {name}",
        "",
        one.sentence,
        "",
        "It serves to measure speed and expert caching with real routing, not to be talked to. Made by",
        "`hottune models inflate`; the mapping is described in docs/inflate.md of hottune.",
        "",
        f"- Small model: {one.base}, sha256 `{one.base_sha256}`",
        f"- Shape: {one.like} ({one.like_architecture})",
        f"- Weights of the small model: {'kept without loss' if one.exact else 'not all kept without loss'}",
        f"- Layers: {one.layers}, of which {one.trained_layers} are the small model's; "
        f"layer of each: {', '.join(str(layer) for layer in one.layer_of)}",
        f"- Experts: {one.experts}",
        f"- Bytes: experts {_against(one.expert_bytes, one.like_expert_bytes)}, "
        f"everything else {_against(one.other_bytes, one.like_other_bytes)}",
        "",
        "## Caveats",
        "",
        *(f"- {line}" for line in caveats(one)),
        "",
    ]
    return "\n".join(lines)


def caveats(inflation: Inflation) -> list[str]:
    """Return what weakens conclusions from this model."""
    found = []
    if inflation.repeats:
        found.append(
            f"{len(inflation.repeats)} layers repeat the routing of a layer of the small model. What misses "
            "in one misses in its repeats at nearly the same token, so the misses of a token scatter more "
            "than in a model whose layers all differ; their mean is not affected."
        )
    found += [f"Inexact: {line}." for line in inflation.inexact]
    found += [f"Not carried over: {line}." for line in inflation.not_carried]
    return found or ["None known."]


def _against(here: int, there: int) -> str:
    text = format_bytes(here)
    return f"{text} (there {format_bytes(there)})" if there else text
