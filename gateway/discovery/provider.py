"""Where backends come from: providers that tell a sink about each one, with two verbs, upsert and remove."""

from collections.abc import Iterable
from typing import Protocol

from gateway.discovery.target import Target


class Sink(Protocol):
    """What providers talk to. Both verbs return at once and may be called from the event loop only."""

    def upsert(self, target: Target) -> None:
        """Add the backend of this name, or move it to where `target` says."""

    def remove(self, name: str) -> None:
        """Send it nothing more; what is in flight ends by itself."""


class Provider(Protocol):
    """A source of backends."""

    async def begin(self, sink: Sink) -> None:
        """Tell `sink` about every backend there is now. Called once, first; takes a moment at most."""

    async def run(self, sink: Sink) -> None:
        """Tell `sink` about every change. Returns when there can be none any more, or when it is cancelled."""


class StaticProvider:
    """Backends at fixed addresses."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = tuple(targets)

    async def begin(self, sink: Sink) -> None:
        """Upsert every target."""
        for target in self._targets:
            sink.upsert(target)

    async def run(self, sink: Sink) -> None:
        """Nothing changes."""
