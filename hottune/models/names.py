"""What file names of GGUF models say: parts of a split model, quantization, projectors to leave out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|FP16|F32))(?=$|[-._/])",
    re.IGNORECASE,
)
#: Parts of multimodal models, importance matrices and draft heads: GGUF files that are not the model.
_NOT_MODELS = re.compile(r"(^|[-._/])(mmproj|imatrix|mtp|eagle3?)([-._/]|$)", re.IGNORECASE)

#: Without a wish, the first of these that a repository has: four bits first, as that is what people run when
#: a model does not fit; then the larger ones, ending with unquantized.
PREFERRED_QUANTS = (
    "Q4_K_M",
    "UD-Q4_K_XL",
    "Q4_K_XL",
    "MXFP4",
    "MXFP4_MOE",
    "Q4_K_S",
    "IQ4_XS",
    "IQ4_NL",
    "Q4_0",
    "Q4_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q6_K",
    "Q8_0",
    "Q3_K_M",
    "BF16",
    "F16",
)


class GgufSet(NamedTuple):
    """The files that make one model: a single one, or all parts of a split model in order."""

    stem: str  # path without part number and extension
    files: tuple[str, ...]
    n_parts: int  # that there should be

    @property
    def name(self) -> str:
        """Short name for people: the stem without folders."""
        return self.stem.rsplit("/", 1)[-1]

    @property
    def quant(self) -> str:
        """Quantization tag in the name, upper case; "" when there is none."""
        for text in (self.name, self.stem):
            if found := _QUANT.findall(text):
                return str(found[-1]).upper()
        return ""

    @property
    def complete(self) -> bool:
        """Whether no part is missing."""
        return len(self.files) == self.n_parts


def split_part(file_name: str) -> tuple[str, int, int] | None:
    """Return stem, number (from 1) and count of a split model's part; None for any other name."""
    match = _PART.fullmatch(file_name)
    return (match["stem"], int(match["number"]), int(match["count"])) if match else None


def part_name(stem: str, number: int, count: int) -> str:
    """Return the file name of a part, as llama.cpp expects it."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def gguf_sets(file_names: Iterable[str]) -> list[GgufSet]:
    """Group file names (with `/` between folders) into models; everything else is left out."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(file_names):
        if not name.lower().endswith(".gguf") or _NOT_MODELS.search(name.rsplit("/", 1)[-1]):
            continue
        part = split_part(name)
        key = (part[0], part[2]) if part else (name[: -len(".gguf")], 1)
        groups.setdefault(key, []).append(name)
    return [GgufSet(stem, tuple(files), count) for (stem, count), files in groups.items()]


def choose(sets: list[GgufSet], wanted: str | None) -> GgufSet | None:
    """Return the model of the wanted quantization, or by `PREFERRED_QUANTS` without a wish.

    A wish matches a tag exactly, upper and lower case alike; `Q4_K_XL` also finds `UD-Q4_K_XL`. Among several
    of one tag the shortest name wins: the longer ones are variants.
    """
    ordered = sorted(sets, key=lambda candidate: (len(candidate.stem), candidate.stem))
    if wanted is not None:
        tag = wanted.upper()
        exact = [candidate for candidate in ordered if candidate.quant == tag]
        dynamic = [candidate for candidate in ordered if candidate.quant == f"UD-{tag}"]
        named = [candidate for candidate in ordered if candidate.name.upper() == tag.removesuffix(".GGUF")]
        return next(iter(exact + dynamic + named), None)
    for tag in PREFERRED_QUANTS:
        for candidate in ordered:
            if candidate.quant == tag:
                return candidate
    return next(iter(ordered), None)
