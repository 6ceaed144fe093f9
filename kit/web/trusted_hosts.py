"""Places from which changes need no token, beyond fixed networks: the host of this container, and hosts by name."""

import asyncio
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
# What container engines put into every container.
CONTAINER_MARKS = (".dockerenv", "run/.containerenv")
ROOT = Path("/")

# A name's addresses are kept this long, in seconds: what another container has got since must not be trusted.
KEPT_S = 2.0
LOOKUP_S = 1.0

_HOST_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


def is_network(place: str) -> bool:
    """Whether `place` is neither `docker-host` nor a host name."""
    return not _HOST_NAME.fullmatch(place)


def check_place(place: str) -> None:
    """Raise ValueError unless `place` is a network, `docker-host` or a host name."""
    if is_network(place):
        ipaddress.ip_network(place)


def networks_of(places: Iterable[str]) -> list[Network]:
    """The networks among `places`. `docker-host` is one of a single address, or none; it is read from this system."""
    networks: list[Network] = []
    for place in places:
        if place == DOCKER_HOST:
            networks += docker_host()
        elif is_network(place):
            networks.append(ipaddress.ip_network(place))
    return networks


def hosts_of(places: Iterable[str]) -> "TrustedHosts":
    """The host names among `places`."""
    return TrustedHosts(place for place in places if place != DOCKER_HOST and not is_network(place))


def docker_host() -> list[Network]:
    """This container's default gateway: requests through a port published on the host's loopback come from there.

    Nobody outside a container, where that is the router of the whole network; and nobody where there is no way out.
    """
    if not any((ROOT / mark).exists() for mark in CONTAINER_MARKS):
        reason = "this is no container"
    else:
        gateway = _default_gateway()
        if gateway is not None:
            return [ipaddress.IPv4Network(gateway)]
        reason = "this container has no default route"
    log.warning("docker-host in ADMIN_TRUSTED_NETWORKS is nobody here", reason=reason)
    return []


def _default_gateway() -> ipaddress.IPv4Address | None:
    try:
        table = (ROOT / "proc/net/route").read_text(encoding="ascii")
    except OSError:
        return None
    return next((route.gateway for route in default_routes(table) if int(route.gateway)), None)


class TrustedHosts:
    """Hosts by name, looked up when somebody asks. What does not resolve is trusted by nobody."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lookups = [Lookup(name) for name in names]
        self._known: dict[str, tuple[float, frozenset[Address]]] = {}
        self._lock = asyncio.Lock()

    async def include(self, client: str) -> bool:
        """Whether the address `client` is one of theirs now."""
        address = address_of(client)
        if address is None:
            return False
        for lookup in self._lookups:
            if address in await self._addresses(lookup):
                return True
        return False

    async def _addresses(self, lookup: Lookup) -> frozenset[Address]:
        async with self._lock:  # many may ask at once, the resolver is asked by one
            until, known = self._known.get(lookup.host, (0.0, frozenset[Address]()))
            if time.monotonic() >= until:
                known = await self._look(lookup)
                self._known[lookup.host] = (time.monotonic() + KEPT_S, known)
            return known

    async def _look(self, lookup: Lookup) -> frozenset[Address]:
        try:
            return frozenset(ipaddress.ip_address(address) for address in await lookup.addresses(LOOKUP_S))
        except (NoSuchName, ResolverFailed) as error:
            log.warning("a host of ADMIN_TRUSTED_NETWORKS does not resolve", host=lookup.host, reason=str(error))
            return frozenset()
