"""Public addresses: globally reachable unicast, by IANA's special-purpose address registries.

https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
"""

import ipaddress

from kit.web.guard import Address, address_of

# Of IPv6, IANA has assigned only this block as global unicast. Outside of it are the unspecified and loopback
# addresses, all forms that embed IPv4 (compatible ::/96, mapped ::ffff:0:0/96, translated ::ffff:0:0:0/96, NAT64
# 64:ff9b::/96 and 64:ff9b:1::/48), the discard prefix 100::/64, SRv6 5f00::/16, unique local fc00::/7, link-local
# fe80::/10, site-local fec0::/10 and multicast ff00::/8.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID, anycast
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds IPv4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# RFC 6052: where DNS64 synthesizes addresses, every name with an IPv4 address has one here.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def read_address(text: str) -> Address | None:
    """Parse an address; one that stands for an IPv4 address (mapped, NAT64) as that; None if invalid."""
    address = address_of(text)
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address


def is_public(address: Address) -> bool:
    """Return whether the address is globally reachable and unicast, and embeds no other address."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _SPECIAL_V6)
