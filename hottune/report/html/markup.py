"""Escaping and tables. Every other module of this package builds its HTML from these."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


def esc(text: str) -> str:
    """Return plain text as HTML that shows exactly that text, also inside a quoted attribute."""
    return html.escape(text, quote=True)


def slug(text: str) -> str:
    """Return a title as an element's id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: what it shows, plain.
        value: number to sort by; None = sorted by the text.
    """

    text: str
    value: float | None = None


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    right_from: int = 1,
    marked: int | None = None,
) -> str:
    """Return a table whose first column heads its rows; the script makes it sortable.

    Args:
        caption: its title, also for screen readers.
        head: column titles.
        rows: cells, as many as titles in each row.
        right_from: columns from here on are aligned right.
        marked: index of a row to emphasise.
    """
    titles = "".join(
        f'<th scope="col"{_right(column, right_from)}>{esc(title)}</th>' for column, title in enumerate(head)
    )
    lines = []
    for number, cells in enumerate(rows):
        marks = ' class="marked"' if number == marked else ""
        lines.append(
            f"<tr{marks}>{''.join(_cell(cell, column, right_from) for column, cell in enumerate(cells))}</tr>"
        )
    # Focusable, because what scrolls sideways must be reachable with the keyboard alone.
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(caption)}">'
        f'<table class="sortable"><caption>{esc(caption)}</caption><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _right(column: int, right_from: int) -> str:
    return ' class="right"' if column >= right_from else ""


def _cell(cell: Cell, column: int, right_from: int) -> str:
    sort = "" if cell.value is None else f' data-sort="{cell.value:.6g}"'
    kind, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
    return f"<{kind}{scope}{_right(column, right_from)}{sort}>{esc(cell.text)}</{kind}>"


def bullets(lines: Sequence[str]) -> str:
    """Return plain lines as a list; "" when there are none."""
    return f"<ul>{''.join(f'<li>{esc(line)}</li>' for line in lines)}</ul>" if lines else ""


def section(title: str, *parts: str) -> str:
    """Return a titled section; "" when all of its parts, which are HTML, are empty."""
    body = "\n".join(part for part in parts if part)
    name = slug(title)
    if not body:
        return ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{esc(title)}</h2>\n{body}\n</section>'


def code(command: str) -> str:
    """Return a shell command to copy. It wraps between words alone: a break after the - of an option would
    look like two words.
    """
    words = " ".join(f"<span>{esc(word)}</span>" for word in command.split(" "))
    return f'<pre class="command" tabindex="0"><code>{words}</code></pre>'
