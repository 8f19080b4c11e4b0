"""A report without what says who made it and where: for sharing.

Pure: it works on the report's JSON, so that a field added to the schema tomorrow is cleaned as text too. The
numbers, the verdicts and the words of the schema stay; the result is a `Report` like any other.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from hottune.report.private_text import Cleaner, Identity, users_in
from hottune.report.schema import Report, WarningNote
from hottune.stats.notes import NoteCode, note

NOTE = WarningNote(**dict(zip(("code", "text"), note(NoteCode.REDACTED), strict=True)))
#: Fields that hold one path, relative or not: only the file name stays.
_FILES = frozenset({"path", "llama_server", "llama_fit_params", "device_library", "hot_profile"})
#: Fields with hashes of public things: texts, model files, source commits.
_HASHES = frozenset({"fingerprint", "base_sha256", "sha256", "text_sha256", "key", "source", "commit", "ref"})
#: Variables of llama.cpp, of our device, and those that choose GPUs; a value of any other one does not leave.
_OWN_VARIABLE = re.compile(
    r"(?:GGML|LLAMA|HOTTUNE|OMP)_[A-Z0-9_]+|(?:CUDA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER"
)
_SECRET_VARIABLE = re.compile(r"API_?KEY|ACCESS_?KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
#: Characters of a variable's value from which on it is looked for in the whole report.
LEAST_VALUE = 8
_OPTION = re.compile(r"--?[a-z]+(?:-[a-z]+)*")
_SECRET_OPTION = re.compile(
    r"--?(?:api-key|hf-token|hft|token|password|ssl-key-file)|.*\bBearer", re.IGNORECASE | re.DOTALL
)
_BARE_WINDOWS = re.compile(r"(?<!['\"])\b[A-Za-z]:\\[^\s'\"]*")
_HOST_AND_CARD = re.compile(r"(.+)-gpu\d+")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_PATH_LIKE = re.compile(
    r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[\\/]|.*[/\\].*\.(?:gguf|json|db|sqlite3?|so|md|toml)$"
)


@dataclass(frozen=True)
class Replaced:
    """One kind of thing that was replaced."""

    kind: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Redaction:
    """The redacted report, and what it took."""

    report: Report
    replaced: tuple[Replaced, ...]
    #: Field -> its first new value, for each field in which something was replaced; places in lists as [].
    changed: dict[str, str]
    #: Names that were not looked for, because they are common or words of the report itself.
    unreplaced: tuple[str, ...]


def redact(report: Report, identity: Identity) -> Redaction:
    """Return the report without names, hosts, addresses, paths, secrets and log tails.

    Args:
        report: any report, also of another machine: home paths and workers' names in it tell whose.
        identity: of the machine that this runs on.
    """
    data = json.loads(report.model_dump_json())
    walker = _Walker(report, identity, data)
    cleaned = Report.model_validate_json(json.dumps(walker.walk(data, "")))
    # Said in the report itself, because its commands no longer run as they stand.
    if all(note.code != NOTE.code for note in cleaned.warnings):
        cleaned = cleaned.model_copy(update={"warnings": [*cleaned.warnings, NOTE]})
    tally = walker.cleaner.tally
    return Redaction(
        report=cleaned,
        replaced=tuple(
            Replaced(kind, count, tuple(tally.examples[kind])) for kind, count in tally.counts.most_common()
        ),
        changed=walker.changed,
        unreplaced=tuple(walker.cleaner.unreplaced),
    )


class _Walker:
    """Goes through the JSON of a report; `where` is a field's place: `arms[].env.GGML_HOT_K`."""

    def __init__(self, report: Report, identity: Identity, data: dict[str, Any]) -> None:
        self.changed: dict[str, str] = {}
        self._words, self._fields = _vocabulary()
        self._workers = _workers(report)
        # A worker is called after its host and card, unless the user called it something else.
        found = {match[1] for name in self._workers if (match := _HOST_AND_CARD.fullmatch(name))}
        identity = replace(identity, hosts=(*identity.hosts, *sorted(found)))
        users = set().union(*(users_in(text) for text in _strings(data)))
        keep = {word.lower() for word in self._words}
        study = Cleaner(identity, users=users, literals={}, keep=keep).name(report.study)
        literals = {path: ("path", name) for path, name in _known_paths(report).items()}
        literals |= {name: ("worker", new) for name, new in self._workers.items() if len(name) > 3}
        for value in _private_values(report):
            if value.lower() not in keep:
                literals.setdefault(value, ("environment value", "REDACTED-VALUE"))
        if study != report.study:
            literals[report.study] = ("study name", study)
        self.cleaner = Cleaner(identity, users=users, literals=literals, keep=keep)

    def walk(self, value: Any, where: str) -> Any:
        """Return a cleaned copy of any JSON value."""
        if isinstance(value, dict):
            return self._mapping(value, where)
        if isinstance(value, list):
            if where.endswith(".log_tail"):
                return [self.cleaner.secret(line, "log line", "") for line in value][:0]
            if where.endswith(".argv"):
                return [
                    self._noted(where, old, new) for old, new in zip(value, self._argv(value), strict=True)
                ]
            return [self.walk(item, f"{where}[]") for item in value]
        return self._noted(where, value, self._text(value, where)) if isinstance(value, str) else value

    def _noted(self, where: str, old: str, new: str) -> str:
        if old != new:
            self.changed.setdefault(where, new)
        return new

    def _mapping(self, value: dict[str, Any], where: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, item in value.items():
            known = key in self._fields or key in self._words or _OWN_VARIABLE.fullmatch(key)
            new = key if known else self.cleaner.text(key)
            while new in made:  # two keys that differed in the secret alone
                new += "-2"
            place = f"{where}.{new}" if where else new
            if where.endswith(".env") and isinstance(item, str):
                made[new] = self._noted(place, item, self._variable(key, item))
            else:
                made[new] = self.walk(item, place)
        return made

    def _text(self, text: str, where: str) -> str:
        name = where.rpartition(".")[2].removesuffix("[]")
        if where in ("command", "winner.command"):
            return self._command(text)
        if text in self._words:
            return text
        if where == "study":
            return self.cleaner.name(text)
        if name == "worker":
            return self.cleaner.secret(text, "worker", self._workers.get(text, ""))
        if name == "uuid":
            return self.cleaner.secret(text, "GPU's UUID", "")
        if name in _FILES:
            return self.cleaner.file(text)
        if where == "model.argument":
            return self._token(text)
        return self.cleaner.text(text, hashes=name in _HASHES)

    def _command(self, text: str) -> str:
        """Clean a shell command word by word, so that a path with spaces is one, and quote it again."""
        # A shell would drop the backslashes of such a path, and its parts would no longer be known as ones.
        text = _BARE_WINDOWS.sub(lambda match: match[0].replace("\\", "\\\\"), text)
        try:
            words = shlex.split(text)
        except ValueError:  # no command of ours
            return self.cleaner.text(text)
        front: list[str] = []
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            name = match[1] if _OWN_VARIABLE.fullmatch(match[1]) else self.cleaner.text(match[1])
            front.append(f"{name}={shlex.quote(self._variable(match[1], match[2]))}")
            words.pop(0)
        return " ".join([*front, *(shlex.quote(word) for word in self._argv(words))])

    def _argv(self, words: list[str]) -> list[str]:
        made: list[str] = []
        for place, word in enumerate(words):
            if place == 0 and "/" in word:  # the program
                made.append(self.cleaner.file(word))
                continue
            option, equals, value = word.partition("=")
            if place and _OPTION.fullmatch(word):  # the program's own word, whatever the user's name is
                made.append(word)
            elif place and _SECRET_OPTION.fullmatch(words[place - 1]):
                made.append(self.cleaner.secret(word, "token", "REDACTED-TOKEN"))
            elif equals and _SECRET_OPTION.fullmatch(option):
                made.append(f"{option}={self.cleaner.secret(value, 'token', 'REDACTED-TOKEN')}")
            elif equals and option.startswith("--"):
                made.append(f"{self.cleaner.text(option)}={self._token(value)}")
            else:
                made.append(self._token(word))
        return made

    def _token(self, word: str) -> str:
        if "://" not in word and _PATH_LIKE.match(word):
            return self.cleaner.file(word)
        return self.cleaner.text(word)

    def _variable(self, name: str, value: str) -> str:
        if not _OWN_VARIABLE.fullmatch(name) or _SECRET_VARIABLE.search(name):
            return self.cleaner.secret(value, "environment value", "REDACTED-VALUE")
        return self._token(value)


def _private_values(report: Report) -> Iterator[str]:
    """Return what foreign variables hold: it may stand in a command or a message as well.

    A short value is left out: it would be a part of common words.
    """
    for arm in report.arms:
        for name, value in arm.env.items():
            foreign = not _OWN_VARIABLE.fullmatch(name) or _SECRET_VARIABLE.search(name)
            if foreign and len(value) >= LEAST_VALUE:
                yield value


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[frozenset[str], frozenset[str]]:
    """Return the schema's closed words ('faster', 'all-cpu', ...) and the names of its fields."""
    words: set[str] = set()
    fields: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            words.update(item for item in [*node.get("enum", ()), node.get("const")] if isinstance(item, str))
            if isinstance(node.get("properties"), dict):
                fields.update(node["properties"])
            for item in node.values():
                collect(item)
        elif isinstance(node, list):
            for item in node:
                collect(item)

    collect(Report.model_json_schema())
    return frozenset(words), frozenset(fields)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _known_paths(report: Report) -> dict[str, str]:
    """Return the paths that the report names in fields, with what stands for them elsewhere: in prose, their
    ends cannot be seen when there are spaces in them."""
    engine = report.engine
    paths = [report.model.path, engine.llama_server, engine.llama_fit_params, engine.device_library]
    paths += [other.llama_server for other in report.other_engines]
    return {str(path): path.name for path in paths if path is not None and path.is_absolute() and path.name}


def _workers(report: Report) -> dict[str, str]:
    names = [trial.worker for trial in report.trials]
    names += [run.worker for arm in report.arms for run in arm.replicates]
    return {name: f"worker-{n}" for n, name in enumerate(dict.fromkeys(filter(None, names)), start=1)}
