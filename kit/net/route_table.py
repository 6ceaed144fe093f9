"""The kernel's IPv4 routes from /proc/net/route. Standard library only: the edge image has nothing else."""

import ipaddress
import sys
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class DefaultRoute:
    """A default route: its interface and its router (0.0.0.0: none, every address is on the link)."""

    interface: str
    gateway: ipaddress.IPv4Address


def default_routes(table: str) -> Iterator[DefaultRoute]:
    """Yield the default routes (destination and mask 0) in the text of /proc/net/route, in its order.

    Columns: Iface, Destination, Gateway, Flags, RefCnt, Use, Metric, Mask; addresses in hex, in host byte order.
    """
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 7 and int(columns[1], 16) == int(columns[7], 16) == 0:
            gateway = int(columns[2], 16).to_bytes(4, sys.byteorder)
            yield DefaultRoute(columns[0], ipaddress.IPv4Address(gateway))
