"""The whole page: the answer first, then tables and charts, then how it was made."""

from __future__ import annotations

from importlib.resources import files

from hottune.engine.argv import shell_command
from hottune.report import beside, setup, wording
from hottune.report.html import arm_charts, search_charts, time_charts
from hottune.report.html.arms_table import arms_table, comparisons_table
from hottune.report.html.markup import bullets, code, esc, section
from hottune.report.html.svg import Figure
from hottune.report.schema import Report
from hottune.report.searched import search_lines

# Nothing is loaded from anywhere, whatever a hostile name in a report tries.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


class HtmlRenderer:
    """Renders one HTML file that works from disk, without network, and without its script."""

    def render(self, report: Report) -> str:
        """Return the report as HTML. Only what is shown is in it: raw samples stay in the JSON file."""
        title = f"hottune: {report.study}"
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{esc(title)}</title>\n<style>\n{_resource('page.css')}</style>\n</head>\n<body>\n"
            f"<main>\n{_main(report)}\n</main>\n<script>\n{_resource('page.js')}</script>\n</body>\n</html>\n"
        )


def _main(report: Report) -> str:
    charts = [search_charts.history(report), arm_charts.layer_hits(report), arm_charts.latency(report)]
    charts += [arm_charts.cold(report), arm_charts.vram(report), arm_charts.roofline(report)]
    history, hits, latency, cold, vram, roofline = charts
    parts = [
        _answer(report),
        section("Arms", arms_table(report), bullets(wording.failures(report)), comparisons_table(report)),
        section("Speed", _grid(arm_charts.speeds(report))),
        section(
            "Search",
            _grid([search_charts.scatter(report), history, search_charts.parameters(report)]),
            bullets([*search_lines(report), *search_charts.no_parameters(report)]),
        ),
        section(
            "Cache and latency",
            _grid([time_charts.hits_over_time(report), hits, latency]),
            bullets(setup.proof(report)),
        ),
        section(
            "Cold start, memory, roofline",
            _grid([cold, vram, time_charts.vram_over_time(report), roofline]),
            bullets(beside.cold_start(report)),
            bullets(beside.roofline(report)),
        ),
        section(beside.QUALITY, bullets(beside.quality(report))),
        section("Warnings", bullets(wording.warnings(report))),
        section("Setup", _setup(report)),
        section("Commands", _commands(report)),
    ]
    return "\n".join(part for part in parts if part)


def _answer(report: Report) -> str:
    found = wording.answer(report)
    banner = f'<p class="banner">{esc(wording.VIRTUAL_GPU)}</p>' if wording.is_virtual(report) else ""
    command = code(report.winner.command) if report.winner else ""
    lead = " ".join(f"{found.why} {found.against} {found.engines}".split())
    return (
        f'<header>{banner}<p class="note">hottune report: {esc(report.study)}, '
        f"{report.created:%Y-%m-%d}</p>\n<h1>{esc(found.what)}</h1>\n"
        f'<p class="lead">{esc(lead)}</p>\n{command}</header>'
    )


def _grid(figures: list[Figure] | list[Figure | None]) -> str:
    shown = [figure.html() for figure in figures if figure is not None]
    return f'<div class="charts">{chr(10).join(shown)}</div>' if shown else ""


def _setup(report: Report) -> str:
    """Return the setup, and what identifies model, workload and engine exactly."""
    build = report.engine
    lines = [
        *setup.setup(report),
        ("Model fingerprint", report.model.fingerprint),
        ("Workload sha256", report.workload.sha256),
        ("Engine build", f"{build.key}, {' '.join(build.options) or 'no options'}"),
        ("Result file", f"schema version {report.schema_version}; raw samples are in the JSON"),
    ]
    return f"<dl>{''.join(f'<dt>{esc(label)}</dt><dd>{esc(value)}</dd>' for label, value in lines)}</dl>"


def _commands(report: Report) -> str:
    lines = [("This report", report.command)]
    if report.winner:
        lines.append((f"Serve the recommendation ({report.winner.arm})", report.winner.command))
    lines += [
        (f"{label}, as it was measured", shell_command(arm.argv, arm.env))
        for label, arm in arm_charts.labelled(report)
    ]
    return "\n".join(f"<h3>{esc(label)}</h3>{code(command)}" for label, command in lines)


def _resource(name: str) -> str:
    return files("hottune.report.html").joinpath(name).read_text(encoding="utf-8")
