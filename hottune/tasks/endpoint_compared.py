"""An endpoint among the things that are compared: what is known of it, and what its numbers cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hottune.report.endpoint import EndpointResult

if TYPE_CHECKING:
    from hottune.tasks.comparable import Compared

#: The code of each caution, with its words; `{who}` are letters, `{others}` those that are no endpoints.
CLIENT_TIMED = (
    "{who}: timed by the client, {others} by the server. A client's prefill has the way there and back "
    "({trips}) and one token's sampling in it, so {who} looks slower there than it is; turns are timed alike."
)
ALL_CLIENT_TIMED = "All timed by the client: prefill has the way there and back ({trips}) in it."
ONE_SERVER = (
    "{who}: passes over one running server, not fresh servers. They share its luck, so their scatter is too "
    "small and a verdict says less than it seems to."
)
UNCHECKED = (
    "{who}: an endpoint calls its model {models}; nobody checked that it has the same weights, nor how much "
    "VRAM it takes."
)
UNKNOWN_MACHINE = (
    "{who}: the endpoint's machine is unknown, so the difference may be the machine's and not the software's."
)
LOOPBACK = "{who}: taken to be on this machine by its address; a tunnel would look the same."
NO_TURN = "{who}: answers or prompts had other lengths than asked for, so turns are not compared."
#: Warnings of an endpoint's own result that a comparison repeats.
_TOLD = frozenset(
    {
        "cached-prompts",
        "counted-as-chunks",
        "tokens-in-lumps",
        "prompt-tokens-unknown",
        "stopped-early",
        "in-bursts",
        "round-trip",
        "not-all-fields",
        "interrupted",
    }
)


@dataclass(frozen=True)
class ChosenEndpoint:
    """One endpoint, measured before or just now."""

    name: str
    result: EndpointResult

    @property
    def described(self) -> str:
        """What it is, in a few words: its software, as far as it tells, and its route."""
        told = self.result.server
        who = told.get("owned_by") or told.get("Server header") or "endpoint"
        build = told.get("build") or told.get("version")
        return f"{who}{f' {build}' if build else ''}, /{self.result.route}"

    def around(self) -> dict[str, str]:
        """Return settings that are shown where they differ between endpoints."""
        told = self.result.server
        return {
            "endpoint's model": self.result.model,
            "endpoint's software": self.described,
            "optional fields": ", ".join(self.result.fields) or "none",
            "endpoint's build": told.get("build") or told.get("version") or "",
        }


def endpoint_cautions(chosen: Sequence[Compared], letters: Sequence[str]) -> list[tuple[str, str]]:
    """Return what an endpoint makes weaker about a comparison, as codes and texts."""
    found = [
        (letter, one) for letter, one in zip(letters, chosen, strict=True) if isinstance(one, ChosenEndpoint)
    ]
    if not found:
        return []
    others = [letter for letter in letters if letter not in {who for who, _ in found}]
    trips = " and ".join(f"{one.result.round_trip_ms:.1f} ms" for _, one in found)
    who = ", ".join(letter for letter, _ in found)
    notes = [
        ("client-timed", CLIENT_TIMED.format(who=who, others=", ".join(others), trips=trips))
        if others
        else ("client-timed", ALL_CLIENT_TIMED.format(trips=trips)),
        ("one-server", ONE_SERVER.format(who=who)),
    ]
    models = " and ".join(f"'{one.result.model}'" for _, one in found)
    notes.append(("unchecked-model", UNCHECKED.format(who=who, models=models)))
    for code, text, these in (
        ("unknown-machine", UNKNOWN_MACHINE, [at for at, one in found if one.result.machine is None]),
        ("loopback", LOOPBACK, [at for at, one in found if one.result.machine is not None]),
        ("no-turn", NO_TURN, [at for at, one in found if not one.result.values("turn")]),
    ):
        if these:
            notes.append((code, text.format(who=", ".join(these))))
    for letter, one in found:
        notes += [(note.code, f"{letter}: {note.text}") for note in one.result.warnings if note.code in _TOLD]
    return notes
