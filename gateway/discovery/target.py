"""A backend as configuration knows it, and the grammar of SERVICES."""

import re
from dataclasses import dataclass, field, replace
from typing import get_args
from urllib.parse import urlsplit

from kit.config.catalogue import Kind

SERVICE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
KINDS: tuple[str, ...] = get_args(Kind)

GRAMMAR = (
    "comma-separated backends, each NAME=URL with optional parts after semicolons, in any order: kind=KIND (one of "
    + ", ".join(KINDS)
    + "), models=MODEL|MODEL (what it serves, by the names it knows itself), dns (every address behind its host "
    "name is a replica: NAME, NAME-2, NAME-3 and so on), weight=NUMBER (how much it takes beside others, from 0.01 to "
    "100; 1 is usual) and, beside dns, optional (it is not listed until its name has resolved once). Kind and models "
    "are asked of the backend where they are left out. Example: llm-primary=http://127.0.0.1:8000,embedding=http://embedding:8002;dns,"
    "gpu9=http://10.0.0.9:8000;kind=llm;models=meta-llama/Llama-3.1-8B-Instruct"
)


@dataclass(frozen=True, slots=True)
class Target:
    """One backend as configuration knows it. `path` is what stands before /v1 in its URL, mostly nothing."""

    name: str
    url: str
    host: str
    port: int
    tls: bool = False
    path: str = ""
    kind: Kind | None = None
    models: tuple[str, ...] = ()
    # Its name in SERVICES, which all replicas share.
    service: str = ""
    # Whether every address behind `host` is a replica; then `address` is this one's, None while there is none.
    by_dns: bool = False
    address: str | None = None
    # Whether it may be left out of a cluster: it is told of only once its name has resolved.
    optional: bool = False
    # How much it takes beside others of its kind.
    weight: float = 1.0
    # Why it may not be there at all, in words for a person. It makes no other backend of it.
    doubt: str | None = field(default=None, compare=False)

    @property
    def authority(self) -> str:
        """What goes into the Host header."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def reached_at(self) -> str:
        """The host name or address to connect to."""
        return self.address or self.host

    @property
    def base_url(self) -> str:
        """The URL to ask it by, save for what stands in the Host header."""
        return f"{'https' if self.tls else 'http'}://{_bracketed(self.reached_at)}:{self.port}{self.path}"

    def differs_only_in_weight(self, other: "Target") -> bool:
        """Whether the server behind it, and what is asked of it, is the same."""
        return replace(self, weight=other.weight, optional=other.optional) == other

    def is_same_place(self, other: "Target") -> bool:
        """Whether `other` is this very replica under another name."""
        return self.address is not None and replace(self, name=other.name) == other

    @property
    def is_nowhere(self) -> bool:
        """Whether there is no address to connect to."""
        return self.by_dns and self.address is None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_services(text: str) -> tuple[Target, ...]:
    """Read the SERVICES grammar (see GRAMMAR). Raises ValueError that quotes the entry that is wrong."""
    targets = tuple(_parse_entry(entry.strip()) for entry in re.split(r"[,\n]", text) if entry.strip())
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} stands there twice")
    return targets


def _parse_entry(entry: str) -> Target:
    first, *options = (part.strip() for part in entry.split(";"))
    name, equals, url = (part.strip() for part in first.partition("="))
    if not equals or not SERVICE_NAME.match(name):
        raise ValueError(f"{entry!r} is not NAME=URL with a name of letters, digits, '.', '_', '-'")
    kind: Kind | None = None
    models: tuple[str, ...] = ()
    weight = 1.0
    for option in options:
        key, _, value = option.partition("=")
        if key == "kind" and value in KINDS:
            kind = value  # type: ignore[assignment]  # membership in KINDS is the check
        elif key == "kind":
            raise ValueError(f"{entry!r}: kind is one of {', '.join(KINDS)}, not {value!r}")
        elif key == "models" and value:
            models = tuple(model.strip() for model in value.split("|") if model.strip())
        elif key == "weight":
            weight = _weight(entry, value)
        elif option not in ("dns", "optional"):
            raise ValueError(
                f"{entry!r}: {option!r} is none of kind=KIND, models=MODEL|MODEL, weight=NUMBER, dns and optional"
            )
    by_dns, optional = "dns" in options, "optional" in options
    if optional and not by_dns:
        raise ValueError(f"{entry!r}: optional goes with dns, by which it is known whether the service is there")
    target = make_target(name, url, kind=kind, models=models, by_dns=by_dns)
    return replace(target, optional=optional, weight=weight)


def _weight(entry: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise ValueError(f"{entry!r}: weight is a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, not {text!r}")
    return weight


def make_target(
    name: str, url: str, *, kind: Kind | None = None, models: tuple[str, ...] = (), by_dns: bool = False
) -> Target:
    """Check and take apart a backend's URL. Raises ValueError that says what is wrong with it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{name}: {url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name}: {url!r} is not http://HOST:PORT or https://HOST:PORT")
    if parts.username or parts.query or parts.fragment:
        raise ValueError(f"{name}: {url!r} must hold no user, query or fragment; a backend's key goes to BACKEND_KEYS")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{name}: {url!r} holds characters that no URL may hold")
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Target(
        name=name,
        url=url.rstrip("/").removesuffix("/v1"),
        host=parts.hostname,
        port=port or (443 if tls else 80),
        tls=tls,
        path=path,
        kind=kind,
        models=models,
        service=name,
        by_dns=by_dns,
    )
