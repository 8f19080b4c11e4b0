"""Warnings: a closed list in which each says what to do."""

from __future__ import annotations

import pytest

from hottune.stats.notes import NoteCode, facts_of, note


@pytest.mark.parametrize("code", list(NoteCode))
def test_every_code_has_a_text_of_two_sentences_with_its_facts_filled_in(code: NoteCode) -> None:
    facts = {name: f"<{name}>" for name in facts_of(code)}
    name, text = note(code, **facts)
    assert name == code.value
    assert all(value in text for value in facts.values())
    assert "{" not in text
    assert text.count(". ") + text.count(": ") >= 1
    assert text.endswith(".")


def test_a_missing_or_strange_fact_is_refused() -> None:
    with pytest.raises(ValueError, match="needs"):
        note(NoteCode.FIRST_RUN_SLOWER, arm="hot")
    with pytest.raises(ValueError, match="needs"):
        note(NoteCode.BATTERY, arm="hot")


def test_an_example_reads_well() -> None:
    assert note(NoteCode.FIRST_RUN_SLOWER, arm="hot", percent=12) == (
        "first-run-slower",
        "The first server of arm 'hot' was 12 % slower than its others: something was still cold, "
        "most likely the model file. Run again while the file is in memory.",
    )
