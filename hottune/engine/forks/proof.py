"""Proof that a fork did as asked, from its log: by the patterns of its engine file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hottune.engine import loadlog
from hottune.engine.engaged import check_loaded
from hottune.engine.forks.file import EngineFile
from hottune.engine.forks.words import expand_pattern
from hottune.engine.loadlog import LoadLog
from hottune.machine.facts import Gpu
from hottune.outcomes import NotEngaged
from hottune.placement import Placement


def fork_log(file: EngineFile, text: str) -> LoadLog:
    """Read a fork's log: as llama.cpp's, and by the patterns of its engine file where it differs."""
    log = loadlog.parse(text)
    if file.log.device:
        for found in re.finditer(file.log.device, text, re.MULTILINE):
            log.devices.setdefault(found["name"], found.groupdict().get("about") or "")
    if file.log.weights:
        log.model_mib.clear()
        for found in re.finditer(file.log.weights, text, re.MULTILINE):
            log.model_mib[found["name"]] = log.model_mib.get(found["name"], 0.0) + float(found["mib"])
    return log


def check_fork_loaded(
    file: EngineFile, text: str, placement: Placement, gpu: Gpu | None, values: Mapping[str, str]
) -> NotEngaged | None:
    """Compare what was asked for with the log; None when every proof is there and the right GPU is in use."""
    plain = placement.model_copy(update={"hot_k": 0, "fit": False, "spec_type": "none"})
    refused = check_loaded(fork_log(file, text), plain, gpu)
    if refused is not None:
        return refused
    for line in file.proof.lines:
        pattern = expand_pattern(line, values)
        if re.search(pattern, text, re.MULTILINE) is None:
            return NotEngaged(detail=f"nothing in the log of {file.name} matches its proof '{pattern}'")
    return None
