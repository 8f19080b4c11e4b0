"""Reports in reports/ can be read by anybody, and tell nothing about the machine's owner."""

import json
import re
from pathlib import Path

import pytest

from hottune.report import Format, load, render_bytes
from hottune.report.wording import answer, speed

REPORTS = Path(__file__).parents[3] / "reports"
#: Results that are shown as Markdown, which stands beside each.
PUBLISHED = [path for path in sorted(REPORTS.rglob("*.json")) if path.with_suffix(".md").is_file()]
IN_EVERY_FORMAT = [path for path in PUBLISHED if path.with_suffix(".html").is_file()]
SUFFIXES = (".md", ".html", ".png", ".csv", ".jsonl", ".txt")
TEXTS = [path for path in sorted(REPORTS.rglob("*.*")) if path.suffix in {*SUFFIXES, ".json"} - {".png"}]
#: Folders of the machine that a report was made on, and the identity of its card.
PRIVATE = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|w|mnt|data|Users)/|GPU-[0-9a-f]{8}-")


def named(path: Path) -> str:
    return str(path.relative_to(REPORTS))


@pytest.mark.parametrize("page", PUBLISHED, ids=named)
@pytest.mark.parametrize("format", list(Format))
def test_a_published_result_renders_in_every_format(page, format):
    assert render_bytes(load(page), format).strip()


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_a_published_file_names_no_folder_and_no_card_of_its_machine(path):
    assert PRIVATE.findall(path.read_text(encoding="utf-8")) == []


def test_the_demo_and_a_study_of_a_real_gpu_are_there_in_every_format():
    assert [path.parent.name for path in IN_EVERY_FORMAT] == ["demo", "h100-10gib"]
    for path in IN_EVERY_FORMAT:
        assert [suffix for suffix in SUFFIXES if not path.with_suffix(suffix).is_file()] == []
        assert (path.parent / "long.md").is_file()


@pytest.mark.parametrize("name", ["h100-24gib.json", "h100-10gib/h100-10gib.json"])
def test_the_speeds_told_of_a_study_are_those_of_its_file(name):
    told = (REPORTS / "README.md").read_text(encoding="utf-8")
    report = load(REPORTS / name)
    hot = next(arm for arm in report.arms if arm.name == "hot")
    assert hot.versus_arm == "fit"
    for word, change in (
        ("whole turn", hot.versus_turn),
        ("decode", hot.versus_decode),
        ("prefill", hot.versus_prefill),
    ):
        row = f"| {word} | {change.ratio:.2f}× | {change.low:.2f} to {change.high:.2f} | {change.verdict} |"
        assert row in told


def test_the_example_of_the_readme_has_the_speeds_of_its_file():
    readme = (REPORTS.parent / "README.md").read_text(encoding="utf-8")
    example = readme[readme.index("<!-- example:begin -->") : readme.index("<!-- example:end -->")]
    report = load(REPORTS / "h100-10gib" / "h100-10gib.json")
    assert answer(report).why in example
    for arm in report.arms:
        (row,) = re.findall(rf"^[→ ] {arm.name}, 4 runs +(.+)$", example, re.MULTILINE)
        for field in ("prefill_tok_s", "decode_tok_s"):
            assert speed(arm, field) in row


def test_no_published_result_names_a_worker():
    for page in PUBLISHED:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r'"worker": ?"([^"]+)"', json.dumps(json.loads(text)))
        assert [name for name in named if not re.fullmatch(r"worker-\d+", name)] == []
