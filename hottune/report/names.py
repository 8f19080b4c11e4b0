"""Names of a report's files."""

from __future__ import annotations

import re


def file_stem(study: str) -> str:
    """Return a study's name as a safe file name: nothing that leaves the folder or hides the file."""
    return re.sub(r"[^\w.+-]+", "-", study).strip("-.") or "study"
