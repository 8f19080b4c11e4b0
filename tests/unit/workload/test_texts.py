"""The shipped texts are the ones in the manifest, long enough, and not repetitive."""

from __future__ import annotations

import re
import zlib
from importlib.resources import files

import pytest

from hottune.errors import BadSettingError, ChecksumError
from hottune.workload.texts import check, load_text, manifest
from hottune.workload.workloads import PROMPT_TOKENS


@pytest.mark.parametrize("name", manifest())
def test_a_text_has_the_hash_of_the_manifest(name: str) -> None:
    assert load_text(name).strip()


def test_every_text_file_is_in_the_manifest_and_in_a_workload() -> None:
    folder = files("hottune.workload") / "texts"
    shipped = {item.name.removesuffix(".txt") for item in folder.iterdir() if item.name.endswith(".txt")}
    assert shipped == set(manifest())
    assert shipped == {text for texts in PROMPT_TOKENS.values() for text in texts}


def test_texts_lie_in_the_workload_of_their_kind() -> None:
    for kind, texts in PROMPT_TOKENS.items():
        assert {manifest()[text].kind for text in texts} == {kind}


def test_an_edited_text_is_refused() -> None:
    with pytest.raises(ChecksumError, match="'bridges' has sha256"):
        check("bridges", load_text("bridges") + " ", manifest()["bridges"].sha256)


def test_an_unknown_text_is_refused_with_the_known_names() -> None:
    with pytest.raises(BadSettingError, match=r"no text 'poem'.*lighthouses"):
        load_text("poem")


@pytest.mark.parametrize("name", manifest())
def test_a_text_is_longer_than_its_prompt_even_for_a_coarse_tokenizer(name: str) -> None:
    """The coarsest tokenizers seen take 1.16 tokens a word of prose, and 4.25 characters of code a token."""
    text = load_text(name)
    entry = manifest()[name]
    n_tokens = len(text) / 4.25 if entry.kind == "code" else len(text.split()) * 1.07
    assert n_tokens >= PROMPT_TOKENS[entry.kind][name]


@pytest.mark.parametrize("name", [name for name, entry in manifest().items() if entry.kind == "document"])
def test_a_document_is_varied_prose_without_filler(name: str) -> None:
    text = load_text(name)
    sentences = [sentence.strip() for sentence in re.split(r"(?<=[.?!])\s+", text)]
    words = re.findall(r"[\w']+", text.lower())
    assert len(set(sentences)) == len(sentences)
    assert len(set(words)) > 1000
    assert len(zlib.compress(text.encode(), 9)) > 0.4 * len(text.encode())
