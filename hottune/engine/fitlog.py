"""What llama.cpp's `--fit` decided, read from the server's own log.

`llama-fit-params` is no substitute: it reserves logits for a whole batch where the server reserves one row,
so its answer differs from what the server really does.
"""

from __future__ import annotations

import re

from hottune.outcomes import FitPlacement

_FAILED = re.compile(r"failed to fit params|encountered an error while trying to fit")
_PROJECTED = re.compile(r"projected to use (\d+) MiB of device memory")
_DEVICE = re.compile(
    r"- (\S+) \(.*\)\s*:\s+(\d+) layers(?: \(\s*(\d+) overflowing\))?,\s+(\d+) MiB used,\s+-?\d+ MiB free"
)
_PARTIAL = re.compile(
    r"set ngl_per_device\[0\]\.\(n_layer, n_part(?:, overflow_type)?\)=\(\d+, \d+(?:, (\w+))?\)"
)
_RESULT = re.compile(r"no changes needed|cannot meet free memory target|successfully fit params")

#: What of a layer goes to host memory (a pattern of `-ot`), by fit's name for it ("" = the experts alone).
OVERFLOW = {
    "": r"ffn_(up|down|gate_up|gate)_(ch|)exps",
    "ATTN": r"ffn_(gate|up|gate_up|down).*",
    "UP": r"ffn_(gate|gate_up|down).*",
    "GATE": r"ffn_down.*",
}


def failure(lines: list[str]) -> str | None:
    """Return why fit gave up (it then changed nothing, and the server runs with defaults), or None."""
    return next((line for line in lines if _FAILED.search(line)), None)


def changed_nothing(lines: list[str]) -> bool:
    """Tell whether fit found that the placement it was given fits as it is."""
    return any("no changes needed" in line for line in lines)


def fit_placement(lines: list[str], offloaded: tuple[int, int] | None) -> FitPlacement | None:
    """Return what fit decided, or None when it did not run or gave up.

    Args:
        lines: fit's log lines, without the prefix.
        offloaded: layers on the GPU and layers altogether (the output layer counted), as then loaded.
    """
    if not lines or failure(lines) is not None:
        return None
    projected: float | None = None
    partial = ""
    devices: dict[str, tuple[int, int]] = {}
    read: dict[str, str] = {}  # what was read -> the line; later lines correct earlier ones
    for line in lines:
        if found := _PROJECTED.search(line):
            projected = float(found[1])
            read["projected"] = line
        elif found := _PARTIAL.search(line):
            partial = found[1] or ""
            read["partial"] = line
        elif found := _DEVICE.search(line):
            devices[found[1]] = (int(found[2]), int(found[3] or 0))
            projected = float(found[4])
            read[found[1]] = line
        elif _RESULT.search(line):
            read[line] = line
    on_gpu, total = offloaded or (None, None)
    overrides: list[str] = []
    if len(devices) == 1 and total is not None:
        ((n_layers, n_partial),) = devices.values()
        overrides = _overrides(total, n_layers, n_partial, partial)
    return FitPlacement(
        n_gpu_layers=on_gpu,
        layers_total=total,
        overrides=overrides,
        projected_mib=projected,
        lines=list(read.values()),
    )


def _overrides(total: int, n_layers: int, n_partial: int, partial: str) -> list[str]:
    """Return fit's tensor overrides in the words of `-ot`, for one GPU.

    fit puts the last `n_layers` of `total` on the GPU (the output layer is the very last); of these the last
    `n_partial` leave their experts in host memory, and the first of those a part that fit chose.
    """
    first = total - n_layers + (n_layers - n_partial)
    return [
        rf"blk\.{layer}\.{OVERFLOW.get(partial if layer == first else '', OVERFLOW[''])}=CPU"
        for layer in range(first, min(first + n_partial, total - 1))
    ]
