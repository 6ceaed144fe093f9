"""The network interface on which published ports arrive."""

import fcntl
import socket
import struct
from dataclasses import dataclass

from kit.net.route_table import default_routes

SIOCGIFADDR = 0x8915  # netdevice(7)
_NAME_LENGTH = 15


class NoFront(Exception):
    """No network of this container publishes ports."""


@dataclass(frozen=True)
class Interface:
    """A network interface with its IPv4 address."""

    name: str
    address: str


def find_front(route_table: str) -> Interface:
    """Return the interface of the default route: internal networks have none, so it is the one that publishes ports.

    `route_table` is the text of /proc/net/route. Raises NoFront.
    """
    route = next(default_routes(route_table), None)
    if route is None:
        raise NoFront("No default route: the network of the published ports must not be internal.")
    return Interface(route.interface, _address(route.interface))


def _address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        interface = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:_NAME_LENGTH]))
    return socket.inet_ntoa(interface[20:24])
