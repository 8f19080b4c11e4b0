"""A plan with its ballast in place: everything after it sees a card with only the ceiling free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hottune.machine import ballast
from hottune.progress import Progress
from hottune.tasks.prepare import Plan
from hottune.units import MIB, format_bytes


def wants_ballast(plan: Plan) -> bool:
    """Tell whether the VRAM above the ceiling is to be held: asked for, useful, and possible."""
    return _asked_for(plan) and not ballast.why_not(plan.gpu, plan.ceiling_mib)


def _asked_for(plan: Plan) -> bool:
    return plan.config.ballast and plan.config.vram_mib is not None


@contextmanager
def ballasted(plan: Plan, ui: Progress) -> Iterator[Plan]:
    """Hold what the card has above the ceiling; yield the plan with the card as servers now see it.

    Without need for a ballast the plan is yielded as it is.

    Raises:
        BallastError: other programs use the card, or the driver refuses.
    """
    if not wants_ballast(plan):
        if _asked_for(plan) and not plan.gpu.virtual:
            ui.say(f"No ballast: {ballast.why_not(plan.gpu, plan.ceiling_mib)}.")
        yield plan
        return
    with ballast.held(plan.gpu, plan.ceiling_mib) as holder:
        facts = holder.facts
        ui.say(
            f"Ballast: {format_bytes(facts.held_mib * MIB)} of {plan.gpu.name} are held; "
            f"{facts.free_mib:.0f} MiB are free. That is a small card's capacity, not its bandwidth."
        )
        gpu = plan.gpu.model_copy(update={"vram_free_mib": facts.free_mib})
        yield replace(plan, gpu=gpu, ballast=holder)


def as_ballasted(plan: Plan) -> Plan:
    """Return the plan as it would be with its ballast, which is not taken: to show commands."""
    if not wants_ballast(plan):
        return plan
    return replace(plan, gpu=plan.gpu.model_copy(update={"vram_free_mib": plan.ceiling_mib}))
