"""The documentation says what the code does."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import report_builder as build
from markdown_it import MarkdownIt

from hottune.cli.app import COMMANDS
from hottune.errors import all_errors
from hottune.report.json_schema import endpoint_schema_text, schema_text

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.glob("*.md"), *(ROOT / "reports").rglob("README.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
)
RENEW = "run `python docs/make_reference.py`"


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_generated_parts_of_the_commands_page_are_current(reference):
    assert reference.filled(text_of("commands.md")) == text_of("commands.md"), RENEW


def test_published_schemas_are_current():
    assert text_of("result.schema.json") == schema_text(), RENEW
    assert text_of("endpoint.schema.json") == endpoint_schema_text(), RENEW


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_every_error_is_listed_with_its_code(error):
    assert re.search(rf"^\| {error.exit_code} \| `{error.__name__}` \|", text_of("commands.md"), re.MULTILINE)


def test_every_exit_code_of_an_error_falls_into_a_range_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ranges = re.findall(r"^\| (\d+)(?:–(\d+))? \|", readme, re.MULTILINE)
    for error in all_errors():
        assert any(int(low) <= error.exit_code <= int(high or low) for low, high in ranges), error


def test_every_command_has_its_section():
    headings = re.findall(r"^## hottune (\w+)$", text_of("commands.md"), re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


def test_the_schema_describes_a_real_result():
    schema = json.loads(text_of("result.schema.json"))
    data = json.loads(build.report().model_dump_json())
    assert set(schema["required"]) <= set(data)
    assert set(data) <= set(schema["properties"])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def anchors_of(page: Path) -> set[str]:
    """Return what a link may name behind `#`: headings as GitHub writes them, and explicit ids."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'id="([^"]+)"', text))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_headings_name_one_that_is_there(page):
    links = re.findall(r"\]\(([^)#\s]*\.md|)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [(page.parent / file if file else page, anchor) for file, anchor in links if "://" not in file]
    assert [anchor for file, anchor in local if anchor not in anchors_of(file)] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_of_the_pages_have_equal_rows(page):
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    columns: list[int] = []
    for token in tokens:
        if token.type == "tr_open":
            columns.append(0)
        elif token.type in ("th_open", "td_open"):
            columns[-1] += 1
            assert token.map is None or token.map[1] - token.map[0] == 1
        elif token.type == "table_close":
            assert len(set(columns)) == 1
            columns = []


def test_example_of_the_readme_has_its_markers():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("<!-- example:begin -->") < readme.index("<!-- example:end -->")
