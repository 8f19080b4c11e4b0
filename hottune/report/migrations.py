"""Older result files as today's: a chain of steps on plain JSON, each from one schema version to the next.

A step says what its version changed, and never changes again: a file of any version goes through all steps
from its own on. What a step cannot know stays at the field's default; no number is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]


def _from_1(data: Json) -> Json:
    """Version 2 adds fields with defaults alone, as `Measurement.timeline`: nothing there moves."""
    return data


#: Version that a step starts from -> the step.
STEPS: Mapping[int, Callable[[Json], Json]] = {1: _from_1}


def migrated(data: Json, to: int) -> Json:
    """Return a result, as plain JSON, in the schema of version `to`.

    Args:
        data: with its `schema_version`, from 1 to `to`; it is not changed.
        to: version wanted, at most one above the last step's.
    """
    for version in range(data["schema_version"], to):
        data = STEPS[version](data) | {"schema_version": version + 1}
    return data
