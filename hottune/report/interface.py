"""One way to render a report, whatever the format."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from hottune.report.schema import Report


class Renderer(Protocol):
    """Turns a report into text. A renderer reads the report alone: it measures and decides nothing."""

    def render(self, report: Report) -> str:
        """Return the whole report as text, ending in a newline."""


class Format(StrEnum):
    """Formats a report can be rendered in. Each member builds its own renderer."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    HTML = "html"
    JSON = "json"
    CSV = "csv"

    def renderer(self, *, width: int | None = None, color: bool | None = None) -> Renderer:
        """Build the renderer of this format.

        Args:
            width: columns of the terminal format; None = of the terminal that standard output is.
            color: colours in the terminal format; None = when standard output is a terminal and NO_COLOR is
                not set.
        """
        # Imported on use: pandas alone would double the start-up time of every command.
        match self:
            case Format.TERMINAL:
                from hottune.report.terminal import TerminalRenderer

                return TerminalRenderer(width=width, color=color)
            case Format.MARKDOWN:
                from hottune.report.markdown import MarkdownRenderer

                return MarkdownRenderer()
            case Format.HTML:
                from hottune.report.html import HtmlRenderer

                return HtmlRenderer()
            case Format.JSON:
                from hottune.report.json_file import JsonRenderer

                return JsonRenderer()
            case Format.CSV:
                from hottune.report.csv_file import CsvRenderer

                return CsvRenderer()


def render(report: Report, format: Format, *, width: int | None = None, color: bool | None = None) -> str:
    """Return the report in a format; `width` and `color` are for the terminal (see `Format.renderer`)."""
    return format.renderer(width=width, color=color).render(report)
