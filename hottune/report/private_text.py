"""What in a text says who and where: finding and replacing it, one string at a time.

Pure: whose machine it is comes in as an `Identity`. Replacements are capital words with hyphens, because
those mean nothing to a shell or to Markdown. A rule that replaces too much costs a word of prose, one
that replaces too little costs a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

#: Names of accounts and machines that many have; replacing them hides nothing and spoils prose.
COMMON_NAMES = frozenset(
    {"root", "user", "ubuntu", "debian", "admin", "administrator", "ec2-user", "runner", "guest", "nobody"}
    | {"hottune", "llama", "ggml", "cuda", "server", "serve", "study", "report", "demo", "model", "models"}
    | {
        "localhost",
        "llama-server",
        "llama-fit-params",
        "shared",
        "public",
        "linuxbrew",
        "linux",
        "host",
        "home",
    }
    | {"gpu", "cpu", "vm", "ai", "llm", "dev", "test", "bench", "data", "work", "port", "load", "batch"}
    | {"chat", "document", "code", "agent", "prefill", "decode", "turn"}
)
#: Hosts of public model and source pages: a URL there says what was used, not where.
PUBLIC_HOSTS = frozenset({"github.com", "gitlab.com", "huggingface.co", "hf.co"})

_STOP = r"\s\"'`<>|;,()\[\]{}"
_ROOTS = "home|root|Users|Volumes|mnt|media|data|opt|usr|var|srv|tmp|run|etc|nix|workspace|scratch"
_URL = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*)://([^\s\"'`<>|;,)\]}]*)")
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_TOKENS = re.compile(
    r"(?:hf_|sk-|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|npm_|pypi-|AIza)[A-Za-z0-9_-]{8,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?"
)
_BEARER = re.compile(r"\b(Bearer|Authorization:\s*Basic)(\s+)[^\s\"'`<>;,]+", re.IGNORECASE)
_SECRET_WORD = r"(?:api[-_ ]?key|access[-_ ]?key|secret|token(?!s)|passw(?:or)?d|pwd)"
#: A plain number after 'token:' counts tokens.
_ASSIGNED = re.compile(
    rf"((?<!REDACTED-){_SECRET_WORD}[\w-]*[\"']?\s*[=:]\s*[\"']?)((?!\d+\b)[^\s\"'`<>;,&]{{3,}})",
    re.IGNORECASE,
)
_SERIAL = re.compile(r"(\bserial(?:[ _-]?(?:number|no\.?))?\s*[:=#]\s*)(\S+)", re.IGNORECASE)
_UUID = re.compile(r"(?:(?:GPU|MIG)-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_MAC = re.compile(
    r"(?<![0-9a-f:-])[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![0-9a-f])", re.IGNORECASE
)
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.IGNORECASE)
_LOCAL_HOST = re.compile(
    r"\b[\w-]+(?:\.[\w-]+)*\.(?:local|lan|internal|corp|intranet|localdomain)\b", re.IGNORECASE
)
_POSIX = re.compile(rf"(?:(?<![\w.)\]}}/~*%])|(?=/(?:{_ROOTS})/))(?:~\w*|\.{{1,2}})?(?:/[^{_STOP}/:=]+)+/?")
_WINDOWS = re.compile(rf"(?:\b[A-Za-z]:[\\/]|\\\\)[^{_STOP}:=]+")
_LONG_HEX = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{32,}(?![0-9A-Za-z])", re.IGNORECASE)
_LONG_BASE64 = re.compile(
    r"(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*\d)[A-Za-z0-9+/]{32,}={0,2}"
)
#: Two labels or more behind a host's name are its domain; one may be a file's ending.
_DOMAIN = r"(?:(?:\.[a-z0-9-]+){2,})?"
_HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:[\\/]+Users[\\/]+)([^\s/\\\"'`:;,]+)")


@dataclass(frozen=True)
class Identity:
    """Who and where: what hottune knows of the machine that it runs on. Empty = not known."""

    user: str = ""
    home: str = ""
    hosts: tuple[str, ...] = ()


@dataclass
class Tally:
    """How often each kind of thing was replaced, with a few masked examples of it."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, secret: str) -> None:
        """Note one replacement; the secret itself is not kept."""
        self.counts[kind] += 1
        masked = mask(secret)
        if masked not in self.examples[kind] and len(self.examples[kind]) < 3:
            self.examples[kind].append(masked)


def mask(secret: str) -> str:
    """Return enough of a secret to recognise one's own: at most a quarter of it, four characters."""
    return f"{secret[: min(4, len(secret) // 4)]}… ({len(secret)} characters)"


def base_name(path: str) -> str:
    """Return the file name of a path of any system; '~' for a home folder alone."""
    pure = PureWindowsPath(path) if re.match(r"[A-Za-z]:[\\/]|\\\\", path) else PurePosixPath(path)
    return pure.name or "~"


def users_in(text: str) -> set[str]:
    """Return the account names that home paths in a text give away."""
    return set(_HOMES.findall(text))


