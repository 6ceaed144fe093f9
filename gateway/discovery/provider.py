"""Interface of backend discovery: providers upsert and remove targets in a sink."""

from collections.abc import Iterable
from typing import Protocol

from gateway.discovery.target import Target


class Sink(Protocol):
    """Receives the targets of providers. Both methods return at once; call them from the event loop only."""

    def upsert(self, target: Target) -> None:
        """Add the backend of this name, or replace its target."""

    def remove(self, name: str) -> None:
        """Remove the backend of this name; requests in flight finish."""


class Provider(Protocol):
    """A source of backends."""

    async def start(self, sink: Sink) -> None:
        """Upsert all current targets. Called once, before `run`; must return within moments."""

    async def run(self, sink: Sink) -> None:
        """Apply changes until cancelled; returns if there can be none."""


class StaticProvider:
    """Backends at fixed addresses."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)

    async def start(self, sink: Sink) -> None:
        """Upsert every target."""
        for target in self._targets:
            sink.upsert(target)

    async def run(self, sink: Sink) -> None:
        """Return at once: nothing changes."""
