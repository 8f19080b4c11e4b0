"""The `hottune` command: which commands there are. Each lives in its own file, imported only when used."""

from __future__ import annotations

import importlib
import signal
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import hottune

#: Command -> (module, attribute, one line of help). The attribute is a function or a `typer.Typer`.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Find the fastest placement of MODEL, prove it, and report it: all steps in one."),
    "bench": ("bench", "bench", "Measure one placement of MODEL in fresh servers."),
    "build": ("build", "build", "Build llama.cpp and the hot-expert device into the cache folder."),
    "machine": ("machine", "machine", "Show this machine and its measured bandwidths."),
    "plan": ("plan", "plan", "Read MODEL's header only: what fits, and how fast it would be."),
    "doctor": ("doctor", "doctor", "Check what hottune finds on this machine and what is missing."),
    "models": ("models", "app", "Download, inspect and synthesize models."),
    "replay": ("replay", "replay", "Show what each cache would have done on a recorded routing."),
    "report": ("report", "report", "Render the result of a study again, in any format."),
    "compare": (
        "compare",
        "compare",
        "Compare results: the settings that differ, each speed against the first.",
    ),
    "share": ("share", "share", "Redact a result for sharing and show what would leave; nothing is sent."),
    "serve": ("serve", "serve", "Run llama-server with what a study found."),
    "studies": ("studies", "app", "List, show and resume studies."),
    "trace": ("trace", "trace", "Record which experts a model chooses, or generate such a trace."),
}


class LazyGroup(TyperGroup):
    """Lists every command from `COMMANDS` without importing it; imports the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that knows the command's name and help only."""
        if cmd_name not in COMMANDS:
            return None
        text = COMMANDS[cmd_name][2]
        return TyperCommand(cmd_name, help=text, short_help=text)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the real command for the arguments, importing its module."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, (load_command(name) if name and found is not None else found), rest


def load_command(name: str) -> Any:
    """Import the module of a command and return the command."""
    module, attribute, text = COMMANDS[name]
    target = getattr(importlib.import_module(f"hottune.cli.{module}"), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name=name)(target)
        target = single
    command = typer.main.get_command(target)
    command.name = name
    command.help = command.help or text
    return command


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode=None
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hottune {hottune.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Find, prove and serve the fastest way to run a Mixture-of-Experts model that does not fit in VRAM."""


def _end_cleanly(number: int, frame: FrameType | None) -> None:
    # As an exception, so that every `with` block stops its server on the way out.
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _end_cleanly)
    app()


if __name__ == "__main__":
    main()
