"""One llama-server for a benchmark of its own: on the real GPU where there is one, else on a virtual one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hottune.engine.facts import Backend, EngineBuild
from hottune.engine.launch import launch
from hottune.engine.server import Server
from hottune.machine.facts import Machine
from hottune.machine.probe import virtual_gpu
from hottune.models.shape import ModelFile
from hottune.placement import Placement


@contextmanager
def one_server(
    engine: EngineBuild, model: ModelFile, placement: Placement, machine: Machine
) -> Iterator[Server]:
    """Serve a placement with nearly all of the GPU's memory, and keep no log."""
    real = bool(machine.gpus) and engine.backend is not Backend.CPU
    gpu = machine.gpus[0] if real else virtual_gpu(65536)
    with (
        TemporaryDirectory() as folder,
        launch(
            engine,
            model,
            placement,
            gpu=gpu,
            ceiling_mib=gpu.vram_total_mib * 0.95,
            log_path=Path(folder) / "server.log",
        ) as server,
    ):
        yield server
