"""The shapes that the benchmark knows: the demo, inflated.

`python -m bench.device.models` lists the commands that write them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

#: By name: options of `hottune models inflate demo FILE`.
SHAPES: dict[str, str] = {
    # Qwen3-30B-A3B's, 17 GB
    "30b-a3b": "--layers 48 --experts 128 --used 8 --embd 2048 --ff 768 --heads 32 --kv-heads 4"
    " --vocab 151936 --quant Q4_K_M",
    # a 122B-A10B's at half its depth, 36 GB: larger experts, twice as many
    "122b-a10b-half": "--layers 24 --experts 256 --used 8 --embd 3072 --ff 1024 --heads 32 --kv-heads 4"
    " --vocab 151936 --quant Q4_K_M",
    # many small experts, ten of them for a token, 24 GB
    "512x10": "--layers 24 --experts 512 --used 10 --embd 2048 --ff 512 --heads 32 --kv-heads 4"
    " --vocab 151936 --quant Q4_K_M",
}


def command(shape: str, out: Path) -> list[str]:
    """Return the arguments of `hottune` that write a shape's model to `out`."""
    return ["models", "inflate", "demo", str(out), *shlex.split(SHAPES[shape])]


def provide(shape: str, cache_dir: Path) -> Path:
    """Return a shape's model in the cache folder, written if it is not there yet (a minute or two).

    Raises:
        subprocess.CalledProcessError: it could not be written.
    """
    out = cache_dir / "bench" / f"demo-as-{shape}.gguf"
    if not out.is_file():
        unfinished = out.parent / "unfinished" / out.name
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "hottune.cli.app", *command(shape, unfinished)]
        subprocess.run(argv, check=True, stdout=sys.stderr)  # ours is for the table
        for written in (unfinished.with_name(f"{out.stem}.card.md"), unfinished):  # the model last
            written.replace(out.with_name(written.name))
    return out


if __name__ == "__main__":
    for name in SHAPES:
        print(shlex.join(["hottune", *command(name, Path(f"{name}.gguf"))]))
