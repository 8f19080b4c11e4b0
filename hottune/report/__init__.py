"""One schema and its renderers."""

from hottune.report.interface import Format, Renderer, render, render_bytes
from hottune.report.json_file import load, load_any
from hottune.report.store import save

__all__ = ["Format", "Renderer", "load", "load_any", "render", "render_bytes", "save"]
