"""A placement as a section of an INI file for llama-server's `--models-preset`.

Checked against b11434 (`common/preset.cpp`): a key is a flag's long name without dashes, a flag without a
value is `true`, and a value ends at the line's end or at the first `;` or `#`: nothing quotes it.
llama-server, as a router, chooses address and port itself and hands its own environment on to every model's
server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hottune.engine.argv import shell_command
from hottune.errors import BadSettingError

#: Long names of the short flags that `argv` writes.
_LONG = {
    "-m": "model",
    "-c": "ctx-size",
    "-np": "parallel",
    "-b": "batch-size",
    "-ub": "ubatch-size",
    "-t": "threads",
    "-tb": "threads-batch",
    "-ctk": "cache-type-k",
    "-ctv": "cache-type-v",
    "-fa": "flash-attn",
    "-fit": "fit",
    "-ngl": "n-gpu-layers",
    "-ncmoe": "n-cpu-moe",
}
#: What the router decides itself, or what is no setting of a model.
_NOT_OF_A_MODEL = frozenset({"host", "port", "lv"})
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def preset(name: str, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the INI section `[name]`, after comments that say which environment the router needs.

    Args:
        name: of the section, the model's name in requests.
        argv: llama-server and its arguments, as `argv.server_argv` makes them.
        env: the variables that belong to them.

    Raises:
        BadSettingError: a value cannot be written in this format.
    """
    lines = [f"; {line}" for line in _how_to_start(argv[0], env)]
    lines.append(f"[{re.sub(r'[^0-9A-Za-z_.:/+-]+', '-', name)}]")
    for key, value in _settings(argv[1:]):
        if re.search(r"[;#\r\n]", value):
            raise BadSettingError(
                f"{key} = {value} cannot stand in a preset.",
                "llama-server takes what follows ; or # for a comment, and nothing quotes it.",
                "Rename the file, or use --print command.",
            )
        lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


def _how_to_start(server: str, env: Mapping[str, str]) -> list[str]:
    start = shell_command([server, "--models-preset", "THIS_FILE"], env)
    lines = ["Start the router with this file, and with this environment where there is one:", start]
    if "GGML_BACKEND_PATH" in env:
        lines.append(
            "The router hands its environment to every model: GGML_HOT_* hold for all that it loads."
        )
    return lines


def _settings(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return keys and values of the arguments; of those given twice, the last one counts."""
    found: dict[str, str] = {}
    key = ""
    for word in arguments:
        if word.startswith("-") and not (key and _NUMBER.fullmatch(word)):
            key = _LONG.get(word, word.lstrip("-"))
            found[key] = "true"
        elif key:
            found[key], key = word, ""
    return [(key, value) for key, value in found.items() if key not in _NOT_OF_A_MODEL]
