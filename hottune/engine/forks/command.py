"""A fork's command line and variables for a Placement, by its engine file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hottune.engine.argv import device_env, server_env
from hottune.engine.facts import EngineBuild, OtherEngine
from hottune.engine.forks.file import ALWAYS, EngineFile
from hottune.engine.forks.words import expand
from hottune.machine.facts import Gpu
from hottune.models.shape import ModelFile
from hottune.placement import Placement

#: Fields that a fork need not know, as long as they are not asked for.
_OPTIONAL = (
    *("hot_k", "fit", "shared_budget", "hot_profile"),
    *("kv_type_k", "kv_type_v", "parallel", "spec_type", "spec_ngram"),
)


@dataclass(frozen=True)
class Fork:
    """An other engine that can be measured, or the reason why it cannot."""

    file: EngineFile
    facts: OtherEngine

    @property
    def name(self) -> str:
        """Name of the engine and of its arm."""
        return self.file.name


class Unmapped(Exception):
    """The engine file does not say what a placement means to the fork; the text names what is missing."""


def fork_values(
    placement: Placement, *, model: Path | str, port: int, gpu: Gpu | None, host: str = "127.0.0.1"
) -> dict[str, str]:
    """Return what the fields of an engine file stand for."""
    return {
        "model": str(model),
        "host": host,
        "port": str(port),
        "gpu": "none" if gpu is None else "virtual" if gpu.virtual else "real",
        "n_gpu_layers": "0" if gpu is None else "99",
        "n_cpu_moe": str(placement.n_cpu_moe),
        "hot_k": str(placement.hot_k),
        "rebalance_interval": str(placement.rebalance_interval),
        "prefill_bypass": str(placement.prefill_bypass),
        "ubatch": str(placement.ubatch),
        "batch": str(max(placement.batch, placement.ubatch)),
        "threads": str(placement.threads),
        "context": str(placement.context * placement.parallel),
        "parallel": str(placement.parallel),
        "load_mode": placement.load_mode.value,
        "kv_type_k": placement.kv_type_k.value,
        "kv_type_v": placement.kv_type_v.value,
        "spec_type": placement.spec_type,
        "spec_ngram": "" if placement.spec_ngram is None else str(placement.spec_ngram),
    }


def require_mapped(file: EngineFile, placement: Placement) -> None:
    """Check that everything that a placement asks for has a meaning to the fork.

    Raises:
        Unmapped: something has not.
    """
    for field in _OPTIONAL:
        value = getattr(placement, field)
        if value != Placement.model_fields[field].default and field not in file.mapped:
            raise Unmapped(f"the engine file of {file.name} does not say what {field} = {value} means to it")


def fork_argv(file: EngineFile, server: Path, values: Mapping[str, str]) -> list[str]:
    """Return the command line.

    Raises:
        Unmapped: a value has no arguments in the file.
    """
    argv = [str(server)]
    for field, entry in file.arguments.items():
        words = entry
        if field != ALWAYS and isinstance(entry, dict):
            if values[field] not in entry:
                raise Unmapped(
                    f"the engine file of {file.name} has no arguments for {field} = {values[field]}, "
                    f"only for {', '.join(entry)}"
                )
            words = entry[values[field]]
        argv += [expand(word, values) for word in words]
    return argv


def fork_command(
    fork: Fork,
    build: EngineBuild,
    model: ModelFile,
    placement: Placement,
    *,
    port: int,
    gpu: Gpu | None,
    ceiling_mib: float,
    stats_path: Path,
) -> tuple[list[str], dict[str, str]]:
    """Return a fork's command line and the variables that hottune adds.

    Args:
        fork: the engine.
        build: hottune's own llama.cpp; its device library is the virtual GPU.
        model: to serve.
        placement: what goes where.
        port: to listen on.
        gpu: the GPU, real or virtual, or None.
        ceiling_mib: VRAM that the server may use, MiB; the virtual GPU enforces it.
        stats_path: where the virtual GPU writes its counters.

    Raises:
        Unmapped: the engine file does not say what the placement means.
    """
    require_mapped(fork.file, placement)
    values = fork_values(placement, model=model.path, port=port, gpu=gpu)
    argv = fork_argv(fork.file, fork.facts.llama_server or Path("llama-server"), values)
    env = device_env(fork.facts.backend, gpu)
    if gpu is not None and gpu.virtual:
        plain = placement.model_copy(update={"hot_k": 0})
        env |= server_env(
            build, plain, shape=model.shape, gpu=gpu, ceiling_mib=ceiling_mib, stats_path=stats_path
        )
    env |= {name: expand(value, values) for name, value in fork.file.environment.items()}
    return argv, env
