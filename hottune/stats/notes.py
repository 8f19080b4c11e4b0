"""The closed list of warnings: what makes a number weaker, and what to do about it."""

from __future__ import annotations

from enum import StrEnum
from string import Formatter

from hottune.stats.outliers import first_run_slower

__all__ = ["NoteCode", "facts_of", "first_run_slower", "note"]


class NoteCode(StrEnum):
    """What a report can warn of."""

    FIRST_RUN_SLOWER = "first-run-slower"
    OUTLIERS = "outliers"
    FEW_REPLICATES = "few-replicates"
    VIRTUAL_GPU = "virtual-gpu"
    SYNTHETIC_MODEL = "synthetic-model"
    INFLATED_MODEL = "inflated-model"
    VRAM_BY_DEVICE_CHANGE = "vram-by-device-change"
    UNPINNED_WEIGHTS = "unpinned-weights"
    OTHER_LOAD = "other-load"
    SWAP_IN_USE = "swap-in-use"
    BATTERY = "battery"
    THROTTLED = "throttled"
    NOT_SETTLED = "not-settled"
    VRAM_DRIFT = "vram-drift"
    SWAP_GREW = "swap-grew"
    CPU_GOVERNOR = "cpu-governor"
    PCIE_LINK = "pcie-link"
    BALLAST = "ballast"
    LIMIT_BROKEN = "limit-broken"
    REDACTED = "redacted"
    UNFINISHED = "unfinished"


#: Text of each note: what is the matter, then what to do. Names in braces are the facts it needs.
_TEXTS: dict[NoteCode, str] = {
    NoteCode.FIRST_RUN_SLOWER: (
        "The first server of arm '{arm}' was {percent} % slower than its others: something was still cold, "
        "most likely the model file. Run again while the file is in memory."
    ),
    NoteCode.OUTLIERS: (
        "{count} of {total} replicates of arm '{arm}' lie far from the rest. Something else ran at the same "
        "time; close it and run again. The replicates are kept and count."
    ),
    NoteCode.FEW_REPLICATES: (
        "Few replicates of each arm ({n}): 1 gives no interval, 2 a very wide one, about 5 a useful one. "
        "Run again without --quick, or with more replicates."
    ),
    NoteCode.VIRTUAL_GPU: (
        "There is no GPU here: a virtual one computed on the CPU. The numbers show that the tool works, not "
        "what it gains. Run on a machine with a GPU before you conclude anything."
    ),
    NoteCode.SYNTHETIC_MODEL: (
        "The model '{model}' is synthetic: its speed is real, its routing and its text are not. Measure the "
        "model that you mean to use."
    ),
    NoteCode.INFLATED_MODEL: (
        "The model '{model}' is not a released one. {how} Measure the released model before you rely on hit "
        "rates."
    ),
    NoteCode.VRAM_BY_DEVICE_CHANGE: (
        "The driver does not show VRAM by process here (a container, or WSL), so the change of the whole "
        "device stands in. Keep other programs off {gpu} while hottune measures."
    ),
    NoteCode.UNPINNED_WEIGHTS: (
        "The weights in RAM are not pinned in arm '{arm}', which can make prefill several times slower. Use "
        "load mode 'none' and free enough RAM to hold the model."
    ),
    NoteCode.OTHER_LOAD: (
        "Other programs used {percent} % of the {device} {when}. Close them and run again."
    ),
    NoteCode.SWAP_IN_USE: (
        "{used} of swap are in use, so weights may be read from disk in the middle of an answer. Free RAM, "
        "or choose a smaller model or quantization."
    ),
    NoteCode.BATTERY: (
        "The machine runs on battery, which lowers clocks. Connect it to mains power and run again."
    ),
    NoteCode.THROTTLED: (
        "{device} lowered its clocks while hottune measured ({reason}). Improve the cooling or set a lower "
        "power limit on purpose, then run again."
    ),
    NoteCode.NOT_SETTLED: (
        "Before {count} of {total} servers {device} was still hotter or busier than before the first one, "
        "after {limit_s} s of waiting. Close what else uses it, improve the cooling, and run again."
    ),
    NoteCode.VRAM_DRIFT: (
        "Other programs' share of the memory of {device} changed by up to {amount} while hottune measured, "
        "so servers did not all find the same room. Keep other programs off the card and run again."
    ),
    NoteCode.SWAP_GREW: (
        "{amount} more went to swap while a server was measured: the memory was too small. Free RAM, or "
        "choose a smaller model or quantization."
    ),
    NoteCode.CPU_GOVERNOR: (
        "The CPU frequency governor is '{governor}', which may start slowly out of idle. Set 'performance' "
        "(cpupower frequency-set -g performance, as root) and run again."
    ),
    NoteCode.PCIE_LINK: (
        "The PCIe link of {device} ran at {link}, and {best} is its best: prompts and uploads go through it. "
        "Look for a riser, a shared slot or a power-saving setting (ASPM) that holds it down."
    ),
    NoteCode.BALLAST: (
        "{held} of {gpu} were held back, so that only the ceiling was free: that copies a small card's "
        "capacity, not its bandwidth. Compare arms with each other, not with that card."
    ),
    NoteCode.LIMIT_BROKEN: (
        "Arm '{arm}' breaks a limit of this study: {what}. {effect}; loosen the limit if it asks too much."
    ),
    NoteCode.UNFINISHED: (
        "This study is not finished: {done}. Nothing is recommended before every arm was measured again; go "
        "on with it (hottune studies resume {study})."
    ),
    NoteCode.REDACTED: (
        "Names, addresses and folders were removed before this was shared. In commands, a bare file name "
        "stands for a path: put your own folder before it."
    ),
}


def facts_of(code: NoteCode) -> frozenset[str]:
    """Return the names of the facts that `note` needs for `code`."""
    return frozenset(name for _, name, _, _ in Formatter().parse(_TEXTS[code]) if name)


def note(code: NoteCode, **facts: object) -> tuple[str, str]:
    """Return the code and the text of a warning, the facts filled in.

    Raises:
        ValueError: a fact is missing or is not one that this text uses (see `facts_of`).
    """
    if facts.keys() != facts_of(code):
        raise ValueError(f"'{code}' needs {sorted(facts_of(code))}, got {sorted(facts)}")
    return code.value, _TEXTS[code].format(**facts)
