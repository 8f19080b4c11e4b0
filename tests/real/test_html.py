"""The HTML report in a real browser: from disk, without network."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from hottune.outcomes import Measurement, Timeline
from hottune.report import Format, load, render
from hottune.report.schema import Report

pytestmark = pytest.mark.real

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RESULT = Path(__file__).resolve().parents[2] / "reports" / "h100-24gib.json"


def report_over_time() -> Report:
    """Return the published report with made-up timelines, which results of its time do not have."""
    report = load(RESULT)
    arms = []
    for arm in report.arms:
        first = arm.replicates[0]
        assert isinstance(first.outcome, Measurement)
        cached = first.outcome.hit_rate is not None
        line = Timeline(
            at_s=[n / 4 for n in range(1, 61)],
            vram_mib=[first.outcome.vram_peak_mib - 60 + n for n in range(60)],
            hits=[40 + n for n in range(60)] if cached else [],
            misses=[60 - n for n in range(60)] if cached else [],
        )
        run = first.model_copy(update={"outcome": first.outcome.model_copy(update={"timeline": line})})
        arms.append(arm.model_copy(update={"replicates": [run, *arm.replicates[1:]]}))
    return report.model_copy(update={"arms": arms})


@pytest.fixture
def page(tmp_path: Path) -> Path:
    if CHROMIUM is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    path = tmp_path / "report.html"
    path.write_text(render(report_over_time(), Format.HTML), encoding="utf-8")
    return path


def browse(page: Path, *flags: str, reachable: str = "") -> tuple[str, list[str]]:
    """Open a page without network; return the document as it then is, and what the console said.

    Args:
        page: file to open.
        flags: what else to give the browser.
        reachable: an address that may be reached after all.
    """
    assert CHROMIUM is not None
    argv = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--host-resolver-rules=MAP * ~NOTFOUND{f', EXCLUDE {reachable}' if reachable else ''}",
        f"--user-data-dir={page.parent / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page: Path, script: str, width: str = "1280px") -> Path:
    """Return a page that shows the report in a frame of a width, and runs a script on it: `doc`, `win`.

    The script's result replaces the page, so that --dump-dom prints it. A frame can be narrower than the
    narrowest window of a headless browser (500 pixels).
    """
    outer = page.with_name("outer.html")
    style = f"border:0;width:{width};height:900px"
    outer.write_text(
        f'<body style="margin:0"><iframe src="{page.name}" style="{style}"></iframe>'
        "<script>onload = () => { const win = frames[0], doc = win.document; let said; "
        f"try {{ said = (() => {{ {script} }})(); }} catch (error) {{ said = 'error ' + error; }} "
        "document.body.textContent = 'SAID ' + JSON.stringify(said) + ' END'; };</script>",
        encoding="utf-8",
    )
    return outer


def said(page: Path, script: str, width: str = "1280px") -> str:
    # Two files from disk are strangers to each other without the flag.
    dom, console = browse(with_script(page, script, width), "--dump-dom", "--allow-file-access-from-files")
    assert console == []
    found = re.search(r"SAID (.*) END", dom)
    assert found, dom
    return found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")


def test_the_page_works_from_disk_without_network_and_says_nothing_in_the_console(page):
    dom, console = browse(page, "--dump-dom")
    assert console == []
    charts = re.findall(r"<svg.*?</svg>", dom, re.DOTALL)
    assert len(charts) == 13
    assert all(re.search(r"<(rect|circle|path)", chart) for chart in charts)
    # The script ran: heads of tables have become buttons.
    assert dom.count('<button type="button">') > 20


def test_a_console_error_would_be_seen(page):
    page.write_text(page.read_text(encoding="utf-8").replace('"use strict";', '"use strict"; missing();'))
    _, console = browse(page, "--dump-dom")
    assert "missing is not defined" in console[0]


def test_what_would_load_from_elsewhere_is_refused(page):
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        image = f'<img src="http://127.0.0.1:{server.server_port}/image">'
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("<main>", f"<main>{image}"), encoding="utf-8")
        _, console = browse(page, "--dump-dom", reachable="127.0.0.1")
        assert "Content Security Policy" in console[0]
        assert asked == []
        # The same page without its policy does ask: the check above could fail.
        page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8")))
        browse(page, "--dump-dom", reachable="127.0.0.1")
        assert "/image" in asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "open_end", ["", "</title></style></script></code></td>", '" autofocus onfocus="hit()"']
)
def test_a_hostile_name_runs_nothing(page, open_end):
    evil = f"{open_end}<script>hacked = 1</script><img src=x onerror='hacked = 2'><svg onload='hacked = 3'>"
    report = load(RESULT)
    model = report.model.model_copy(update={"name": evil})
    winner = report.winner.model_copy(update={"reason": evil, "command": evil})
    report = report.model_copy(update={"study": evil, "command": evil, "model": model, "winner": winner})
    page.write_text(render(report, Format.HTML), encoding="utf-8")
    script = "return [typeof win.hacked, doc.scripts.length, doc.images.length];"
    assert said(page, script) == '["undefined",1,0]'


def test_without_its_script_the_page_is_complete(page):
    whole = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"<script>.*</script>", "", whole, flags=re.DOTALL), encoding="utf-8")
    dom, console = browse(page, "--dump-dom")
    assert console == []
    assert "<button" not in dom
    assert [dom.count(part) for part in ("<svg", "<tr", "<details", "<th")] == [
        whole.count(part) for part in ("<svg", "<tr", "<details", "<th")
    ]


SORT = """
const table = doc.querySelector('.arms table');
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const button = [...table.querySelectorAll('th button')].find((item) => item.textContent === '%s');
const before = names(); button.focus();
const focused = doc.activeElement === button;
button.click(); const up = names(), state = button.parentElement.ariaSort; button.click();
return [before, focused, up, state, names()].join(' | ');
"""


@pytest.mark.parametrize(
    ("column", "up"),
    [
        ("decode tok/s", "all-cpu,layers,fit,→ hot"),
        ("turn s", "→ hot,fit,layers,all-cpu"),
        ("VRAM peak MiB", "all-cpu,fit,layers,→ hot"),
    ],
)
def test_columns_sort_by_number_both_ways(page, column, up):
    down = ",".join(reversed(up.split(",")))
    before = "all-cpu,layers,fit,→ hot"
    assert said(page, SORT % column) == f'"{before} | true | {up} | ascending | {down}"'


def test_rows_without_a_number_stay_last_both_ways(page):
    _, _, up, _, down = said(page, SORT % "hit rate").strip('"').split(" | ")
    assert up.startswith("→ hot") and down.startswith("→ hot")


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen_and_chart_text_is_readable(page, width):
    script = (
        "const text = doc.querySelector('svg text').getBoundingClientRect().height;"
        "return [doc.documentElement.scrollWidth, Math.round(text)];"
    )
    scroll, height = map(int, said(page, script, f"{width}px").strip("[]").split(","))
    assert scroll <= width
    assert height >= 10


def test_lines_over_time_are_drawn_apart_and_the_ceiling_lies_above_them(page):
    script = (
        "const chart = (name) => [...doc.querySelectorAll('figure')].find((item) => item.querySelector("
        "'figcaption').textContent === name).querySelector('svg');"
        "const lines = [...chart('VRAM over time').querySelectorAll('path[class^=l]')];"
        "const looks = lines.map((item) => { const style = win.getComputedStyle(item);"
        "return [style.stroke, style.strokeDasharray, style.strokeWidth, style.fill].join(); });"
        "const top = (item) => item.getBoundingClientRect().top;"
        "const ceiling = top(chart('VRAM over time').querySelector('.reference'));"
        "const warm = chart('Hit rate over time').querySelector('.warm').getBoundingClientRect();"
        "return [lines.length, new Set(looks).size, looks.every((look) => look.endsWith('none')),"
        "lines.every((item) => top(item) >= ceiling), warm.height > 50 && warm.width < 3].join();"
    )
    assert said(page, script) == '"4,4,true,true,true"'


def test_data_open_for_print_and_close_after(page):
    script = (
        "const open = () => doc.querySelectorAll('details[open]').length; const seen = [open()];"
        "win.dispatchEvent(new Event('beforeprint')); seen.push(open());"
        "win.dispatchEvent(new Event('afterprint')); seen.push(open()); return seen;"
    )
    assert said(page, script) == "[0,13,0]"


def test_the_copied_command_is_the_command(page):
    command = load(RESULT).winner.command
    assert said(page, "return doc.querySelector('pre.command').textContent;") == f'"{command}"'


@pytest.mark.parametrize(
    ("scheme", "background"), [("dark", "rgb(20, 24, 30)"), ("light", "rgb(255, 255, 255)")]
)
def test_dark_and_light_screens_get_their_colours(page, scheme, background):
    outer = with_script(page, "return win.getComputedStyle(doc.body).backgroundColor;")
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dom, _ = browse(outer, "--dump-dom", "--allow-file-access-from-files", setting)
    assert f'SAID "{background}" END' in dom


def test_the_page_can_be_printed_on_paper(page, tmp_path):
    paper = tmp_path / "page.pdf"
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes()))
    assert 3 <= pages <= 20