class Cleaner:
    """Replaces what is private in a text, and counts it."""

    def __init__(
        self,
        identity: Identity,
        *,
        users: Iterable[str] = (),
        literals: dict[str, tuple[str, str]],
        keep: Iterable[str],
    ) -> None:
        """Prepare for one report.

        Args:
            identity: of this machine.
            users: more account names, found in the report.
            literals: text -> (kind, replacement) for texts that are known to be private.
            keep: words in lower case that are the report's own and so never taken for a name.
        """
        self.tally = Tally()
        self._keep = frozenset(keep) | COMMON_NAMES
        users = {identity.user, *users}
        hosts = {name for host in identity.hosts for name in (host, host.partition(".")[0])}
        # The domain says where, too; one without a dot is as good as public ('local').
        hosts |= {domain for host in identity.hosts if "." in (domain := host.partition(".")[2])}
        #: Names that are too common, or words of the report itself: they were not looked for.
        self.unreplaced = sorted(name for name in users | hosts if name and self._common(name))
        if len(identity.home.strip("/")) > 1:
            literals = {identity.home.rstrip("/\\"): ("path", "~"), **literals}
        self._literals = sorted(literals.items(), key=lambda item: -len(item[0]))
        self._users = self._names(users)
        self._hosts = self._names(hosts)

    def _names(self, names: Iterable[str]) -> list[str]:
        return sorted(
            (name for name in names if name and not self._common(name)), key=lambda name: -len(name)
        )

    def _common(self, name: str) -> bool:
        return name.lower() in self._keep or len(name) < 2 or (name.isdigit() and len(name) < 6)

    def text(self, text: str, *, hashes: bool = False) -> str:
        """Return the text without what is private in it.

        Args:
            text: any text.
            hashes: whether long hexadecimal numbers are hashes of public things here, and stay.
        """
        if text.lower() in self._keep:
            return text
        for literal, (kind, new) in self._literals:
            if literal in text:
                text = self._replace(re.compile(re.escape(literal) + r"(?![\w-])"), text, kind, new)
        text = self._replace(_TOKENS, text, "token", "REDACTED-TOKEN")
        text = self._after(_BEARER, text, "token", lambda m: f"{m[1]}{m[2]}REDACTED-TOKEN")
        text = self._after(_ASSIGNED, text, "token", lambda m: f"{m[1]}REDACTED-TOKEN")
        # After the tokens: a URL reaches to the next space, and would take the word before a token with it.
        text = _URL.sub(self._url, text)
        text = self._after(_SERIAL, text, "serial number", lambda m: f"{m[1]}REDACTED-SERIAL")
        text = self._replace(_EMAIL, text, "e-mail", "REDACTED-EMAIL")
        text = self._replace(_UUID, text, "UUID", "REDACTED-UUID")
        text = self._replace(_MAC, text, "MAC address", "REDACTED-MAC")
        text = _IPV6.sub(self._address, text)
        text = _IPV4.sub(self._address, text)
        text = _WINDOWS.sub(self._path, text)
        text = _POSIX.sub(self._path, text)
        if not hashes:
            text = self._replace(_LONG_HEX, text, "long secret", "REDACTED-SECRET")
            text = self._replace(_LONG_BASE64, text, "long secret", "REDACTED-SECRET")
        text = self._replace(_LOCAL_HOST, text, "host name", "REDACTED-HOST")
        for host in self._hosts:
            text = self._replace(_name_pattern(host, _DOMAIN), text, "host name", "REDACTED-HOST")
        for user in self._users:
            text = self._replace(_name_pattern(user), text, "user name", "REDACTED-USER")
        return text

    def name(self, name: str) -> str:
        """Return a study's name without the user's and host's, which may be inside of longer words here."""
        for names, kind, new in ((self._hosts, "host name", "HOST"), (self._users, "user name", "USER")):
            for word in names:
                if len(word) > 2:
                    name = self._replace(
                        re.compile(re.escape(word), re.IGNORECASE), name, kind, f"REDACTED-{new}"
                    )
        return self.text(name)

    def secret(self, value: str, kind: str, new: str) -> str:
        """Replace a whole value, unless it is empty or replaced already."""
        if value and value != new:
            self.tally.add(kind, value)
            return new
        return value

    def file(self, path: str) -> str:
        """Return the file name of a path, cleaned."""
        name = base_name(path)
        if name != path:
            self.tally.add("path", path)
        return self.text(name)

    def _replace(self, pattern: re.Pattern[str], text: str, kind: str, new: str) -> str:
        return self._after(pattern, text, kind, lambda _match: new)

    def _after(
        self, pattern: re.Pattern[str], text: str, kind: str, new: Callable[[re.Match[str]], str]
    ) -> str:
        def swap(match: re.Match[str]) -> str:
            if (made := new(match)) != match[0]:
                self.tally.add(kind, match[0])
            return made

        return pattern.sub(swap, text)

    def _url(self, match: re.Match[str]) -> str:
        scheme, rest = match[1], match[2]
        if scheme in ("file", "sqlite"):
            made = f"{scheme}:///{base_name(rest)}"
        else:
            authority, slash, page = rest.partition("/")
            host = authority.rpartition("@")[2]
            bare = host.partition(":")[0]
            if bare in ("127.0.0.1", "localhost", *PUBLIC_HOSTS):
                made = f"{scheme}://{host}{slash}{page.partition('?')[0]}"
            else:
                made = f"{scheme}://REDACTED-URL"
        if made != match[0]:
            self.tally.add("URL", match[0])
        return made

    def _address(self, match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:  # a time of day, a version of four numbers above 255, C++ names
            return match[0]
        if address.is_loopback or address.is_unspecified:
            return match[0]
        self.tally.add("IP address", match[0])
        return "REDACTED-IP"

    def _path(self, match: re.Match[str]) -> str:
        name = base_name(match[0])
        if name == match[0].lstrip("/"):  # one component: nothing but the name, as in 'POST /completion'
            return match[0]
        self.tally.add("path", match[0])
        return name


def _name_pattern(name: str, more: str = "") -> re.Pattern[str]:
    """Return what finds a name: also inside of longer words, unless it is so short that many have it."""
    quoted = re.escape(name) + more
    return re.compile(quoted if len(name) > 3 else rf"(?<![^\W_]){quoted}(?![^\W_])", re.IGNORECASE)
