"""Backends by DNS: every address behind a service's name is a replica.

So it is with Compose (`--scale`) and with Kubernetes' headless services. The name is asked again every interval: a
container that was made anew, added or removed is found by then. A resolver that fails takes away nobody who answers.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from gateway.discovery.provider import Sink
from gateway.discovery.target import Target
from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed

log = structlog.get_logger(__name__)

# A container that has stopped looks like a failing resolver where Docker's network has no way out. Replicas that have
# not answered for this long while the resolver failed are taken for gone: their addresses may be another's by now.
GONE_AFTER_S = 30.0


class DnsProvider:
    """Keeps the replicas of some services up to date."""

    def __init__(
        self,
        services: Iterable[Target],
        *,
        taken: Collection[str],
        answers: Callable[[str], bool],
        interval_s: float,
        timeout_s: float,
        gone_after_s: float = GONE_AFTER_S,
    ) -> None:
        """`taken` are names that no replica may get; `answers` tells whether the backend of a name answers now."""
        self._interval_s = interval_s
        self._services = [
            _Service(target, set(taken) - {target.name}, answers, timeout_s, gone_after_s) for target in services
        ]

    async def begin(self, sink: Sink) -> None:
        """Look once, all names at the same time."""
        await asyncio.gather(*(service.look(sink) for service in self._services))

    async def run(self, sink: Sink) -> None:
        """Look again and again, each name by itself: one that hangs delays no other."""
        try:
            await asyncio.gather(*(self._follow(service, sink) for service in self._services))
        finally:
            for service in self._services:
                service.close()

    def retarget(self, target: Target, sink: Sink) -> None:
        """What the configuration says of the service of this name, other than where to look, has changed."""
        for service in self._services:
            if service.name == target.name:
                service.retarget(target, sink)

    async def _follow(self, service: "_Service", sink: Sink) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await service.look(sink)
            except Exception as error:
                log.error("discovery failed", service=service.name, exc_info=error)


class _Service:
    """One name, and the replicas behind it as they were when it was last asked."""

    def __init__(
        self,
        target: Target,
        taken: Collection[str],
        answers: Callable[[str], bool],
        timeout_s: float,
        gone_after_s: float,
    ) -> None:
        self.name = target.name
        self._target = target
        self._taken = taken
        self._answers = answers
        self._timeout_s = timeout_s
        self._gone_after_s = gone_after_s
        self._lookup = Lookup(target.host)
        self._addresses: dict[str, str] = {}
        self._failing = False
        self._silent_since: float | None = None
        # Whether an optional service has been there: from then on it is missed when it is gone.
        self._expected = not target.optional

    async def look(self, sink: Sink) -> None:
        """Ask, and tell `sink` what differs."""
        try:
            found = await self._lookup.addresses(self._timeout_s)
        except NoSuchName:
            self._set(sink, {}, f"{self._target.host} does not resolve: its container is not running")
        except ResolverFailed as error:
            self._resolver_failed(sink, error)
            return
        else:
            self._set(sink, assign(self.name, self._addresses, found, self._taken))
        if self._failing:
            self._failing = False
            log.info("name resolves again", service=self.name)
        self._silent_since = None

    def retarget(self, target: Target, sink: Sink) -> None:
        """Tell `sink` of all replicas anew."""
        self._target = target
        self._set(sink, self._addresses, None if self._addresses else "it is looked for")

    def close(self) -> None:
        """Ask no more."""
        self._lookup.close()

    def _resolver_failed(self, sink: Sink, error: ResolverFailed) -> None:
        doubt = f"{self._target.host} does not resolve: its container is not running, or the resolver fails ({error})"
        now = time.monotonic()
        if any(self._answers(name) for name in self._addresses):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        gone = self._silent_since is not None and now - self._silent_since >= self._gone_after_s
        if self._addresses and not self._failing:
            log.warning(
                "name does not resolve, keeping what was known",
                service=self.name,
                reason=str(error),
                kept=sorted(self._addresses),
            )
        self._failing = True
        self._set(sink, {} if gone else self._addresses, doubt)

    def _set(self, sink: Sink, addresses: Mapping[str, str], doubt: str | None = None) -> None:
        before, self._addresses = self._addresses, dict(addresses)
        if before != self._addresses:
            log.info("replicas", service=self.name, addresses=self._addresses, before=before)
        self._expected = self._expected or bool(addresses)
        if not self._expected:
            return
        # The plain name is always there: who looks for the service finds it, and why it is down.
        standing: Mapping[str, str | None] = self._addresses or {self.name: None}
        for name, address in standing.items():
            sink.upsert(replace(self._target, name=name, address=address, doubt=doubt))
        # Last, so that a replica which changes its name is never without one.
        for name in before.keys() - self._addresses.keys() - {self.name}:
            sink.remove(name)


def assign(service: str, before: Mapping[str, str], found: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Which name stands for which of the addresses `found`, given the names `before`. Pure.

    An address keeps its name while it lives, but the service's own name is never free: it goes to a new address, else
    to the replica with the lowest number. Names in `taken` are left out.
    """
    held = {name: address for name, address in before.items() if address in found}
    new = [address for address in found if address not in held.values()]
    if service not in held and (new or held):
        plain = new.pop(0) if new else held.pop(min(held, key=lambda name: int(name.rpartition("-")[2])))
        held = {service: plain, **held}
    numbered = (f"{service}-{number}" for number in itertools.count(2))
    free = (name for name in numbered if name not in held and name not in taken)
    return held | {next(free): address for address in new}
