"""What is inflated for `plan --try`, what becomes of the file, what is tried after running out of VRAM."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_moe import SmallSpec, byte_words, write_small_moe

from hottune.errors import BadSettingError
from hottune.models.glance import Glance, glance
from hottune.models.resolve import load_model
from hottune.models.shape import ModelFile
from hottune.models.synthesize import SyntheticSpec, synthesize
from hottune.placement import Placement
from hottune.progress import NoProgress
from hottune.tasks.try_out import _smaller, inflated_to, wanted_target

SPEC = SyntheticSpec(n_layers=4, n_experts=32, n_used=4, n_embd=512, n_ff_expert=256, with_tokenizer=False)


@pytest.fixture
def seen(tmp_path: Path) -> Glance:
    synthesize(tmp_path / "like.gguf", SPEC)
    return glance(str(tmp_path / "like.gguf"), cache_dir=tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> ModelFile:
    path = tmp_path / "base.gguf"
    spec = SmallSpec(
        n_layers=2, n_embd=256, head_dim=128, n_experts=32, n_used=4, own_head=True, words=byte_words(700)
    )
    write_small_moe(path, spec)
    return load_model(path, "base.gguf")


def test_the_file_has_the_models_shape_and_is_gone_afterwards(
    seen: Glance, base: ModelFile, tmp_path: Path
) -> None:
    folder = tmp_path / "tried"
    with inflated_to(wanted_target(seen, None), base, folder, keep=False, progress=NoProgress()) as model:
        assert model.shape.layer_expert_bytes == seen.shape.layer_expert_bytes
        assert model.inflated is not None
        assert model.path.parent == folder
    assert list(folder.iterdir()) == []


def test_after_an_error_it_is_gone_too(seen: Glance, base: ModelFile, tmp_path: Path) -> None:
    target = wanted_target(seen, 2)
    with (
        pytest.raises(KeyboardInterrupt),
        inflated_to(target, base, tmp_path / "tried", keep=False, progress=NoProgress()) as model,
    ):
        assert model.shape.n_layers == 2
        raise KeyboardInterrupt
    assert list((tmp_path / "tried").iterdir()) == []


def test_a_kept_file_serves_again_and_stays(seen: Glance, base: ModelFile, tmp_path: Path) -> None:
    target = wanted_target(seen, 2)
    with inflated_to(target, base, tmp_path, keep=True, progress=NoProgress()) as model:
        written = model.path.stat().st_mtime_ns
    with inflated_to(target, base, tmp_path, keep=False, progress=NoProgress()) as again:
        assert (again.path, again.path.stat().st_mtime_ns) == (model.path, written)
    assert model.path.is_file()


def test_more_layers_than_the_model_has_are_refused(seen: Glance) -> None:
    with pytest.raises(BadSettingError, match="--layers 5"):
        wanted_target(seen, 5)


def test_what_does_not_fit_is_made_smaller_until_nothing_is_left(seen: Glance) -> None:
    hot = Placement(n_cpu_moe=4, hot_k=16, threads=1)
    sizes = []
    while (smaller := _smaller(hot, seen.shape)) is not None:
        sizes.append(smaller.hot_k)
        hot = smaller
    assert sizes[0] == 14
    assert sizes[-1] == 1
    assert sizes == sorted(set(sizes), reverse=True)
    layered = _smaller(Placement(n_cpu_moe=2, threads=1), seen.shape)
    assert layered is not None
    assert layered.n_cpu_moe == 3
    assert _smaller(layered, seen.shape) is None  # that would be all-CPU, which is another arm
