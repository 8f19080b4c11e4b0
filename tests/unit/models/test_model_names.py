"""Which files of a repository or folder make one model, and which of them is meant."""

from __future__ import annotations

import pytest

from hottune.models.names import GgufSet, choose, gguf_sets, part_name, split_part

REPOSITORY = [
    "README.md",
    "imatrix_unsloth.gguf",
    "mmproj-F16.gguf",
    "Model-30B-A3B-BF16-00001-of-00002.gguf",
    "Model-30B-A3B-BF16-00002-of-00002.gguf",
    "Model-30B-A3B-IQ4_XS.gguf",
    "Model-30B-A3B-Q4_K_M.gguf",
    "Model-30B-A3B-Q8_0.gguf",
    "Model-30B-A3B-UD-Q4_K_XL.gguf",
    "UD-Q2_K_XL/Model-30B-A3B-UD-Q2_K_XL-00001-of-00001.gguf",
]


def pick(names: list[str], wanted: str | None = None) -> GgufSet | None:
    return choose(gguf_sets(names), wanted)


def test_the_name_of_a_part_says_which_of_how_many() -> None:
    assert split_part("Model-00002-of-00012.gguf") == ("Model", 2, 12)
    assert part_name("Model", 2, 12) == "Model-00002-of-00012.gguf"
    assert split_part("Model-Q4_K_M.gguf") is None


def test_parts_are_one_model_and_projectors_none() -> None:
    names = {one.name: one.n_parts for one in gguf_sets(REPOSITORY)}
    assert names == {
        "Model-30B-A3B-BF16": 2,
        "Model-30B-A3B-IQ4_XS": 1,
        "Model-30B-A3B-Q4_K_M": 1,
        "Model-30B-A3B-Q8_0": 1,
        "Model-30B-A3B-UD-Q4_K_XL": 1,
        "Model-30B-A3B-UD-Q2_K_XL": 1,
    }


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-30B-A3B-Q4_K_M", "Q4_K_M"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-MXFP4_MOE", "MXFP4_MOE"),
        ("GLM-4.5-Air-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("model.IQ3_XXS", "IQ3_XXS"),
        ("mixtral-8x7b.q5_0", "Q5_0"),
        ("Q6_K/weights", "Q6_K"),
        ("Qwen3-30B-A3B", ""),
    ],
)
def test_the_quantization_is_read_from_the_name(name: str, quant: str) -> None:
    assert GgufSet(name, (f"{name}.gguf",), 1).quant == quant


@pytest.mark.parametrize(
    ("wanted", "stem"),
    [
        (None, "Model-30B-A3B-Q4_K_M"),
        ("q8_0", "Model-30B-A3B-Q8_0"),
        ("BF16", "Model-30B-A3B-BF16"),
        ("UD-Q4_K_XL", "Model-30B-A3B-UD-Q4_K_XL"),
        ("Q4_K_XL", "Model-30B-A3B-UD-Q4_K_XL"),
        ("UD-Q2_K_XL", "UD-Q2_K_XL/Model-30B-A3B-UD-Q2_K_XL"),
    ],
)
def test_the_wanted_quantization_is_found(wanted: str | None, stem: str) -> None:
    found = pick(REPOSITORY, wanted)
    assert found is not None
    assert found.stem == stem
    assert found.complete


def test_a_tag_is_never_matched_by_half() -> None:
    assert pick(REPOSITORY, "Q4_K") is None
    assert pick(REPOSITORY, "Q3_K_M") is None


def test_without_a_wish_the_documented_order_decides_and_any_model_is_better_than_none() -> None:
    assert pick(["a-Q8_0.gguf", "a-Q5_K_M.gguf"]).quant == "Q5_K_M"  # type: ignore[union-attr]
    assert pick(["a-IQ1_S.gguf"]).quant == "IQ1_S"  # type: ignore[union-attr]
    assert pick(["plain.gguf"]).stem == "plain"  # type: ignore[union-attr]
    assert pick(["README.md"]) is None


def test_of_two_models_with_one_tag_the_shorter_name_is_the_plain_one() -> None:
    found = pick(["Model-abliterated-Q4_K_M.gguf", "Model-Q4_K_M.gguf"])
    assert found is not None
    assert found.stem == "Model-Q4_K_M"


def test_missing_parts_are_noticed() -> None:
    (found,) = gguf_sets(["Model-00001-of-00003.gguf", "Model-00003-of-00003.gguf"])
    assert not found.complete
