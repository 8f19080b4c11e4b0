"""The report as one HTML file that needs no network."""

from hottune.report.html.renderer import HtmlRenderer

__all__ = ["HtmlRenderer"]
