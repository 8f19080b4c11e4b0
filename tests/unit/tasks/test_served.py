"""What is served: the arm, and model, engine and GPU as they are here."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hottune.engine.argv import Serving
from hottune.engine.build import BuildOptions
from hottune.engine.facts import Backend, EngineBuild
from hottune.errors import BackendUnavailableError, BadSettingError, ModelNotFoundError
from hottune.machine.facts import Cpu, Gpu, Machine
from hottune.models.resolve import resolve_model
from hottune.placement import Placement
from hottune.tasks import serve, served
from hottune.tasks.serve import Seen, profile_for, require_sense, watch_line
from hottune.tasks.served import Found

CARD = Gpu(index=1, name="Card A", vram_total_mib=24000, vram_free_mib=20000)
OTHER = Gpu(index=0, name="Card B", vram_total_mib=24000, vram_free_mib=23000)


def engine(backend: Backend = Backend.CUDA, key: str = "k") -> EngineBuild:
    return EngineBuild(
        llama_server=Path("/e/llama-server"),
        device_library=Path("/e/libggml-hot.so"),
        backend=backend,
        llama_build="b11434",
        source="test",
        api_version=2,
        compiler="g++ 12",
        options=(),
        key=key,
    )


def machine(*gpus: Gpu) -> Machine:
    cpu = Cpu(name="cpu", physical_cores=4, logical_cores=8, features=())
    return Machine(gpus=gpus, cpu=cpu, ram_total_mib=64000, ram_available_mib=60000, system="Linux 6")


def found(tmp_path: Path, **changes: Any) -> Found:
    facts: dict[str, Any] = {
        "study": "s",
        "arm": "hot",
        "placement": Placement(n_cpu_moe=3, threads=2, hot_k=8),
        "model": resolve_model("demo", cache_dir=tmp_path),
        "engine": engine(),
        "usable_mib": 12000.0,
        "gpu": CARD,
    }
    return Found(**facts | changes)


def test_the_demo_is_found_wherever_hottune_lies_now(tmp_path: Path) -> None:
    one = found(tmp_path)
    moved = one.model.model_copy(update={"path": Path("/gone/demo.gguf")})
    assert served.model_here(replace(one, model=moved), None, cache_dir=tmp_path).path == one.model.path


def test_a_model_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    gone = found(tmp_path).model.model_copy(update={"argument": "x.gguf", "path": tmp_path / "x.gguf"})
    with pytest.raises(ModelNotFoundError, match=r"x\.gguf.*--model FILE"):
        served.model_here(found(tmp_path, model=gone), None, cache_dir=tmp_path)


def test_a_file_of_another_place_serves_only_if_it_is_the_measured_model(tmp_path: Path) -> None:
    one = found(tmp_path)
    assert served.model_here(one, one.model.path, cache_dir=tmp_path).fingerprint == one.model.fingerprint
    other = replace(one, model=one.model.model_copy(update={"fingerprint": "of another"}))
    with pytest.raises(BadSettingError, match="not the model that the study measured"):
        served.model_here(other, one.model.path, cache_dir=tmp_path)


def test_the_engine_is_one_of_ours_with_the_studys_back_end_never_the_files_program(tmp_path: Path) -> None:
    one = found(tmp_path)
    assert served.engine_options(one, BuildOptions()) == BuildOptions(backend=Backend.CUDA)
    asked = BuildOptions(backend=Backend.VULKAN)
    assert served.engine_options(one, asked) == asked


def test_the_engine_is_the_one_that_the_study_itself_was_run_with_while_it_is_there(tmp_path: Path) -> None:
    own = BuildOptions(llama_bin=tmp_path, headers=tmp_path)
    one = replace(found(tmp_path), asked=own)
    assert served.engine_options(one, BuildOptions()) == own
    asked = BuildOptions(git="https://example.org/llama.cpp")
    assert served.engine_options(one, asked) == asked.model_copy(update={"backend": Backend.CUDA})
    gone = replace(one, asked=BuildOptions(llama_bin=tmp_path / "gone", headers=tmp_path))
    assert served.engine_options(gone, BuildOptions()) == BuildOptions(backend=Backend.CUDA)


def test_the_gpu_is_the_asked_for_one_then_the_studys_then_the_one_with_most_room(tmp_path: Path) -> None:
    one, both = found(tmp_path), machine(OTHER, CARD)
    assert served.gpu_here(one, engine(), both, None) == CARD
    assert served.gpu_here(one, engine(), both, 0) == OTHER
    assert served.gpu_here(replace(one, gpu=None), engine(), both, None) == OTHER
    with pytest.raises(BadSettingError, match="no GPU 7"):
        served.gpu_here(one, engine(), both, 7)


def test_without_a_gpu_a_placement_of_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError):
        served.gpu_here(found(tmp_path), engine(), machine(), None)
    with pytest.raises(BackendUnavailableError, match="without GPU support"):
        served.gpu_here(found(tmp_path), engine(Backend.CPU), machine(CARD), None)


def test_a_study_of_the_virtual_gpu_is_served_on_one_as_large(tmp_path: Path) -> None:
    one = found(tmp_path, engine=engine(Backend.CPU), usable_mib=14.0)
    gpu = served.gpu_here(one, engine(Backend.CPU), machine(), None)
    assert gpu.virtual
    assert gpu.vram_total_mib == 14


def test_what_makes_the_numbers_doubtful_is_said(tmp_path: Path) -> None:
    one = found(tmp_path)
    assert served.doubts(one, engine(), CARD) == []
    little = CARD.model_copy(update={"vram_free_mib": 9000.0})
    assert "9000 MiB" in served.doubts(one, engine(), little)[0]
    assert "Card A, served on Card B" in served.doubts(one, engine(), OTHER)[0]
    assert "other options or compiler" in served.doubts(one, engine(key="new"), CARD)[0]
    assert "not confirmed" in served.doubts(replace(one, confirmed=False), engine(), CARD)[0]


def test_each_model_has_its_own_profile_and_none_without_a_cache(tmp_path: Path) -> None:
    one = found(tmp_path)
    other = one.model.model_copy(update={"fingerprint": "f" * 64})
    first, second = (profile_for(model, one.placement, tmp_path) for model in (one.model, other))
    assert first is not None
    assert first != second
    assert first.parent.is_dir()
    assert profile_for(one.model, one.placement.model_copy(update={"hot_k": 0}), tmp_path) is None


@pytest.mark.parametrize("word", ["--port", "--host=0.0.0.0", "-m"])
def test_arguments_that_hottune_must_know_of_are_refused_after_the_dashes(word: str) -> None:
    with pytest.raises(BadSettingError, match="before the --"):
        require_sense(("--jinja", word))


def test_the_watch_line_is_of_the_time_since_the_last_one() -> None:
    line = watch_line(Seen(100, 700, 100), Seen(300, 1600, 200), 10.0)
    assert line == "200 tokens in 10 s (20.0 tok/s), hit rate 90%"


@pytest.mark.parametrize("now", [Seen(100, 700, 100), Seen(0, 0, 0)])
def test_there_is_no_watch_line_when_nothing_went_on_or_the_device_was_silent(now: Seen) -> None:
    assert watch_line(Seen(100, 700, 100), now, 10.0) == ""


def test_without_a_port_of_the_user_the_usual_one_is_taken_and_if_it_is_taken_a_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = found(tmp_path)
    job = serve.Job(
        engine=engine(),
        model=one.model,
        placement=one.placement,
        gpu=CARD,
        ceiling_mib=12000,
        serving=Serving(),
        port=None,
        log_path=tmp_path / "log",
        profile_path=None,
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        monkeypatch.setattr(serve, "PORT", number)
        assert serve._port(job) is None
        assert serve._port(replace(job, port=number)) == number, "what was asked for is not replaced"
    assert serve._port(job) == number
