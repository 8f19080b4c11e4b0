"""Basis: all that a report says beside what was measured; kept with the study, so that the study is enough.

With it, a report can be made again on a machine that has neither engine nor model (see `stored`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

import hottune
from hottune.engine.facts import EngineBuild
from hottune.engine.forks.command import Fork
from hottune.machine.ballast import Ballast
from hottune.machine.facts import Gpu, Machine
from hottune.models.shape import ModelFile
from hottune.search.correction import NeedMib
from hottune.search.journal import Journal
from hottune.search.objective import Limits
from hottune.tasks.prepare import Plan, memory_need
from hottune.tasks.settings import RunConfig
from hottune.workload.facts import Workload

NOTE = "basis"


@dataclass(frozen=True)
class Memory:
    """The memory model as it was planned with: VRAM that a placement needs, and VRAM that there is, MiB."""

    need_mib: NeedMib
    ceiling_mib: float


class Basis(BaseModel):
    """A plan as data: what was measured on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hottune_version: str
    study: str
    config: RunConfig
    engine: EngineBuild
    model: ModelFile
    machine: Machine
    #: The GPU as servers see it, so beside the ballast; `card` is the same without it.
    gpu: Gpu
    card: Gpu
    ceiling_mib: float
    ballast: Ballast | None
    workload: Workload
    #: Other engines with an arm of their own.
    forks: tuple[Fork, ...] = ()

    @classmethod
    def of(cls, plan: Plan) -> Basis:
        """Return the basis of a plan."""
        # Without the storage's URL: it may hold a password, and whoever reads this has the URL.
        config = plan.config.model_copy(update={"storage": None, "worker": None})
        return cls(
            hottune_version=hottune.__version__,
            study=plan.name,
            config=config,
            engine=plan.engine,
            model=plan.model,
            machine=plan.machine,
            gpu=plan.gpu,
            card=plan.without_ballast.gpu,
            ceiling_mib=plan.ceiling_mib,
            ballast=plan.ballast.facts if plan.ballast else None,
            workload=plan.workload,
            forks=plan.forks,
        )

    @property
    def limits(self) -> Limits:
        """What a placement must keep to be recommended."""
        return self.config.limits(self.ceiling_mib)

    @property
    def usable_mib(self) -> float:
        """VRAM that every arm is planned for: the ceiling, less what must stay free."""
        return self.ceiling_mib - self.config.keep_free_mib

    @property
    def seen_machine(self) -> Machine:
        """The machine, with the virtual GPU where that one was used."""
        return self.machine.model_copy(update={"gpus": (self.gpu,)}) if self.gpu.virtual else self.machine

    @property
    def memory(self) -> Memory:
        """The memory model that the search began with."""
        return Memory(memory_need(self.model.shape, self.gpu), self.usable_mib)

    @property
    def without_ballast(self) -> Basis:
        """The same with the card as it is without the ballast: for a command that serves later."""
        return self.model_copy(update={"gpu": self.card, "ballast": None})


def note_basis(plan: Plan, journal: Journal) -> None:
    """Keep the plan's basis with its study. Of a study that machines share, that of the first one stays."""
    if not journal.shared or journal.noted(NOTE) is None:
        journal.note(NOTE, Basis.of(plan).model_dump(mode="json"))
