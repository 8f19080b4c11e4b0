"""The shipped texts: prose, questions and code written for hottune, verified against their hashes.

For contexts longer than any of them there are long texts, made from their paragraphs.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from hottune.errors import BadSettingError, ChecksumError


class TextEntry(BaseModel):
    """One line of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="chat, document or code")
    about: str
    sha256: str = Field(description="over the UTF-8 text with \\n line ends")


#: A long text's name: which one, and how many tokens it has at least.
_LONG = re.compile(r"long-(\d+)-(\d+)")
#: No tokenizer we know of takes more characters of this prose and code for a token, mean.
_LONG_CHARACTERS = 6

_MANIFEST = TypeAdapter(dict[str, TextEntry])


@cache
def manifest() -> dict[str, TextEntry]:
    """Return every shipped text's entry by name."""
    return _MANIFEST.validate_json((files("hottune.workload") / "texts" / "manifest.json").read_bytes())


@cache
def load_text(name: str) -> str:
    """Return a shipped text, or a long one (see `long_text_name`).

    Raises:
        BadSettingError: there is no text of that name.
        ChecksumError: the text is not the one that was shipped, so its results could not be compared.
    """
    if long := _LONG.fullmatch(name):
        return _long_text(int(long[1]), int(long[2]))
    entry = manifest().get(name)
    if entry is None:
        raise BadSettingError(f"There is no text '{name}'.", next_step=f"Known: {', '.join(manifest())}.")
    # read_text turns \r\n into \n: a checkout with other line ends is still the same text.
    text = (files("hottune.workload") / "texts" / f"{name}.txt").read_text(encoding="utf-8")
    check(name, text, entry.sha256)
    return text


def long_text_name(number: int, n_tokens: int) -> str:
    """Return the name of the `number`-th text of at least `n_tokens` tokens.

    It is made of the shipped texts' paragraphs, all of them once in an order drawn anew, then again: nothing
    longer than a paragraph repeats. What repeats flatters a cache a little and drafts from n-grams much, so
    say of a number from such a text that it is one.
    """
    return f"long-{number}-{n_tokens}"


def text_sha256(name: str) -> str:
    """Return the hash of a text of `load_text`."""
    return hashlib.sha256(load_text(name).encode()).hexdigest()


def _long_text(number: int, n_tokens: int) -> str:
    order = random.Random(number)
    paragraphs = [part for name in manifest() for part in load_text(name).strip().split("\n\n")]
    chosen: list[str] = []
    length = 0
    while length < n_tokens * _LONG_CHARACTERS:
        order.shuffle(paragraphs)
        chosen += paragraphs
        length += sum(len(part) + 2 for part in paragraphs)
    return "\n\n".join(chosen) + "\n"


def check(name: str, text: str, sha256: str) -> None:
    """Raise ChecksumError unless `text` has the hash that the manifest gives for it."""
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != sha256:
        raise ChecksumError(
            f"The workload text '{name}' has sha256 {found}, not {sha256}.",
            "It was edited after it was shipped.",
            "Install hottune again; after a change on purpose, write the new hash into texts/manifest.json.",
        )
