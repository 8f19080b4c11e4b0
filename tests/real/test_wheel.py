"""The wheel works by itself: outside a checkout it has the pin, the device's source, texts and recipes."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from hottune.cli.common import cache_dir
from hottune.engine.build import BuildOptions, find_engine, source_dir

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("hottune-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment that borrows the dependencies; return its bin folder."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    argv = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    own = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        check=True,
        capture_output=True,
        text=True,
    )
    # As a plain path, not as a site folder: the checkout's own editable install must not come with it.
    (Path(own.stdout.strip()) / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


def run(installed: Path, cwd: Path, *argv: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["HOTTUNE_CACHE"] = str(cwd / "cache")
    done = subprocess.run([installed / argv[0], *argv[1:]], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_carries_style_and_script_of_the_html_report(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hottune/report/html/page.css", "hottune/report/html/page.js"} <= names


def test_the_wheel_carries_everything_a_build_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "hottune/_vendor/llama.cpp/pin.toml" in names
    sources = {
        f"hottune/_vendor/llama.cpp/{path.relative_to(ROOT / 'vendor' / 'llama.cpp')}"
        for path in (ROOT / "vendor" / "llama.cpp" / "ggml-hot").rglob("*")
        if path.suffix in (".cpp", ".h", ".txt")
    }
    assert len(sources) > 10
    assert sources <= names


def test_the_wheel_carries_texts_recipes_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    texts = {
        f"hottune/workload/texts/{path.name}"
        for path in (ROOT / "hottune/workload/texts").iterdir()
        if path.is_file()
    }
    recipes = {f"hottune/_recipes/{path.name}" for path in (ROOT / "studies/recipes").glob("*.toml")}
    assert texts
    assert texts | recipes <= names
    assert "hottune/py.typed" in names


def test_the_wheel_carries_the_demo_as_it_is(wheel):
    with zipfile.ZipFile(wheel) as packed:
        found = packed.read("hottune/models/data/demo.gguf")
    assert found == (ROOT / "hottune/models/data/demo.gguf").read_bytes()


def test_the_wheel_carries_nothing_of_the_checkout_beside_the_package(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.startswith("hottune")} == set()


def test_the_installed_command_runs_outside_the_checkout(installed, tmp_path):
    assert run(installed, tmp_path, "hottune", "--version").startswith("hottune ")
    code = "import hottune; from hottune.engine.pin import load_pin, vendor_dir; print(hottune.__file__); "
    code += "print(vendor_dir()); print(load_pin().build)"
    package, vendor, build = run(installed, tmp_path, "python", "-c", code).split()
    assert Path(package).is_relative_to(installed.parent)
    assert Path(vendor) == Path(package).parent / "_vendor" / "llama.cpp"
    assert build.startswith("b")
    shown = json.loads(run(installed, tmp_path, "hottune", "models", "inspect", "demo", "--json"))
    assert Path(shown["path"]).is_relative_to(installed.parent)


def test_the_installed_package_compiles_the_device_from_its_own_source(installed, tmp_path):
    engine = find_engine(BuildOptions(), cache_dir=cache_dir())
    if engine is None:
        pytest.skip("there is no engine yet; make it with: hottune build")
    headers = source_dir(BuildOptions(), cache_dir=cache_dir())
    words = ["--llama-bin", str(engine.llama_server.parent), "--headers", str(headers), "--json"]
    made = json.loads(run(installed, tmp_path, "hottune", "build", *words))
    assert Path(made["device_library"]).is_relative_to(tmp_path)
    assert Path(made["device_library"]).is_file()
