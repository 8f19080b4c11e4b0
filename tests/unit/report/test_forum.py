import re

import pytest
import report_builder as build
from markdown_it import MarkdownIt

from hottune.report import Format, load, render
from hottune.report.forum import LONGEST
from hottune.report.schema import WarningNote

PARSER = MarkdownIt("commonmark").enable("table")


def shown(report, link="") -> str:
    return render(report, Format.MARKDOWN, link=link)


def table_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_it_is_one_screen_with_answer_and_table_first():
    text = shown(build.report())
    assert len(text.splitlines()) <= 45
    order = ["**Use this: hot", "| arm |", "**Setup**", "Repeat it", "make setup", "Serve it", "Result file"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize("name", ["h100-24gib.json", "h100-10gib-ik_llama/ik.json", "demo/demo.json"])
def test_a_real_report_is_one_screen_too(name):
    text = shown(load(build.PUBLISHED.parents[0] / name))
    assert len(text.splitlines()) <= 45
    assert len(table_of(text)[0]) == 8


def test_the_table_is_narrow_and_has_the_change_that_decides():
    head, _, *rows = table_of(shown(build.report()))
    assert head == [
        "arm",
        "placement",
        "prefill tok/s",
        "decode tok/s",
        "turn s",
        "VRAM MiB",
        "hits",
        "whole turn vs layers",
    ]
    assert rows[1][-1] == "baseline"
    assert rows[2][1] == "not engaged", "an arm without numbers says why in place of its placement"
    assert rows[3][-1].startswith("can't tell")
    decode = table_of(shown(build.report(objective="decode_tok_s (document)")))
    assert decode[0][-1] == "decode vs layers"
    assert decode[-1][-1] == "faster +10% ±4%"


def test_the_setup_has_what_such_posts_have():
    text = shown(build.report())
    for label in ("GPU", "CPU", "RAM", "Model", "Quant", "KV, context", "ubatch", "Runs", "Software"):
        assert f"**{label}:** " in text
    assert "128 GiB" in text


def test_notes_are_short_and_those_left_out_are_counted():
    long = WarningNote(code="outliers", text="word " * 100 + "end. Do something.")
    report = build.report(warnings=[long] * 9)
    text = shown(report)
    notes = [line for line in text.splitlines() if line.startswith("- ") and "**" not in line]
    assert all(len(line) <= LONGEST + 10 for line in notes)
    assert "5 more notes in the result file" in text, "nine warnings and one failure, five of them shown"


def test_the_result_file_is_named_or_linked():
    assert "raw sample: big-5gib.json." in shown(build.report())
    assert "[big-5gib.json](https://x.org/a.json)" in shown(build.report(), "https://x.org/a.json")


def test_the_virtual_gpu_is_said_first():
    assert shown(build.virtual_report()).startswith("> **Virtual GPU")


def test_without_a_winner_there_is_nothing_to_serve():
    text = shown(build.report(winner=None, arms=[build.out_of_memory_arm()]))
    assert "Serve it" not in text
    assert "out of memory" in text


def test_every_list_is_a_list_of_its_own():
    lists = [token for token in PARSER.parse(shown(build.report())) if token.type == "bullet_list_open"]
    assert len(lists) == 2
