"""Other engines, from the engine file to the report: a local repository stands in for the remote."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hottune_command import Command, require_engine
from stand_in_fork import SOURCE, Repository, engine_file

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine
from hottune.engine.facts import Backend
from hottune.engine.forks.build import build_fork, find_fork
from hottune.engine.forks.file import load_engine_file
from hottune.engine.sources import clone_folder
from hottune.errors import BuildFailedError, SourceInvalidError
from hottune.progress import NoProgress

pytestmark = pytest.mark.real

SMALL = ("demo", "--backend", "cpu", "--scale", "0.1")


@dataclass
class Forks:
    """Engine files of one repository; what hottune makes of them in its cache is removed at the end."""

    command: Command
    repository: Repository
    real_server: Path
    made: list[Path] = field(default_factory=list)

    def file(self, name: str, commit: str, **facts: Any) -> Path:
        path = self.command.folder / f"{name}-{uuid.uuid4().hex[:6]}.toml"
        self.made.append(engine_file(path, self.repository, commit, self.real_server, **facts))
        return path


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    require_engine()
    build = find_engine(BuildOptions(backend=Backend.CPU), cache_dir=cache_dir())
    assert build is not None
    folder = tmp_path_factory.mktemp("forks")
    found = Forks(Command(folder), Repository(folder / "remote"), build.llama_server)
    yield found
    for path in found.made:
        file = load_engine_file(str(path))
        for made in (cache_dir() / "builds").glob(f"{file.name}-cpu-*"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        clone = clone_folder(f"{file.git}@{file.ref}", cache_dir())
        shutil.rmtree(clone, ignore_errors=True)
        clone.with_suffix(".log").unlink(missing_ok=True)


def test_engines_are_cloned_built_measured_and_compared_beside_the_baselines(forks: Forks) -> None:
    commit = forks.repository.commit()
    twin, cache = forks.file("twin", commit), forks.file("cache", commit, kind="hot")
    engines = ["--engine", str(twin), "--engine", str(cache), "--engine", "ik_llama"]
    ended = forks.command.run("run", *SMALL, "--quick", *engines, "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    arms = {arm["name"]: arm for arm in report["arms"]}
    names = [twin.stem, cache.stem, "ik_llama"]
    assert list(arms) == ["all-cpu", "layers", "fit", *names, "hot"]

    for name in names[:2]:
        arm = arms[name]
        assert arm["outcome"] == "measurement", ended.stderr
        assert len(arm["replicates"]) == 2
        assert 0 < arm["vram_peak_mib"] <= 1.02 * report["ceiling_mib"]
        assert arm["placement"]["engine"] == name
        assert arm["argv"][0].endswith("build/bin/llama-server")
        assert name in arm["argv"][0]
        assert arm["versus_arm"] in ("all-cpu", "layers", "fit")
        assert set(arm["versus_winner"]) == {"decode", "prefill", "turn"}
        assert set(arms["hot"]["ratios"][name]) == {"decode", "prefill", "turn"}
        assert arm["hit_rate"] is None
        assert arm["scored_positions"] == 64, "its engine file says that it tells probabilities"
    layers = arms[twin.stem]
    assert layers["placement"]["n_cpu_moe"] == arms["layers"]["placement"]["n_cpu_moe"]
    assert "--fork-moe" in layers["argv"]
    assert layers["kld_to_all_cpu"] == 0, "the very same llama.cpp is behind it"
    assert arms[cache.stem]["env"]["FORK_HOT_K"] == str(arms[cache.stem]["placement"]["hot_k"])
    assert arms[cache.stem]["placement"]["hot_k"] > 0

    assert arms["ik_llama"]["outcome"] == "not_engaged"
    assert "needs a real GPU" in arms["ik_llama"]["detail"]
    others = {one["name"]: one for one in report["other_engines"]}
    assert others[twin.stem]["commit"] == commit
    assert others["ik_llama"]["llama_server"] is None
    assert report["winner"]["arm"] not in names
    page = next((forks.command.folder / "reports").glob("*.md")).read_text()
    assert f"{twin.stem}, another engine, " in page

    again = forks.command.run("run", *SMALL, "--quick", *engines, "--json")
    assert json.loads(again.stdout)["trials"] == report["trials"], "nothing is measured twice"
    served = forks.command.run("serve", report["study"], "--arm", twin.stem)
    assert served.returncode == 42
    assert "another engine" in served.stderr


def test_without_its_proof_a_fork_is_not_engaged(forks: Forks) -> None:
    file = forks.file("silent", forks.repository.commit(line="nothing"))
    ended = forks.command.run("bench", *SMALL, "--engine", str(file), "--json")
    assert ended.returncode == 32, ended.stderr
    found = json.loads(ended.stdout)["outcomes"][0]
    assert found["kind"] == "not_engaged"
    assert "matches its proof 'fork: hot cache K none'" in found["detail"]


def test_what_the_engine_file_does_not_map_is_not_engaged(forks: Forks) -> None:
    file = forks.file("plain", forks.repository.commit())
    ended = forks.command.run("bench", *SMALL, "--engine", str(file), "--parallel", "2", "--json")
    assert ended.returncode == 32, ended.stderr
    assert "does not say what parallel = 2 means" in json.loads(ended.stdout)["outcomes"][0]["detail"]


def test_another_commit_is_another_build_and_a_built_one_can_be_handed_in(
    forks: Forks, tmp_path: Path
) -> None:
    first = load_engine_file(str(forks.file("first", forks.repository.commit())))
    later = forks.repository.commit(source=SOURCE + "// later\n")
    second = first.model_copy(update={"ref": later})
    built = [
        build_fork(file, Backend.CPU, cache_dir=tmp_path, progress=NoProgress()) for file in (first, second)
    ]
    assert built[0].facts.key != built[1].facts.key
    assert built[1].facts.commit == later
    assert built[0].facts.llama_server != built[1].facts.llama_server
    assert find_fork(second, Backend.CPU, cache_dir=tmp_path) == built[1]

    program = built[1].facts.llama_server
    assert program is not None
    for given in (program, program.parent, program.parent.parent):
        handed = find_fork(first, Backend.CPU, cache_dir=tmp_path, given=given).facts
        assert handed.prebuilt
        assert handed.llama_server == program
        assert handed.label == built[1].facts.label
    with pytest.raises(SourceInvalidError, match="no llama-server"):
        find_fork(first, Backend.CPU, cache_dir=tmp_path, given=tmp_path)


def test_a_fork_that_does_not_compile_says_so(forks: Forks, tmp_path: Path) -> None:
    commit = forks.repository.commit(source="this is no C++\n")
    file = load_engine_file(str(forks.file("broken", commit)))
    with pytest.raises(BuildFailedError, match=f"Building {file.name} failed"):
        build_fork(file, Backend.CPU, cache_dir=tmp_path, progress=NoProgress())


def test_a_commit_that_is_not_there_cannot_be_cloned(forks: Forks, tmp_path: Path) -> None:
    forks.repository.commit()
    file = load_engine_file(str(forks.file("gone", "0" * 40)))
    with pytest.raises(SourceInvalidError, match="git could not fetch"):
        build_fork(file, Backend.CPU, cache_dir=tmp_path, progress=NoProgress())
