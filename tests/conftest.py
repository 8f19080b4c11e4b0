"""What all tests share. Real tests need an engine build; where they must run, a missing one is a failure."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# No property test times its examples: a busy machine may pause any of them.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

#: Set in CI: then a real test that is skipped for want of an engine fails instead.
ENGINE_REQUIRED = os.environ.get("CI") == "true" or os.environ.get("HOTTUNE_REQUIRE_ENGINE") == "1"
NO_ENGINE = "hottune build"

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that: tests that press
# Ctrl-C would find it without effect.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if (
        ENGINE_REQUIRED
        and report.skipped
        and item.get_closest_marker("real")
        and NO_ENGINE in str(report.longrepr)
    ):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but the engine is required here: {report.longrepr}"
    return report
