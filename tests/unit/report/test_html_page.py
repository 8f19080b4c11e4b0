import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import report_builder as build

from hottune.report import Format, load, render
from hottune.report.schema import Confirmation, SearchAccount, WarningNote

REPORTS = Path(__file__).resolve().parents[3] / "reports"
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Reads the page as a browser does: elements with attributes, text by section, and what is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def shown(report) -> str:
    return render(report, Format.HTML)


def charts(text: str) -> dict[str, ElementTree.Element]:
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    return {svg.findtext("title"): svg for svg in drawings}


def titles(svg: ElementTree.Element) -> list[str]:
    return [item.findtext("title") or "" for item in svg.iter("g")]


def drawn(svg: ElementTree.Element) -> list[str]:
    return [item.text or "" for item in svg.iter("text")]


@pytest.fixture(scope="module")
def h100() -> str:
    return shown(load(REPORTS / "h100-24gib.json"))


def test_every_element_is_closed_and_every_id_is_used_once(h100):
    for text in (h100, shown(build.report()), shown(build.virtual_report())):
        page = Page(text)
        assert page.open == []
        ids = [found["id"] for _, found in page.elements if "id" in found]
        assert len(ids) == len(set(ids))
        labels = " ".join(
            found["aria-labelledby"] for _, found in page.elements if "aria-labelledby" in found
        )
        assert set(labels.split()) <= set(ids)


def test_a_published_report_has_every_chart_with_its_data_in_the_order_of_the_page(h100):
    found = charts(h100)
    assert list(found) == [
        "Decode speed",
        "Prefill speed",
        "Whole turn",
        "Prefill against decode",
        "Search history",
        "Parameter importance",
        "Hit rate by layer",
        "Latency of a token",
        "Cold start beside warm",
        "VRAM peak",
        "Roofline share",
    ]
    assert all(len(svg.findtext("desc")) > 30 for svg in found.values())
    assert Page(h100).count("details") == len(found)


def test_the_answer_comes_first_then_tables_and_charts_then_how_it_was_made(h100):
    heads = re.findall(r"<(?:h1|h2[^>]*|caption|pre[^>]*)>(?:<code><span>)?([^<]+)", h100)
    wanted = ["Use this: hot (ncmoe 30 + hot 70/60 ub 2048 t 15)", "CUDA_VISIBLE_DEVICES=0"]
    wanted += ["Arms", "Arms, all under the same VRAM ceiling of 24,576 MiB", "hot against every baseline"]
    wanted += ["Speed", "Search", "Cache and latency", "Cold start, memory, roofline"]
    wanted += ["Quality against all-cpu", "Warnings", "Setup", "Commands"]
    assert [head for head in heads if head in wanted][: len(wanted)] == wanted


def test_a_bar_is_as_long_as_its_value(h100):
    svg = charts(h100)["Decode speed"]
    widths = [float(item.get("width")) for item in svg.iter("rect")]
    speeds = [20.63306603904656, 57.924788161164166, 59.81241471466215, 114.25394794656383]
    for width, speed in zip(widths, speeds, strict=True):
        assert width / widths[0] == pytest.approx(speed / speeds[0], rel=0.002)
    assert [item.get("class") for item in svg.iter("rect")] == ["b0", "b0", "b0", "won"]


def test_the_file_is_small_because_raw_samples_stay_in_the_json(h100):
    assert len(h100.encode()) < 200_000
    assert "token_ms" not in h100


@pytest.mark.parametrize("path", sorted(REPORTS.glob("device/*.json")), ids=lambda path: path.stem)
def test_results_of_the_devices_benchmark_render_too(path):
    page = Page(shown(load(path)))
    assert page.open == []
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))


def test_failed_trials_stand_in_the_history_by_type_and_do_not_move_the_best():
    svg = charts(shown(build.report()))["Search history"]
    flags = [item.text for item in svg.iter("text") if item.get("class") == "flag"]
    assert flags == ["M", "R", "C"]
    assert any("trial 4" in words and "crashed" in words for words in titles(svg))
    assert "3 trials failed" in svg.findtext("desc")


def test_a_speed_of_zero_is_drawn_without_an_interval():
    runs = [build.measurement(decode=0.0), build.measurement(decode=1.0)]
    svg = charts(shown(build.report(arms=[build.arm("layers", build.placement(), runs)], winner=None)))
    assert not [item for item in svg["Decode speed"].iter("line") if item.get("class") == "whisker"]
    assert [item for item in svg["Prefill speed"].iter("line") if item.get("class") == "whisker"]


