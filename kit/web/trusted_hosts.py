"""Trusted sources of admin requests besides fixed networks: this container's host, and hosts by name."""

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from kit.net.dns_lookup import Lookup, NoSuchName, ResolverFailed
from kit.net.route_table import default_routes
from kit.web.guard import Address, Network, address_of

log = structlog.get_logger(__name__)

DOCKER_HOST = "docker-host"
# Files that container engines create in every container.
CONTAINER_MARKS = (".dockerenv", "run/.containerenv")
ROOT = Path("/")

# Seconds; short, because a container's address may be reassigned to another.
CACHE_TTL_S = 2.0
LOOKUP_S = 1.0

_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


def is_network(place: str) -> bool:
    """Whether `place` is a network, not `docker-host` or a host name."""
    return not _HOST_NAME.fullmatch(place)


def networks_of(places: Iterable[str], root: Path = ROOT) -> list[Network]:
    """Return the networks among `places`; `docker-host` resolves to a single address or none."""
    networks: list[Network] = []
    for place in places:
        if place == DOCKER_HOST:
            networks += docker_host(root)
        elif is_network(place):
            networks.append(ipaddress.ip_network(place))
    return networks


def docker_host(root: Path) -> list[Network]:
    """Return this container's default gateway, the source of requests through a port published on the host's loopback.

    Empty outside a container, where the gateway is the network's router, and without a default route.
    """
    reason = "not in a container"
    if any((root / mark).exists() for mark in CONTAINER_MARKS):
        reason = "the container has no default route"
        with contextlib.suppress(OSError):
            for route in default_routes((root / "proc/net/route").read_text(encoding="ascii")):
                if int(route.gateway):
                    return [ipaddress.IPv4Network(route.gateway)]
    log.warning("trusted docker-host does not apply", reason=reason)
    return []


class TrustedHosts:
    """The host names among `places`, resolved on demand. A name that does not resolve is not trusted."""

    def __init__(
        self, places: Iterable[str], *, cache_ttl_s: float = CACHE_TTL_S, lookup_timeout_s: float = LOOKUP_S
    ) -> None:
        self._cache_ttl_s = cache_ttl_s
        self._lookup_timeout_s = lookup_timeout_s
        self._lookups = [Lookup(place) for place in places if place != DOCKER_HOST and not is_network(place)]
        self._known: dict[str, tuple[float, frozenset[Address]]] = {}
        self._unresolved: set[str] = set()
        self._lock = asyncio.Lock()

    async def include(self, client: str) -> bool:
        """Whether `client` is one of the hosts' current addresses."""
        address = address_of(client)
        for lookup in self._lookups:
            if address in await self._addresses(lookup):
                return True
        return False

    async def _addresses(self, lookup: Lookup) -> frozenset[Address]:
        async with self._lock:  # one lookup at a time for any number of requests
            until, known = self._known.get(lookup.host, (0.0, frozenset[Address]()))
            if time.monotonic() >= until:
                known = await self._resolve(lookup)
                self._known[lookup.host] = (time.monotonic() + self._cache_ttl_s, known)
            return known

    async def _resolve(self, lookup: Lookup) -> frozenset[Address]:
        try:
            found = frozenset(map(ipaddress.ip_address, await lookup.addresses(self._lookup_timeout_s)))
        except (NoSuchName, ResolverFailed) as error:
            if lookup.host not in self._unresolved:
                log.warning("trusted host does not resolve", host=lookup.host, reason=str(error))
                self._unresolved.add(lookup.host)
            return frozenset()
        self._unresolved.discard(lookup.host)
        return found
