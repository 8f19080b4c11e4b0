"""Addresses given to `hottune compare`: measured now, with the workload of the results beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from hottune.cli import common
from hottune.cli.endpoint import measured
from hottune.report.endpoint import EndpointResult
from hottune.tasks.comparable import Compared, workload_of
from hottune.tasks.comparison import require_alike
from hottune.tasks.endpoint import Wanted
from hottune.tasks.endpoint_compared import ChosenEndpoint
from hottune.workload.endpoint_url import is_url
from hottune.workload.workloads import load_workload


def with_endpoints(
    arguments: Sequence[str],
    chosen: Callable[[str], list[Compared]],
    passes: int,
    *,
    allow_different: bool = False,
) -> list[Compared]:
    """Return what the arguments mean, in their order.

    Endpoints get the workload of the first result, or, where all are endpoints, that of chats.

    Raises:
        HottuneError: a result is not there, an endpoint cannot be measured, or what is known before that
            forbids to compare it. Every result is looked up before the first endpoint is measured.
    """
    found: list[list[Compared] | None] = [None if is_url(one) else chosen(one) for one in arguments]
    stored = [one for each in found if each for one in each]

    def require(begun: EndpointResult) -> None:
        require_alike([*stored, ChosenEndpoint(begun.label, begun)], allow_different=allow_different)

    several = found.count(None) > 1
    workload = workload_of(stored[0]) if stored else load_workload("chat")
    for place, argument in enumerate(arguments):
        if found[place] is None:
            # Several may serve one model: each gets a name and a file of its own.
            wanted = Wanted(label=f"live-{place + 1}" if several else None)
            result, failure, path = measured(argument, workload, passes, wanted, before=require)
            common.console().print(Text(f"Wrote {path}"), soft_wrap=True)
            if failure is not None:
                raise failure.error
            found[place] = [ChosenEndpoint(f"{result.label} ({result.url})", result)]
    return [one for each in found if each for one in each]
