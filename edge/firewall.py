"""The interface of the published ports, and nftables rules that allow connections inwards only."""

import fcntl
import socket
import struct

from edge import EdgeError
from kit.net.route_table import default_routes

SIOCGIFADDR = 0x8915  # netdevice(7)
MAX_NAME_LENGTH = 15


def find_front(route_table: str) -> tuple[str, str]:
    """Return name and IPv4 address of the interface of the default route.

    Internal networks have no default route, so it is the interface of the published ports. `route_table` is the text of
    /proc/net/route. Raises EdgeError if there is none.
    """
    route = next(default_routes(route_table), None)
    if route is None:
        raise EdgeError("No default route: the network of the published ports must not be internal.")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = route.interface.encode()[:MAX_NAME_LENGTH]
        request = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name))
    return route.interface, socket.inet_ntoa(request[20:24])


def rules(front: str) -> str:
    """Return the rules for a container whose interface `front` receives the host's published ports.

    Only packets of established connections leave. Containers on the inner networks cannot connect to this one:
    to the service behind, such a connection would look as if it came from the host.
    See https://wiki.nftables.org/wiki-nftables/index.php/Matching_connection_tracking_stateful_metainformation.
    """
    return f"""\
table inet edge
delete table inet edge
table inet edge {{
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{front}" ct state established,related accept
    oifname "{front}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != {{ "lo", "{front}" }} ct state new drop
  }}
}}
"""
