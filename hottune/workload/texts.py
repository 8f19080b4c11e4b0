"""The shipped texts: prose, questions and code written for hottune, verified against their hashes."""

from __future__ import annotations

import hashlib
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


_MANIFEST = TypeAdapter(dict[str, TextEntry])


@cache
def manifest() -> dict[str, TextEntry]:
    """Return every shipped text's entry by name."""
    return _MANIFEST.validate_json((files("hottune.workload") / "texts" / "manifest.json").read_bytes())


@cache
def load_text(name: str) -> str:
    """Return a shipped text.

    Raises:
        BadSettingError: there is no text of that name.
        ChecksumError: the text is not the one that was shipped, so its results could not be compared.
    """
    entry = manifest().get(name)
    if entry is None:
        raise BadSettingError(f"There is no text '{name}'.", next_step=f"Known: {', '.join(manifest())}.")
    # read_text turns \r\n into \n: a checkout with other line ends is still the same text.
    text = (files("hottune.workload") / "texts" / f"{name}.txt").read_text(encoding="utf-8")
    check(name, text, entry.sha256)
    return text


def check(name: str, text: str, sha256: str) -> None:
    """Raise ChecksumError unless `text` has the hash that the manifest gives for it."""
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != sha256:
        raise ChecksumError(
            f"The workload text '{name}' has sha256 {found}, not {sha256}.",
            "It was edited after it was shipped.",
            "Install hottune again; after a change on purpose, write the new hash into texts/manifest.json.",
        )
