"""Where backends come from: providers that tell a sink about each one, with two verbs, upsert and remove.

A provider is the SERVICES variable today; a watched file and DNS fit the same interface.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, get_args
from urllib.parse import urlsplit

from kit.catalogue import Kind

SERVICE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
KINDS: tuple[str, ...] = get_args(Kind)

GRAMMAR = (
    "comma-separated backends, each NAME=URL with optional parts after semicolons, in any order: kind=KIND (one of "
    + ", ".join(KINDS)
    + ") and models=MODEL|MODEL (what it serves, by the names it knows itself). Both are asked of the backend where "
    "they are left out. Example: llm-primary=http://127.0.0.1:8000,"
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

    @property
    def authority(self) -> str:
        """What goes into the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Sink(Protocol):
    """What providers talk to. Both verbs return at once and may be called from the event loop only."""

    def upsert(self, target: Target) -> None:
        """Add the backend of this name, or move it to where `target` says."""

    def remove(self, name: str) -> None:
        """Send it nothing more; what is in flight ends by itself."""


class Provider(Protocol):
    """A source of backends. `run` returns when the source can never change again, or when it is cancelled."""

    async def run(self, sink: Sink) -> None:
        """Tell `sink` about every backend now and about every change later."""


class StaticProvider:
    """The SERVICES variable: a fixed list."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)

    async def run(self, sink: Sink) -> None:
        """Upsert every target once."""
        for target in self._targets:
            sink.upsert(target)


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
    for option in options:
        key, _, value = option.partition("=")
        if key == "kind" and value in KINDS:
            kind = value  # type: ignore[assignment]  # membership in KINDS is the check
        elif key == "kind":
            raise ValueError(f"{entry!r}: kind is one of {', '.join(KINDS)}, not {value!r}")
        elif key == "models" and value:
            models = tuple(model.strip() for model in value.split("|") if model.strip())
        else:
            raise ValueError(f"{entry!r}: {option!r} is neither kind=KIND nor models=MODEL|MODEL")
    return make_target(name, url, kind=kind, models=models)


def make_target(name: str, url: str, *, kind: Kind | None = None, models: tuple[str, ...] = ()) -> Target:
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
    )
