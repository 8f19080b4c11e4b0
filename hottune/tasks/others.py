"""Other engines of a run: each built, or handed in, or refused with the reason."""

from __future__ import annotations

from hottune.engine.facts import Backend, EngineBuild
from hottune.engine.forks.build import build_fork, find_fork, refusal, refused
from hottune.engine.forks.command import Fork
from hottune.engine.forks.file import EngineFile, load_engine_file
from hottune.errors import BadSettingError
from hottune.models.shape import ModelFile
from hottune.progress import Progress
from hottune.tasks.settings import RunConfig


def others(config: RunConfig, engine: EngineBuild, model: ModelFile, progress: Progress) -> tuple[Fork, ...]:
    """Return the other engines that a run asks for; what cannot be an arm here is not built.

    Raises:
        EngineFileError: an engine file cannot be read.
        BadSettingError: two have one name, or --engine-bin names none of them.
        HottuneError: one of the errors 20-27 of its build.
    """
    found = []
    for file in engine_files(config):
        why = _refusal(file, engine, model)
        if why:
            progress.say(f"{file.name} will not be measured: {why}.")
            found.append(refused(file, engine.backend, why))
            continue
        given = config.engine_bins.get(file.name)
        found.append(
            build_fork(file, engine.backend, cache_dir=config.cache_dir, progress=progress, given=given)
        )
    return tuple(found)


def others_for_show(config: RunConfig, engine: EngineBuild, model: ModelFile) -> tuple[Fork, ...]:
    """Like `others`, but builds nothing."""
    found = []
    for file in engine_files(config):
        why = _refusal(file, engine, model)
        given = config.engine_bins.get(file.name)
        found.append(
            refused(file, engine.backend, why)
            if why
            else find_fork(file, engine.backend, cache_dir=config.cache_dir, given=given)
        )
    return tuple(found)


def engine_files(config: RunConfig) -> list[EngineFile]:
    """Return the engine files that a run names.

    Raises:
        EngineFileError: one cannot be read.
        BadSettingError: two have one name, or --engine-bin names none of them.
    """
    found = [load_engine_file(given) for given in config.engines]
    names = [file.name for file in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadSettingError(
            f"Two engines are called {twice[0]}.", next_step="Give one of the engine files another name."
        )
    strangers = sorted(config.engine_bins.keys() - set(names))
    if strangers:
        raise BadSettingError(
            f"--engine-bin {strangers[0]}: there is no --engine of that name.",
            next_step=f"Add --engine; here: {', '.join(names) or 'none'}.",
        )
    return found


def _refusal(file: EngineFile, engine: EngineBuild, model: ModelFile) -> str:
    virtual = engine.backend is Backend.CPU  # without GPU support, the GPU is the virtual one
    return refusal(file, backend=engine.backend, virtual=virtual, architecture=model.shape.architecture)
