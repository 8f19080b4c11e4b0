"""A model seen by its header alone, wherever it lies: a file, `owner/repo[:quant]`, a URL, or `demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hottune.models.gguf_header import GgufHeader, read_header_file
from hottune.models.inflation import Inflation, inflation_of
from hottune.models.remote_headers import RemoteHeaders, is_url, url_headers
from hottune.models.resolve import hub_repo, model_parts, resolve_model
from hottune.models.shape import MoeShape
from hottune.models.shape_of import moe_shape
from hottune.models.synthesize import SYNTHETIC_KEY
from hottune.progress import Progress


@dataclass(frozen=True)
class Glance:
    """What the headers say.

    Attributes:
        name: short name of the model.
        size_bytes: all parts together.
        bytes_read: content that came over the network for it; None for a local file.
        headers: of all parts, in order.
    """

    name: str
    size_bytes: int
    bytes_read: int | None
    headers: tuple[GgufHeader, ...]
    shape: MoeShape

    @property
    def synthetic(self) -> bool:
        """Whether the weights are random or inflated."""
        return self.headers[0].metadata.get(SYNTHETIC_KEY) is True

    @property
    def inflated(self) -> Inflation | None:
        """How a small model was inflated to this, or None."""
        return inflation_of(self.headers[0])


def glance(argument: str, *, cache_dir: Path, progress: Progress | None = None) -> Glance:
    """Read the headers of the model that the argument names; weights are never read, nothing is downloaded.

    Args:
        argument: a .gguf file, a folder with one, `owner/repo[:quant]`, an http(s) address, or `demo`.
        cache_dir: hottune's cache folder, where the demo lies.
        progress: told what is read.

    Raises:
        HottuneError: what `resolve_model`, `remote_headers` and `url_headers` raise: errors 10 to 14.
    """
    if is_url(argument):
        return _remote(url_headers(argument))
    if (repo := hub_repo(argument)) is not None and argument != "demo":
        from hottune.models import huggingface  # its client takes long to import

        return _remote(huggingface.remote_headers(*repo))
    found = resolve_model(argument, cache_dir=cache_dir, progress=progress)
    headers = tuple(read_header_file(part) for part in model_parts(found.path))
    return Glance(found.name, found.size_bytes, None, headers, found.shape)


def _remote(found: RemoteHeaders) -> Glance:
    return Glance(found.name, found.size_bytes, found.bytes_read, found.headers, moe_shape(found.headers))
