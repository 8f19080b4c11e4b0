import re

import report_builder as build
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hottune.machine.ballast import Ballast
from hottune.report import Format, render
from hottune.report.markdown import escape, table

PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def shown(report) -> str:
    return render(report, Format.MARKDOWN_LONG)


def tables(markdown: str) -> list[list[list[str]]]:
    """Cells of every table, as a Markdown reader sees them."""
    found: list[list[list[str]]] = []
    tokens = PARSER.parse(markdown)
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(tokens[place + 1].content)
    return found


def plain(markdown: str) -> str:
    """The text a reader sees, tags and entities undone."""
    html = re.sub(r"<[^>]+>", "", PARSER.render(markdown))
    return html.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")


def test_virtual_gpu_warning_is_the_first_line_and_only_then():
    assert shown(build.virtual_report()).splitlines()[0].startswith("> **Virtual GPU")
    assert "Virtual GPU" not in shown(build.report())


def test_answer_and_table_come_before_setup_and_commands():
    text = shown(build.report())
    order = [text.index(part) for part in ("**Use this: hot", "| arm |", "**Setup**", "**Commands**")]
    assert order == sorted(order)


def test_the_setup_names_ballast_memory_governor_and_the_best_link():
    report = build.report()
    bare = shown(report)
    assert "ballast" not in bare
    cpu = report.machine.cpu.model_copy(update={"governor": "powersave"})
    gpus = tuple(
        gpu.model_copy(update={"pcie": "gen1 x16", "pcie_max": "gen5 x16"}) for gpu in report.machine.gpus
    )
    facts = {"cpu": cpu, "gpus": gpus, "ram_speed": "2 x DDR5 at 5600 MT/s", "confinement": "container"}
    told = report.model_copy(
        update={
            "ballast": Ballast(held_mib=56 * 1024, free_mib=24 * 1024),
            "machine": report.machine.model_copy(update=facts),
        }
    )
    text = plain(shown(told))
    assert "a ballast held 56 GiB of the card" in text
    assert "2 x DDR5 at 5600 MT/s, governor powersave, container" in text
    assert "PCIe gen5 x16" in text


def test_every_row_has_as_many_columns_as_its_head():
    for markdown in (
        shown(build.report()),
        shown(build.report(arms=[build.out_of_memory_arm()], winner=None)),
    ):
        found = tables(markdown)
        assert found
        for rows in found:
            assert {len(row) for row in rows} == {len(rows[0])}


def test_table_is_wide_enough_to_hold_the_evidence():
    head, *rows = tables(shown(build.report()))[0]
    assert head[-3:] == ["decode vs layers", "prefill vs layers", "whole turn vs layers"]
    hot = dict(zip(head, rows[-1], strict=True))
    assert hot["arm"] == "→ hot"
    assert hot["outcome"] == "3 runs"
    assert hot["decode tok/s"] == "61.0 ± 2.0"
    assert hot["prefill vs layers"] == "slower −21% ±2%"
    assert hot["whole turn vs layers"].startswith("can't tell")
    fit = dict(zip(head, rows[2], strict=True))
    assert fit["outcome"] == "not engaged"
    assert fit["decode tok/s"] == "–"


def test_hot_is_shown_against_every_baseline_with_exact_intervals():
    rows = tables(shown(build.report()))[1]
    assert rows[1] == [
        "layers",
        "1.10× (1.06 to 1.14), faster",
        "0.79× (0.77 to 0.80), slower",
        "1.03× (0.99 to 1.08), can't tell",
    ]
    assert rows[2][0] == "all-cpu"


def test_pipes_and_newlines_in_a_failure_do_not_break_the_page():
    text = shown(build.report(arms=[build.all_cpu(), build.out_of_memory_arm()], winner=None))
    assert "layers: out of memory. CUDA0 | buffer of 900 MiB failed" in plain(text)


@given(cells=st.lists(st.text(max_size=20), min_size=3, max_size=3))
def test_any_text_leaves_a_table_with_equal_rows(cells):
    found = tables(table(["a", "b", "c"], [cells, ["1", "2", "3"]], right_from=1))
    assert [len(row) for row in found[0]] == [3, 3, 3]


@given(text=st.text(alphabet="ab_*`|\\<>[]~&; ", max_size=30))
def test_escaped_text_is_read_back_as_it_was(text):
    assert plain("x " + escape(text)).strip() == ("x " + " ".join(text.split())).strip()


def test_quantization_names_stay_readable_in_the_source():
    assert escape("Big-30B_A3B-Q4_K_M") == "Big-30B_A3B-Q4_K_M"


def test_setup_gives_what_people_ask_for():
    text = shown(build.report())
    for part in (
        "Example GPU 24GB",
        "Example CPU 9000",
        "128 GiB",
        "Q4_K",
        "f16/f16",
        "4096 tokens",
        "ubatch 512",
    ):
        assert part in text
    assert "load mode none" in text
    assert "3 fresh servers an arm, interleaved" in text


def test_settings_that_differ_between_arms_name_the_arms():
    arms = [build.all_cpu(), build.arm("hot", build.placement(hot_k=22, ubatch=2048), [build.measurement()])]
    assert "ubatch 512 (all-cpu), 2048 (hot)" in shown(build.report(arms=arms))


def test_commands_of_every_arm_can_be_pasted_into_a_shell():
    code = next(token.content for token in PARSER.parse(shown(build.report())) if token.type == "fence")
    assert "hottune run big.gguf --vram 5GiB" in code
    assert build.report().winner.command in code
    assert f"GGML_BACKEND_PATH={build.LIBRARY} GGML_HOT_K=22 llama-server -m '/models/big model.gguf'" in code
    assert code.count("as it was measured") == 4


def test_backticks_in_a_command_cannot_close_the_block():
    report = build.report(command="hottune run '```evil'")
    code = next(token.content for token in PARSER.parse(shown(report)) if token.type == "fence")
    assert "hottune run '```evil'" in code
