"""Fill in the generated parts of the documentation: options and exit codes in commands.md, result schemas.

`python docs/make_reference.py` rewrites them; a unit test fails when they are not current.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import types
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from hottune.cli.app import COMMANDS
from hottune.errors import all_errors
from hottune.report.json_schema import endpoint_schema_text, schema_text

DOCS = Path(__file__).parent


def filled(text: str) -> str:
    """Return the text of commands.md with every generated part made anew."""
    text = _replaced(text, "exit-codes", exit_codes())
    for name in COMMANDS:
        text = _replaced(text, f"options {name}", options(name))
    return text


def _replaced(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"docs/commands.md lacks the markers of '{name}'")
    head, rest = text.split(begin, 1)
    return head + begin + body + end + rest.split(end, 1)[1]


def exit_codes() -> str:
    """Return the table of exit codes of all errors."""
    rows = [
        f"| {error.exit_code} | `{error.__name__}` | {_cell(inspect.getdoc(error) or '')} |"
        for error in all_errors()
    ]
    return "\n".join(["| code | error | meaning |", "| ---: | --- | --- |", *rows]) + "\n"


def options(name: str) -> str:
    """Return the tables of a command's arguments and options, or of its subcommands'."""
    module, attribute, _ = COMMANDS[name]
    if importlib.util.find_spec(f"hottune.cli.{module}") is None:
        return ""
    target = getattr(importlib.import_module(f"hottune.cli.{module}"), attribute)
    if not isinstance(target, typer.Typer):
        return _table(target)
    tables = []
    for entry in target.registered_commands:
        if entry.callback is not None and not entry.hidden:
            sub = entry.name or entry.callback.__name__.replace("_", "-")
            purpose = (entry.help or inspect.getdoc(entry.callback) or "").split("\n\n")[0]
            tables.append(f"`hottune {name} {sub}`: {_cell(purpose)}\n\n{_table(entry.callback)}")
    return "\n".join(tables)


def _table(function: Callable[..., Any]) -> str:
    hints = typing.get_type_hints(function, include_extras=True)
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        for info in getattr(hints[name], "__metadata__", ()):
            if isinstance(info, (ArgumentInfo, OptionInfo)) and not info.hidden:
                rows.append(_row(name, info, typing.get_args(hints[name])[0], parameter.default))
    head = ["| option | default | meaning |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows]) + "\n" if rows else "No options.\n"


def _row(name: str, info: ArgumentInfo | OptionInfo, kind: Any, default: Any) -> str:
    kinds = [item for item in typing.get_args(kind) or (kind,) if item is not types.NoneType]
    if isinstance(info, ArgumentInfo):
        shown = f"`{_cell((info.metavar or name).upper())}`"
    else:
        # Inside Annotated, typer keeps the first flag where the default of a plain Option would be.
        given = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
        given = [flag for pair in given for flag in pair.split("/")]
        plain = name.replace("_", "-")
        flags = given or [f"--{plain}", *([f"--no-{plain}"] if kinds == [bool] else [])]
        metavar = f" {info.metavar}" if info.metavar else ""
        shown = ", ".join(f"`{flag}{metavar}`" for flag in flags)
    text = _cell(info.help or "")
    if choices := _choices(kinds):
        text += f" One of {', '.join(choices)}."
    return f"| {shown} | {_default(default)} | {text} |"


def _choices(kinds: list[Any]) -> list[str]:
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return [str(member.value) for member in kinds[0]]
    return [kind for kind in kinds if isinstance(kind, str)]  # the arguments of a Literal


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value is False or value in ((), [], ""):
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def main() -> None:
    """Rewrite the files."""
    commands = DOCS / "commands.md"
    commands.write_text(filled(commands.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "result.schema.json").write_text(schema_text(), encoding="utf-8")
    (DOCS / "endpoint.schema.json").write_text(endpoint_schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