def test_hit_rates_are_means_over_the_replicates_that_cached_the_same_layers():
    runs = [
        build.measurement(engagement=build.engagement(hot=build.hot_stats(layer_hit_rate=rates)))
        for rates in ([0.2, 0.9], [0.4, 0.7], [0.5])
    ]
    text = shown(build.report(arms=[build.arm("hot", build.placement(hot_k=2), runs)]))
    told = [words for words in titles(charts(text)["Hit rate by layer"]) if words]
    assert told == ["hot, layer 0: 30.0%", "hot, layer 1: 80.0%"]


def test_best_so_far_follows_the_objective_and_its_limits():
    slow_prefill = build.measurement(prefill=100.0, decode=90.0, turn=2.0)
    ends = [build.measurement(prefill=3000.0, decode=40.0, turn=8.0), slow_prefill]
    tried = [
        trial.model_copy(update={"outcome": end}) for trial, end in zip(build.trials(), ends, strict=False)
    ]

    def best(**changes) -> list[str]:
        text = shown(build.report(trials=tried, **changes))
        table = text[text.index("<summary>Data: Search history") :]
        return re.findall(r"([^<>]+)</td></tr>", table)[:2]

    assert best() == ["8.00", "2.00"]
    assert best(objective="decode_tok_s (document)") == ["40.0", "90.0"]
    assert best(min_prefill_tok_s=1000.0) == ["8.00", "8.00"]


def test_the_front_is_what_no_trial_beats_in_both_unless_the_search_told_another():
    pairs = [(3000.0, 40.0), (2000.0, 60.0), (1900.0, 55.0), (3000.0, 39.0)]
    tried = [
        trial.model_copy(
            update={"outcome": build.measurement(prefill=first, decode=second), "number": number}
        )
        for number, ((first, second), trial) in enumerate(zip(pairs, build.trials(), strict=False))
    ]

    def on_front(**changes) -> list[str]:
        text = shown(build.report(trials=tried, **changes))
        table = text[text.index("<summary>Data: Prefill against") :]
        return re.findall(r">(yes|no)</td></tr>", table)

    assert on_front() == ["yes", "yes", "no", "no"]
    told = SearchAccount(servers=4, reused=0, seconds=1.0, vram_error=None, vram_judged=0, front=[1])
    assert on_front(account=told) == ["no", "yes", "no", "no"]


def test_intervals_are_those_of_the_reports_level():
    wide, narrow = (
        shown(build.report(confirmation=Confirmation(rounds=3, level=level, ended="fixed")))
        for level in (0.99, 0.9)
    )
    assert "99% interval of the geometric mean" in wide
    assert "90% interval" in narrow


def test_an_arm_that_failed_is_in_the_table_and_in_no_chart():
    text = shown(build.report())
    assert "fit placed nothing" in Page(text).text
    assert "not engaged" in text
    assert all("fit" not in drawn(svg) for svg in charts(text).values())


def test_a_report_without_any_measurement_still_says_why():
    report = build.report(arms=[build.out_of_memory_arm()], winner=None, trials=[])
    text = shown(report)
    assert charts(text) == {}
    assert "No recommendation" in text
    assert "buffer of 900 MiB" in text


def test_hostile_names_stay_text():
    clean = build.report()
    report = build.report(
        study=HOSTILE,
        command=HOSTILE,
        model=clean.model.model_copy(update={"name": HOSTILE, "fingerprint": HOSTILE}),
        arms=[
            build.hot().model_copy(update={"argv": [HOSTILE], "vram_source": HOSTILE}),
            build.out_of_memory_arm().model_copy(update={"detail": HOSTILE, "outcome": HOSTILE}),
        ],
        winner=clean.winner.model_copy(update={"reason": HOSTILE, "command": HOSTILE}),
        warnings=[WarningNote(code="x", text=HOSTILE)],
        objective=HOSTILE,
    )
    page = Page(shown(report))
    assert page.open == []
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert page.text.count("<script>alert(1)</script>") >= 6


def test_nothing_is_loaded_from_anywhere(h100):
    page = Page(h100)
    loading = {"src", "href", "srcset", "data", "action", "poster", "style", "xlink:href"}
    assert not any(name in loading for _, found in page.elements for name in found)
    assert not re.search(r"https?:|@import|url\(|//[a-z]+\.", h100)
    policy = next(found["content"] for tag, found in page.elements if found.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_virtual_gpu_warning_comes_first_and_only_then():
    assert Page(shown(build.virtual_report())).text.index("Virtual GPU:") < 600
    assert "Virtual GPU:" not in shown(build.report())
