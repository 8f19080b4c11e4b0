"""Commands that start a placement's server, as reports and dry runs show them."""

from __future__ import annotations

from pathlib import Path

from hottune.engine.argv import Serving, server_command
from hottune.engine.forks.command import Unmapped, fork_command
from hottune.engine.ports import PORT
from hottune.placement import Placement
from hottune.tasks.basis import Basis
from hottune.tasks.prepare import Plan


def argv_and_env(
    plan: Plan | Basis, placement: Placement, serving: Serving | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the command line of a placement's server and the variables hottune adds, to show.

    The port is the one asked for, or llama-server's usual one. `serving` is for people to use; without it, it
    is as measured. Of another engine both are empty where its engine file does not say what the placement
    means.
    """
    port = plan.config.port or PORT
    if placement.engine:
        fork = next(one for one in plan.forks if one.name == placement.engine)
        try:
            return fork_command(
                fork,
                plan.engine,
                plan.model,
                placement,
                port=port,
                gpu=plan.gpu,
                ceiling_mib=plan.usable_mib,
                stats_path=Path("hot-stats.json"),
            )
        except Unmapped:
            return [], {}
    return server_command(
        plan.engine,
        plan.model.path,
        placement,
        shape=plan.model.shape,
        port=port,
        gpu=plan.gpu,
        ceiling_mib=plan.usable_mib,
        serving=serving,
    )
