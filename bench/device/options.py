"""What a benchmark was asked for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hottune.engine.build import BuildOptions
from hottune.engine.facts import Backend
from hottune.placement import KvType, LoadMode, Policy, SpecType
from hottune.report.schema import ArmName
from hottune.workload.workloads import names

_ENGINE = ("llama_bin", "headers", "source", "backend")
ARMS: tuple[ArmName, ...] = ("all-cpu", "layers", "fit", "probe", "hot", "hot+layers")
#: Arms that go through every ubatch; the others take the largest one, for decoding does not depend on it.
EVERY_UBATCH: tuple[ArmName, ...] = ("all-cpu", "layers", "hot")


@dataclass(frozen=True)
class Options:
    """The command line, read."""

    model: str
    ceilings: tuple[float, ...]  #: % of the expert bytes, ascending
    ubatches: tuple[int, ...]  #: tokens, ascending
    arms: tuple[ArmName, ...]
    every_ubatch: tuple[ArmName, ...]
    threads: tuple[int, ...]  #: the first is used for everything; none = by the machine's cores
    workload: str
    scale: float
    requests: int  #: measured in each server, after one that warms up
    prompt_tokens: int | None
    output_tokens: int | None
    rounds: int
    kv: KvType
    context: int | None
    spec: SpecType
    load_mode: LoadMode
    policy: Policy
    stream: int
    stream_layers: int
    overhead_mib: float | None
    split: float
    reuse: bool
    probe: Path | None
    budget_s: float | None
    out: Path
    add: Path | None
    engine: BuildOptions
    command: str


def parse(arguments: list[str]) -> Options:
    """Read a command line; exits with a message when it makes no sense."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    fields = vars(chosen)
    engine = BuildOptions(**{name: fields.pop(name) for name in _ENGINE})
    fields["every_ubatch"] = ARMS if fields.pop("all_ubatches") else EVERY_UBATCH
    for name in ("ceilings", "ubatches"):
        fields[name] = tuple(sorted(set(fields[name])))
    command = " ".join(["python -m bench.device", *arguments])
    options = Options(**fields, engine=engine, command=command)
    if problem := _problem(options):
        parser.error(problem)
    return options


def _problem(options: Options) -> str:
    if not options.ceilings or not all(0 < percent <= 100 for percent in options.ceilings):
        return "--ceilings are percentages of the expert bytes, above 0 and at most 100"
    if not options.ubatches or min(options.ubatches) < 1:
        return "--ubatches are numbers of tokens"
    if unknown := set(options.arms) - set(ARMS):
        return f"--arms: there is no {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}"
    if options.probe is not None and not options.probe.is_file():
        return f"--probe: there is no file {options.probe}"
    if not 0 < options.split < 1:
        return "--split is the share of whole layers, between 0 and 1"
    if min(options.rounds, options.requests) < 1:
        return "--rounds and --requests are 1 at least"
    if options.add is not None and not options.add.is_file():
        return f"--add: there is no file {options.add}"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.device",
        description="Measure hot-expert cache, static placements and a yardstick under equal VRAM ceilings.",
    )
    parser.add_argument("model", help="a path, owner/repo[:quant], demo, or a shape of models.py")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--ceilings", type=_floats, default="10,17,25,35,50", help="%% of expert bytes in VRAM")
    what.add_argument("--ubatches", type=_ints, default="512,2048,3072")
    what.add_argument("--arms", type=_words, default=",".join(ARMS), help="all-cpu is always among them")
    what.add_argument("--all-ubatches", action="store_true", help="fit, probe and hot+layers, too, in each")
    what.add_argument("--threads", type=_ints, default="", help="the first for all; others for a small table")
    what.add_argument("--probe", type=Path, metavar="FILE.cpp", help="the yardstick, a plug-in in one file")
    what.add_argument("--rounds", type=int, default=1, help="fresh servers of each cell, in A B B A order")
    work = parser.add_argument_group("what the servers do")
    work.add_argument("--workload", choices=names(), default="document")
    work.add_argument("--scale", type=float, default=1.0, help="shrinks the workload's lengths")
    work.add_argument("--requests", type=int, default=1, help="measured in each server, after a warm-up")
    work.add_argument("--prompt-tokens", type=int, help="long prompts, of the workloads' texts")
    work.add_argument("--output-tokens", type=int, help="default: the workload's")
    work.add_argument("--context", type=int, help="default: what the workload needs")
    work.add_argument("--kv", type=KvType, choices=list(KvType), default=KvType.F16)
    work.add_argument("--spec", choices=get_args(SpecType), default="none", help="drafts without a model")
    work.add_argument("--load-mode", type=LoadMode, choices=list(LoadMode), default=LoadMode.NONE)
    cache = parser.add_argument_group("the cache")
    cache.add_argument("--policy", choices=get_args(Policy), default="lfru")
    cache.add_argument("--stream", type=int, default=32, help="batches from so many tokens on; 0 = none")
    cache.add_argument("--stream-layers", type=int, default=1, help="layers that streaming holds in VRAM")
    cache.add_argument("--overhead-mib", type=float, help="VRAM beside slots and stream, until measured")
    cache.add_argument("--split", type=float, default=0.5, help="hot+layers: share of whole layers")
    cache.add_argument("--reuse", action="store_true", help="one server for all hot cells of a ubatch")
    sitting = parser.add_argument_group("this sitting")
    sitting.add_argument("--budget-s", type=float, help="start nothing that may end later than that")
    sitting.add_argument("--out", type=Path, default=Path("reports/device.json"), metavar="FILE.json")
    sitting.add_argument("--add", type=Path, metavar="FILE.json", help="an earlier result to go on with")
    engine = parser.add_argument_group("llama.cpp")
    engine.add_argument("--backend", type=Backend, choices=list(Backend))
    engine.add_argument("--llama-bin", type=Path)
    engine.add_argument("--headers", type=Path)
    engine.add_argument("--source", type=Path)
    return parser


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
