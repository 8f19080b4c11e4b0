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
    MARKDOWN_LONG = "markdown-long"
    HTML = "html"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PNG = "png"

    @property
    def is_binary(self) -> bool:
        """Whether it is no text: `render_bytes` alone renders it."""
        return self is Format.PNG

    def renderer(self, *, width: int | None = None, color: bool | None = None, link: str = "") -> Renderer:
        """Build the renderer of this format.

        Args:
            width: columns of the terminal format; None = of the terminal that standard output is.
            color: colours in the terminal format; None = when standard output is a terminal and NO_COLOR is
                not set.
            link: address of the result file, for Markdown; "" = its name alone.

        Raises:
            ValueError: the format is no text.
        """
        # Imported on use: pandas alone would double the start-up time of every command.
        match self:
            case Format.TERMINAL:
                from hottune.report.terminal import TerminalRenderer

                return TerminalRenderer(width=width, color=color)
            case Format.MARKDOWN:
                from hottune.report.forum import ForumRenderer

                return ForumRenderer(link)
            case Format.MARKDOWN_LONG:
                from hottune.report.markdown import MarkdownRenderer

                return MarkdownRenderer(link)
            case Format.HTML:
                from hottune.report.html import HtmlRenderer

                return HtmlRenderer()
            case Format.JSON:
                from hottune.report.json_file import JsonRenderer

                return JsonRenderer()
            case Format.JSONL:
                from hottune.report.jsonl_file import JsonlRenderer

                return JsonlRenderer()
            case Format.CSV:
                from hottune.report.csv_file import CsvRenderer

                return CsvRenderer()
            case Format.PNG:
                raise ValueError("a picture is no text")


def render(
    report: Report, format: Format, *, width: int | None = None, color: bool | None = None, link: str = ""
) -> str:
    """Return the report in a format that is text (see `Format.renderer`)."""
    return format.renderer(width=width, color=color, link=link).render(report)


def render_bytes(report: Report, format: Format, *, link: str = "") -> bytes:
    """Return the report in any format as the bytes of a file; text is UTF-8, without colours."""
    if format is Format.PNG:
        from hottune.report.picture import picture

        return picture(report)
    return render(report, format, color=False, link=link).encode()
