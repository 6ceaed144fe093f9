"""The edge's decisions: parsing ROUTES, the front interface, HAProxy's configuration, nftables rules."""

from ipaddress import IPv4Address

import pytest

from edge import EdgeError
from edge.firewall import find_front, rules
from edge.proxy import Route, configuration, parse_routes
from kit.net.route_table import DefaultRoute, default_routes

HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
INSIDE = "eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
DEFAULT = "eth1\t00000000\t010013AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"


def test_routes() -> None:
    """HOST:PORT pairs, separated by blanks or newlines."""
    assert parse_routes("gateway:8080\n  llm-primary:8000") == (Route("gateway", 8080), Route("llm-primary", 8000))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "empty"),
        ("gateway", "'gateway'"),
        ("gateway:http", "'gateway:http'"),
        ("gateway:99999", "'gateway:99999'"),
        ("a;b:8080", "'a;b:8080'"),
        ("gateway:8080 registry:8080", "duplicate port"),
    ],
)
def test_bad_routes(text: str, quoted: str) -> None:
    """The message quotes the invalid part."""
    with pytest.raises(EdgeError, match=quoted):
        parse_routes(text)


def test_front_is_the_interface_of_the_default_route() -> None:
    """Internal networks have no default route."""
    assert list(default_routes(HEADER + INSIDE + DEFAULT)) == [DefaultRoute("eth1", IPv4Address("172.19.0.1"))]


def test_no_front() -> None:
    """A container on internal networks only cannot publish ports."""
    with pytest.raises(EdgeError, match="default route"):
        find_front(HEADER + INSIDE)


def test_configuration_listens_on_the_front_only() -> None:
    """Each route is one section bound to the front's address; nothing listens on all addresses."""
    text = configuration(parse_routes("gateway:8080 registry:8090"), "172.19.0.2")
    binds = [line.strip() for line in text.splitlines() if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:8404", "bind 172.19.0.2:8080", "bind 172.19.0.2:8090"]
    assert "server registry registry:8090" in text


def test_rules_let_only_replies_out() -> None:
    """On the front interface, the drop follows the accept of established connections."""
    lines = [line.strip() for line in rules("eth1").splitlines() if "oifname" in line]
    assert lines == ['oifname "eth1" ct state established,related accept', 'oifname "eth1" drop']
