"""Gather the training text: fetch the packages of corpus.toml, take their text, leave out what repeats.

    python corpus.py OUT_FOLDER

writes `corpus.jsonl.xz` (one document a line: source, kind, held_out, text) and `corpus.md` (what was taken
of which package, with its licence). The packages come by `apt-get download`, from whatever
index the machine is set up with. Needs the standard library only.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import html.parser
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HELD_OUT = 50  # one document in so many is kept from training
_SHORTEST = 200  # characters of a document
_LONGEST = 200_000  # characters; longer ones are cut into several
_SEEN_FROM = 60  # a paragraph of so many characters is taken once in the whole corpus
_SKIPPED_TAGS = {"script", "style", "nav", "header", "footer", "head", "svg", "object"}
_BREAKING_TAGS = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "br", "tr"}
_BREAKING_TAGS |= {"pre", "dt", "dd", "title", "section"}


@dataclass
class Source:
    """One package: what is taken of it, and what was."""

    name: str
    kind: str
    language: str
    licence: str
    files: list[str]
    most_mb: float
    version: str = ""
    documents: int = 0
    n_bytes: int = 0


def main(out: Path) -> None:
    """Write the corpus and its card into the folder `out`."""
    settings = tomllib.loads((Path(__file__).parent / "corpus.toml").read_text())
    sources = [Source(**entry) for entry in settings["source"]]
    packages = out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    with lzma.open(out / "corpus.jsonl.xz", "wt", preset=6, encoding="utf-8") as file:
        for source in sources:
            for text in _documents(source, _fetch(source, packages), seen):
                held_out = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % _HELD_OUT == 0
                record = {"source": source.name, "kind": source.kind, "held_out": held_out, "text": text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            taken = f"{source.documents:6} documents {source.n_bytes / 1e6:7.1f} MB"
            print(f"{source.name:28} {taken}", flush=True)
    (out / "corpus.md").write_text(_card(sources))
    print(f"{sum(source.n_bytes for source in sources) / 1e6:.1f} MB of text", flush=True)


def _fetch(source: Source, folder: Path) -> Path:
    """Return the package's archive, fetched if it is not there."""
    target = folder / source.name
    target.mkdir(exist_ok=True)
    if not list(target.glob("*.deb")):
        subprocess.run(["apt-get", "-qq", "download", source.name], cwd=target, check=True)
    found = sorted(target.glob("*.deb"))
    source.version = found[0].name
    return found[0]


def _documents(source: Source, archive: Path, seen: set[bytes]) -> Iterator[str]:
    for name, raw in _members(archive):
        if not any(fnmatch.fnmatch(name, pattern) for pattern in source.files):
            continue
        if source.n_bytes >= source.most_mb * 1e6:
            return
        text = _without_repeats(_text_of(name, raw), seen, by_line=source.kind == "code")
        for start in range(0, len(text), _LONGEST):
            piece = text[start : start + _LONGEST].strip()
            if source.n_bytes >= source.most_mb * 1e6:
                return
            if len(piece) >= _SHORTEST:
                source.documents += 1
                source.n_bytes += len(piece.encode())
                yield piece


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an archive in a fixed, well-mixed order: by a hash of their names."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from _mixed(tar)


def _mixed(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    files = []
    for member in tar:
        if member.isfile() and 0 < member.size < 64 << 20 and (file := tar.extractfile(member)):
            files.append((member.name, file.read()))
    yield from sorted(files, key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _text_of(name: str, raw: bytes) -> str:
    if name.endswith((".gz", ".dz")):
        raw, name = gzip.decompress(raw), name[:-3]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        if b"\0" in raw:
            return ""  # an index or a picture
        text = raw.decode("latin-1")
    if re.search(r"\.html?(\.|$)|\.page$", name):
        reader = _HtmlText()
        reader.feed(text)
        return "".join(reader.parts)
    if re.search(r"/man\d/", name):
        return _plain_man(text)
    return text


class _HtmlText(html.parser.HTMLParser):
    """Takes the readable text out of HTML (and of Mallard pages)."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping = 0
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipping += tag in _SKIPPED_TAGS
        self._pre += tag == "pre"
        if tag in _BREAKING_TAGS:
            self.parts.append("\n\n" if tag[0] in "ph" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipping = max(0, self._skipping - (tag in _SKIPPED_TAGS))
        self._pre = max(0, self._pre - (tag == "pre"))
        if tag in _BREAKING_TAGS:
            self.parts.append("\n\n" if tag[0] in "ph" else "\n")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.parts.append(data if self._pre else re.sub(r"\s+", " ", data))


def _plain_man(text: str) -> str:
    """Return a manual page without most of its troff requests."""
    lines = []
    for line in text.splitlines():
        if line.startswith((".\\", "'\\", ".TH", ".de", ".so", ".ie", ".el", ".if")):
            continue
        if line.startswith((".SH", ".SS")):
            line = "\n" + line[3:].strip().strip('"')
        elif line.startswith("."):
            line = re.sub(r"^\.\w*\s?", "", line).replace('"', "")
        line = re.sub(r"\\f[A-Z(\[]?\w?\]?|\\[&|,/c]|\\s[-+]?\d", "", line)
        lines.append(
            line.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\").replace("\\(bu", "*")
        )
    return "\n".join(lines)


def _without_repeats(text: str, seen: set[bytes], *, by_line: bool) -> str:
    """Tidy the white space and leave out paragraphs that the corpus already has: licences, menus, tables."""
    text = text.replace("\r", "").replace("\u00a0", " ").replace("\ufeff", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) >= _SEEN_FROM:
            mark = hashlib.blake2b(re.sub(r"\W+", "", paragraph).encode(), digest_size=8).digest()
            if mark in seen:
                continue
            seen.add(mark)
        elif not by_line and not paragraph.strip():
            continue
        kept.append(paragraph)
    return "\n\n".join(kept)


def _card(sources: list[Source]) -> str:
    head = ["package", "file", "kind", "language", "licence", "documents", "MB"]
    rows = [head, ["---"] * 5 + ["---:"] * 2]
    for s in sources:
        taken = [f"{s.documents:,}", f"{s.n_bytes / 1e6:.1f}"]
        rows.append([s.name, s.version, s.kind, s.language, s.licence, *taken])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
