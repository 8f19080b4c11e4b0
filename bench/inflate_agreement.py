"""How well an inflated model routes like the small one: the same prompt through both, in real servers.

    python bench/inflate_agreement.py [--like-embd 2048] [QUANT ...]

For each type the demo is inflated to its own six layers in a wide shape; both route the same prompt of a
shipped document (no generated token is compared, so a differing text does not matter). Printed is the
share of chosen experts that both chose, over all tokens and layers, and that of the worst layer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hottune.models.target import Recipe
from hottune.routing.trace import Trace, read_trace

_TOKENS = 1000  # of the prompt that are compared
_EXPERTS, _USED = 128, 8


def main() -> None:
    """Print a table row for each type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("quants", nargs="*", default=[recipe.value for recipe in Recipe])
    parser.add_argument("--like-embd", type=int, default=2048)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        small = _routing("demo", Path(folder))
        again = _routing("demo", Path(folder))
        print("| type | same experts | worst layer |\n| --- | ---: | ---: |")
        print(_row("demo itself, again", small, again), flush=True)
        for quant in options.quants:
            model = Path(folder) / "wide.gguf"
            shape = ["--layers", "6", "--embd", str(options.like_embd), "--ff", "256"]
            _hottune("models", "inflate", "demo", str(model), *shape, "--quant", quant)
            print(_row(quant, small, _routing(str(model), Path(folder))), flush=True)
            model.unlink()


def _row(name: str, small: np.ndarray, wide: np.ndarray) -> str:
    both = (small & wide).sum(axis=2).mean(axis=0) / _USED
    return f"| {name} | {100 * both.mean():.2f} % | {100 * both.min():.2f} % |"


def _routing(model: str, folder: Path) -> np.ndarray:
    """Return whether an expert was chosen: [tokens, layers, experts]."""
    file = folder / "prompt.hottrace"
    file.unlink(missing_ok=True)
    asked = ["--workload", "document", "--scale", "0.5", "--prompts", "--out", str(file)]
    _hottune("trace", model, *asked)
    return _chosen(read_trace(file))


def _chosen(trace: Trace) -> np.ndarray:
    chosen = np.zeros((_TOKENS, 6, _EXPERTS), dtype=bool)
    kept = trace.choices.token < _TOKENS
    at = (trace.choices.token[kept], trace.choices.layer[kept], trace.choices.expert[kept])
    chosen[at] = True
    return chosen[:, :5]  # the last layer computes only the tokens whose results are asked for


def _hottune(*arguments: str) -> None:
    command = [sys.executable, "-c", "import sys; from hottune.cli.app import main; sys.exit(main())"]
    done = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"hottune {' '.join(arguments)}: {done.stderr[-2000:]}")
    json.loads(done.stdout)


if __name__ == "__main__":
    main()
