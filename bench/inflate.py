"""How long inflating takes and how much memory it needs, at Qwen3-30B-A3B's shape.

    python bench/inflate.py [BASE] [--layers 48] [--folder DIR]

By default 8 of its 48 layers (3.3 GB); the whole takes 18 GB of disk. The file is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = "import sys; sys.argv[0] = 'hottune'; from hottune.cli.app import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("base", nargs="?", default="demo")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the system's by default")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        out = Path(folder) / "large.gguf"
        # A process of its own, so that the peak of memory is that of inflating alone.
        argv = [sys.executable, "-c", COMMAND, "models", "inflate", chosen.base, str(out), "--json"]
        done = subprocess.run(
            [*argv, "--layers", str(chosen.layers), "--vocab", "151936"], stdout=subprocess.PIPE, check=True
        )
    found = json.loads(done.stdout)
    size = found["model"]["size_bytes"]
    print(
        f"{chosen.layers} layers, {size / 1e9:.2f} GB: {found['seconds']:.1f} s, "
        f"{size / 1e6 / found['seconds']:.0f} MB/s, peak RSS {found['peak_rss_mib']:.0f} MiB"
    )


if __name__ == "__main__":
    main()
