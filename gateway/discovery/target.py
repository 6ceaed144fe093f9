"""The configured target of one backend, and the grammar of SERVICES."""

import re
from dataclasses import dataclass, field, replace
from typing import Protocol, get_args
from urllib.parse import urlsplit

from kit.config.catalogue import Kind

SERVICE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
KINDS: tuple[str, ...] = get_args(Kind)

GRAMMAR = (
    "comma-separated backends, each NAME=URL with optional parts after semicolons, in any order: kind=KIND (one of "
    + ", ".join(KINDS)
    + "), models=MODEL|MODEL (the models that it serves, by its own names), dns (every address of its host name is a "
    "replica: NAME, NAME-2, NAME-3 and so on), weight=NUMBER (its share of the requests relative to others, from 0.01 "
    "to 100; default 1) and, with dns, optional (it is not listed until its name has resolved once). Kind and models "
    "are queried from the backend if omitted. Example: llm-primary=http://127.0.0.1:8000,embedding=http://embedding:8002;dns,"
    "gpu9=http://10.0.0.9:8000;kind=llm;models=meta-llama/Llama-3.1-8B-Instruct"
)


@dataclass(frozen=True, slots=True)
class Target:
    """One configured backend. `path` is the part of its URL before /v1, usually empty."""

    name: str
    url: str
    host: str
    port: int
    tls: bool = False
    path: str = ""
    kind: Kind | None = None
    models: tuple[str, ...] = ()
    # Its name in SERVICES, shared by all its replicas.
    service: str = ""
    # Whether every address of `host` is a replica; then `address` is this one's, None if there is none.
    by_dns: bool = False
    address: str | None = None
    # Whether it is listed only once its name has resolved.
    optional: bool = False
    # Its share of the requests relative to other backends.
    weight: float = 1.0
    # Why it may not exist, as a message for people. Ignored in comparisons.
    doubt: str | None = field(default=None, compare=False)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def connect_host(self) -> str:
        """The host name or address to connect to."""
        return self.address or self.host

    @property
    def base_url(self) -> str:
        """The URL to connect to; the Host header is `authority`."""
        return f"{'https' if self.tls else 'http'}://{_bracketed(self.connect_host)}:{self.port}{self.path}"

    def differs_only_in_weight(self, other: "Target") -> bool:
        """Whether only weight and optional differ, so that connections and state remain valid."""
        return replace(self, weight=other.weight, optional=other.optional) == other

    def is_same_server(self, other: "Target") -> bool:
        """Whether `other` is the same replica under another name."""
        return self.address is not None and replace(self, name=other.name) == other

    @property
    def has_no_address(self) -> bool:
        """Whether there is no address to connect to."""
        return self.by_dns and self.address is None


class Sink(Protocol):
    """Receives the targets of discovery. Both methods return at once; call them from the event loop only."""

    def upsert(self, target: Target) -> None:
        """Add the backend of this name, or replace its target."""

    def remove(self, name: str) -> None:
        """Remove the backend of this name; requests in flight finish."""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_services(text: str) -> tuple[Target, ...]:
    """Parse SERVICES (see GRAMMAR). Raises ValueError that quotes the wrong entry."""
    targets = tuple(_parse_entry(entry.strip()) for entry in re.split(r"[,\n]", text) if entry.strip())
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Duplicate backend name {name!r}.")
    return targets


def _parse_entry(entry: str) -> Target:
    first, *options = (part.strip() for part in entry.split(";"))
    name, equals, url = (part.strip() for part in first.partition("="))
    if not equals or not SERVICE_NAME.match(name):
        raise ValueError(f"{entry!r} is not NAME=URL; a name has letters, digits, '.', '_' and '-'")
    kind: Kind | None = None
    models: tuple[str, ...] = ()
    weight = 1.0
    for option in options:
        key, _, value = option.partition("=")
        if key == "kind" and value in KINDS:
            kind = value  # type: ignore[assignment]  # membership in KINDS is the check
        elif key == "kind":
            raise ValueError(f"{entry!r}: invalid kind {value!r}; use one of {', '.join(KINDS)}")
        elif key == "models" and value:
            models = tuple(model.strip() for model in value.split("|") if model.strip())
        elif key == "weight":
            weight = _weight(entry, value)
        elif option not in ("dns", "optional"):
            raise ValueError(
                f"{entry!r}: invalid option {option!r}; use kind=KIND, models=MODEL|MODEL, weight=NUMBER, dns, optional"
            )
    by_dns, optional = "dns" in options, "optional" in options
    if optional and not by_dns:
        raise ValueError(f"{entry!r}: optional requires dns, which shows whether the service exists")
    target = make_target(name, url, kind=kind, models=models, by_dns=by_dns)
    return replace(target, optional=optional, weight=weight)


def _weight(entry: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise ValueError(f"{entry!r}: invalid weight {text!r}; use a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
    return weight


def make_target(
    name: str, url: str, *, kind: Kind | None = None, models: tuple[str, ...] = (), by_dns: bool = False
) -> Target:
    """Parse and validate a backend's URL. Raises ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{name}: {url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name}: {url!r} is not http://HOST:PORT or https://HOST:PORT")
    if parts.username or parts.query or parts.fragment:
        raise ValueError(
            f"{name}: {url!r} must have no user, query or fragment; put the backend's key into BACKEND_KEYS"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{name}: {url!r} contains characters that are invalid in a URL")
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
