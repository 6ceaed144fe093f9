"""The door's decisions: what ROUTES may say, which interface is the front, what HAProxy and the kernel are told."""

from ipaddress import IPv4Address

import pytest

from edge.firewall import rules
from edge.interfaces import NoFront, find_front
from edge.proxy import BadRoute, Route, configuration, parse_routes
from kit.net.route_table import DefaultRoute, default_routes

HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
INSIDE = "eth0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
DEFAULT = "eth1\t00000000\t010013AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"


def test_routes() -> None:
    """Words of HOST:PORT, on one line or several."""
    assert parse_routes("gateway:8080\n  llm-primary:8000") == (Route("gateway", 8080), Route("llm-primary", 8000))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "empty"),
        ("gateway", "'gateway'"),
        ("gateway:http", "'gateway:http'"),
        ("gateway:99999", "'gateway:99999'"),
        ("a;b:8080", "'a;b:8080'"),
        ("gateway:8080 registry:8080", "twice"),
    ],
)
def test_bad_routes(text: str, quoted: str) -> None:
    """What cannot be read is quoted."""
    with pytest.raises(BadRoute, match=quoted):
        parse_routes(text)


def test_front_is_the_interface_of_the_default_route() -> None:
    """Internal networks have no default route."""
    assert list(default_routes(HEADER + INSIDE + DEFAULT)) == [DefaultRoute("eth1", IPv4Address("172.19.0.1"))]


def test_no_front() -> None:
    """On internal networks only there is nothing to publish on."""
    with pytest.raises(NoFront, match="default route"):
        find_front(HEADER + INSIDE)


def test_configuration_listens_on_the_front_only() -> None:
    """Each route is one section bound to the front's address; nothing listens on all addresses."""
    text = configuration(parse_routes("gateway:8080 registry:8090"), "172.19.0.2")
    binds = [line.strip() for line in text.splitlines() if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:8404", "bind 172.19.0.2:8080", "bind 172.19.0.2:8090"]
    assert "server registry registry:8090" in text


def test_rules_let_answers_out_and_nothing_else() -> None:
    """The drop follows the accept of answers, on the front interface by name."""
    lines = [line.strip() for line in rules("eth1").splitlines() if "oifname" in line]
    assert lines == ['oifname "eth1" ct state established,related accept', 'oifname "eth1" drop']
