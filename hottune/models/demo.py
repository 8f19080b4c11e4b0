"""`demo`: a small Mixture-of-Experts model, trained on real text, that comes with hottune."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hottune.errors import ModelCorruptError

DEMO = "demo"
DEMO_KEY = "hottune.demo"

_FILE = Path(__file__).parent / "data" / "demo.gguf"
_SHA256 = "be7d2029dfaa55f0c98c1239191abd421ed5f17e622eadd630813b2b15787f99"


def demo_path() -> Path:
    """Return the demo's file.

    Raises:
        ModelCorruptError: it is missing from the installation, or not as it was shipped.
    """
    if not _FILE.is_file() or hashlib.sha256(_FILE.read_bytes()).hexdigest() != _SHA256:
        raise ModelCorruptError(
            f"The demo model {_FILE.name} is missing or damaged.",
            "It comes with hottune, in the package.",
            "Install hottune again.",
        )
    return _FILE
