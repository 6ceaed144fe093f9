"""DNS discovery: every address of a service's name is a replica.

Compose (`--scale`) and Kubernetes' headless services publish replicas like this. The name is resolved again at
intervals, which finds containers that were recreated, added or removed. A failing resolver removes no replica that
still responds.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import structlog

from gateway.discovery.target import Sink, Target
from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed

log = structlog.get_logger(__name__)

# In a Docker network without external access a stopped container looks like a failing resolver. Replicas that have not
# responded for this long while the resolver failed are removed, since their addresses may have been reassigned.
REMOVE_AFTER_S = 30.0


class DnsProvider:
    """Keeps the replicas of one service up to date."""

    def __init__(
        self,
        target: Target,
        *,
        reserved_names: Collection[str],
        is_responding: Callable[[str], bool],
        interval_s: float,
        timeout_s: float,
    ) -> None:
        """Replicas get none of `reserved_names`; `is_responding` returns whether the backend of a name responds now."""
        self.name = target.name
        self._target = target
        self._reserved_names = set(reserved_names) - {target.name}
        self._is_responding = is_responding
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._lookup = Lookup(target.host)
        self._addresses: dict[str, str] = {}
        self._failing = False
        self._silent_since: float | None = None
        # An optional service is listed as missing only after it has resolved once.
        self._is_expected = not target.optional

    async def start(self, sink: Sink) -> None:
        """Resolve the name and apply the differences to `sink`."""
        try:
            found = await self._lookup.addresses(self._timeout_s)
        except NoSuchName:
            self._set(sink, {}, f"{self._target.host} does not resolve: its container is not running")
        except ResolverFailed as error:
            self._resolver_failed(sink, error)
            return
        else:
            self._set(sink, assign(self.name, self._addresses, found, self._reserved_names))
        if self._failing:
            self._failing = False
            log.info("name resolves again", service=self.name)
        self._silent_since = None

    async def run(self, sink: Sink) -> None:
        """Resolve the name at intervals until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._interval_s)
                try:
                    await self.start(sink)
                except Exception as error:
                    log.error("discovery failed", service=self.name, exc_info=error)
        finally:
            self._lookup.close()

    def retarget(self, target: Target, sink: Sink) -> None:
        """Upsert all replicas with changed options; the host is unchanged."""
        self._target = target
        self._set(sink, self._addresses, None if self._addresses else "its name is being resolved")

    @property
    def listed(self) -> Mapping[str, str | None]:
        """The replicas' addresses by name: with none, the plain name alone, so that its `doubt` is shown."""
        return self._addresses or ({self.name: None} if self._is_expected else {})

    def _resolver_failed(self, sink: Sink, error: ResolverFailed) -> None:
        doubt = f"{self._target.host} does not resolve: its container is not running, or the resolver failed ({error})"
        now = time.monotonic()
        if any(self._is_responding(name) for name in self._addresses):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        is_gone = self._silent_since is not None and now - self._silent_since >= REMOVE_AFTER_S
        if self._addresses and not self._failing:
            log.warning(
                "DNS lookup failed, keeping the known replicas",
                service=self.name,
                reason=str(error),
                kept=sorted(self._addresses),
            )
        self._failing = True
        self._set(sink, {} if is_gone else self._addresses, doubt)

    def _set(self, sink: Sink, addresses: Mapping[str, str], doubt: str | None = None) -> None:
        before, self._addresses = self._addresses, dict(addresses)
        if before != self._addresses:
            log.info("replicas changed", service=self.name, addresses=self._addresses, before=before)
        self._is_expected = self._is_expected or bool(addresses)
        for name, address in self.listed.items():
            sink.upsert(replace(self._target, name=name, address=address, doubt=doubt))
        # Last, so that a renamed replica is always listed under one of its names.
        for name in before.keys() - self.listed.keys():
            sink.remove(name)


def assign(service: str, before: Mapping[str, str], found: Sequence[str], reserved: Collection[str]) -> dict[str, str]:
    """Assign names to the addresses `found`, given the names `before`. Pure.

    An address keeps its name as long as it is found, but the service's own name is always assigned: to a new address,
    else to the replica with the lowest number. Names in `reserved` are skipped.
    """
    held = {name: address for name, address in before.items() if address in found}
    new = [address for address in found if address not in held.values()]
    if service not in held and (new or held):
        plain = new.pop(0) if new else held.pop(min(held, key=lambda name: int(name.rpartition("-")[2])))
        held = {service: plain, **held}
    numbered = (f"{service}-{number}" for number in itertools.count(2))
    free = (name for name in numbered if name not in held and name not in reserved)
    return held | {next(free): address for address in new}
