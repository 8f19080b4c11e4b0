"""Profiles: how often each expert was used, as the device saves it (docs/engine.md)."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hottune.errors import BadProfileError

_GGUF_MAGIC = b"GGUF"
_MOST_BYTES = 16 << 20  # the device reads no larger one


class _Profile(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    version: int = Field(ge=1, le=1)
    layers: dict[str, list[float | int]]


def read_profile(path: Path) -> dict[str, list[float]]:
    """Return the uses of each expert, by the name of the layer's first expert weight.

    Raises:
        BadProfileError: not there, no profile, of another version, or with numbers that count nothing.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise BadProfileError(
            f"The profile {path} cannot be read: {error.strerror}.", next_step="Check the path."
        ) from error
    if data.startswith(_GGUF_MAGIC):
        raise BadProfileError(
            f"{path} is an imatrix; the replay only reads profiles that the device saved.",
            next_step="Start a server with the imatrix as its profile, and let it save one.",
        )
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError("it is too large")
        layers = _Profile.model_validate(json.loads(data)).layers
        if not all(0 <= uses <= 1e15 for layer in layers.values() for uses in layer):
            raise ValueError("it has uses below 0 or beyond 1e15")
    except (ValidationError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BadProfileError(
            f"{path} is no profile of expert uses: {reason}.",
            next_step="A server writes one at its end; see GGML_HOT_PROFILE in docs/engine.md.",
        ) from error
    return {name: [float(uses) for uses in layer] for name, layer in layers.items()}
