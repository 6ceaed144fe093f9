"""Images by URL: only from allowed hosts with public addresses or in allowed networks."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any

import pytest

from kit.config.settings import SettingsError, load_settings
from kit.errors import InvalidRequest, PayloadTooLarge
from services.llm.images.decoding import ImageLimits
from services.llm.images.source import AllowedSources, ImageSource
from services.llm.settings import LlmSettings

LIMITS = ImageLimits(count=2, mb=1, megapixels=1)
LOOPBACK = (ip_network("127.0.0.0/8"),)


class ImageServer(BaseHTTPRequestHandler):
    """Serves what the path requests, and records the requests."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.headers["host"], self.path, dict(self.headers)))  # type: ignore[attr-defined]
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("location", rest if "://" in rest else f"/{rest}")
            self.send_header("content-length", "0")
            self.end_headers()
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(b"x" * 100_000)
        else:
            body = b"x" * 2_000_000 if kind == "large" else b"an image"
            self.send_response(404 if kind == "missing" else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageServer)
    server.seen = []  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients disconnect on purpose
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """DNS records by name: each lookup uses the next one; the last one stays."""
    records: dict[str, list[str]] = {"images.test": ["127.0.0.1"]}

    async def getaddrinfo(_loop: object, host: str, *_: Any, **__: Any) -> list[Any]:
        addresses = records.get(host)
        if addresses is None:
            try:
                return [(None, None, None, "", (socket.inet_ntoa(socket.inet_aton(host)), 0))]
            except OSError:
                raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [(None, None, None, "", (one, 0)) for one in address.split()]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return records


async def read(server: ThreadingHTTPServer, path: str, allowed: AllowedSources, host: str = "images.test") -> bytes:
    source = ImageSource(LIMITS, allowed)
    try:
        return await source.read(f"http://{host}:{server.server_port}/{path}")
    finally:
        await source.aclose()


def requested_paths(server: ThreadingHTTPServer) -> list[str]:
    return [path for _, path, _ in server.seen]  # type: ignore[attr-defined]


LOCAL = AllowedSources(["images.test"], LOOPBACK)


async def test_image_is_fetched_from_the_checked_address(
    server: ThreadingHTTPServer, names: dict[str, list[str]]
) -> None:
    """DNS rebinding has no effect: there is only one lookup."""
    names["images.test"] = ["127.0.0.1", "203.0.113.9"]
    assert await read(server, "a.png", LOCAL) == b"an image"
    ((host, path, headers),) = server.seen  # type: ignore[attr-defined]
    assert (host, path) == (f"images.test:{server.server_port}", "/a.png")
    assert headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization"} & {name.lower() for name in headers}


@pytest.mark.parametrize("url", ["http://images.test/a.png", "HTTPS://example.org/a.png"])
async def test_nothing_is_fetched_without_image_hosts(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"data URI.*IMAGE_HOSTS"):
        await ImageSource(LIMITS, AllowedSources()).read(url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "", "ftp://images.test/a.png", "a.png"])
async def test_other_schemes_are_rejected(url: str) -> None:
    with pytest.raises(InvalidRequest, match="data URI"):
        await ImageSource(LIMITS, LOCAL).read(url)


@pytest.mark.parametrize(
    "host", ["evil.test", "images.test.evil.test", "images.test@evil.test", "evil.test#images.test", "xn--images.test"]
)
async def test_other_hosts_are_rejected_without_a_request(
    server: ThreadingHTTPServer, names: dict[str, list[str]], host: str
) -> None:
    names[host] = ["127.0.0.1"]
    with pytest.raises(InvalidRequest, match="IMAGE_HOSTS") as refused:
        await read(server, "a.png", LOCAL, host)
    assert refused.value.code == "image_url_not_allowed"
    assert requested_paths(server) == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.5", "172.17.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "::1", "fd00::1", "fe80::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "8.8.8.8 10.0.0.5",
     "64:ff9b:1::7f00:1", "::10.0.0.1", "::ffff:0:7f00:1", "fec0::1"],
)  # fmt: skip
async def test_allowed_host_with_a_private_address_is_rejected(
    server: ThreadingHTTPServer, names: dict[str, list[str]], address: str
) -> None:
    """One private address of several is enough."""
    names["images.test"] = [address]
    with pytest.raises(InvalidRequest, match="private network"):
        await read(server, "a.png", AllowedSources(["images.test"]))
    assert requested_paths(server) == []


@pytest.mark.parametrize(
    "address",
    [
        # https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
        "0.1.2.3", "10.255.255.255", "100.127.255.255", "127.255.255.254", "169.254.0.1", "172.31.255.255",
        "192.0.0.8", "192.0.0.170", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.255.255",
        "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.251",
        "239.255.255.250", "240.0.0.1", "255.255.255.255",
        # IPv4 in IPv6: mapped, compatible, translated, NAT64 with both prefixes, 6to4, Teredo, ISATAP
        "::ffff:10.0.0.1", "::ffff:0a00:1", "::10.0.0.1", "::7f00:1", "::8.8.8.8", "::ffff:0:7f00:1",
        "::ffff:0:808:808", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1",
        "64:ff9b:1::808:808", "64:ff9b:1:ffff::1", "2002:7f00:1::1", "2002:a00:1::1", "2002:808:808::1",
        "2001:0:7f00:1::1", "2001::1", "fe80::5efe:10.0.0.1",
        # https://www.iana.org/assignments/iana-ipv6-special-registry, and what is not global unicast
        "::", "::1", "100::1", "100:0:0:1::1", "2001:1::1", "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1",
        "2001:20::1", "2001:30::1", "2001:1ff:ffff::1", "2001:db8::1", "2620:4f:8000::1", "3fff::1", "3fff:fff::1",
        "4000::1", "5f00::1", "fc00::1", "fdff:ffff::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "feff::1",
        "ff02::1", "ff0e::1", "1.2.3", "localhost", "",
    ],
)  # fmt: skip
def test_special_purpose_addresses_are_not_public(address: str) -> None:
    """By IANA's registries, whatever form embeds a private address; one in IMAGE_NETWORKS only if that is listed."""
    assert not AllowedSources().allows_address(address)
    assert not AllowedSources(networks=[ip_network("10.1.0.0/16"), ip_network("fd01::/16")]).allows_address(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "192.0.1.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111",
                "2001:200::1", "2a00:1450::1", "2003::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)  # fmt: skip
def test_public_addresses_are_accepted(address: str) -> None:
    """Also as DNS64 synthesizes them for every IPv4 address in a network that has only IPv6 (RFC 6147)."""
    assert AllowedSources().allows_address(address)


def test_allowed_networks_are_accepted() -> None:
    assert AllowedSources(networks=[ip_network("10.1.0.0/16")]).allows_address("64:ff9b::10.1.2.3")
    assert AllowedSources(networks=[ip_network("64:ff9b:1::/48")]).allows_address("64:ff9b:1::10.1.2.3")
    assert AllowedSources(networks=[ip_network("10.1.0.0/16")]).allows_address("10.1.2.3")
    assert not AllowedSources(networks=[ip_network("10.1.0.0/16")]).allows_address("10.2.0.1")


def test_wildcard_matches_subdomains_only() -> None:
    allowed = AllowedSources(["*.example.org"])
    assert allowed.allows_host("a.b.example.org")
    assert not allowed.allows_host("example.org")
    assert not allowed.allows_host("evilexample.org")


async def test_redirect_to_an_allowed_host_is_followed(
    server: ThreadingHTTPServer, names: dict[str, list[str]]
) -> None:
    names["cdn.test"] = ["127.0.0.1"]
    allowed = AllowedSources(["images.test", "cdn.test"], LOOPBACK)
    assert await read(server, f"to/http://cdn.test:{server.server_port}/a.png", allowed) == b"an image"
    assert await read(server, "to/a.png", allowed) == b"an image"


async def test_every_redirect_is_checked(server: ThreadingHTTPServer, names: dict[str, list[str]]) -> None:
    """Another host; an allowed host with a private address; the same host after its address became private."""
    port = server.server_port
    names["cdn.test"] = ["10.0.0.5"]
    allowed = AllowedSources(["images.test", "cdn.test"], LOOPBACK)
    for target, message in [
        (f"http://evil.test:{port}/a.png", "IMAGE_HOSTS"),
        (f"http://cdn.test:{port}/a.png", "private network"),
        ("file:///etc/passwd", "IMAGE_HOSTS"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            await read(server, f"to/{target}", allowed)
    names["images.test"] = ["127.0.0.1", "169.254.169.254"]
    with pytest.raises(InvalidRequest, match="private network"):
        await read(server, "to/a.png", allowed)
    assert not [path for path in requested_paths(server) if not path.startswith("/to/")]


async def test_redirects_are_limited(server: ThreadingHTTPServer, names: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="more than 3 redirects"):
        await read(server, "to/to/to/to/to/a.png", LOCAL)


@pytest.mark.parametrize("path", ["large/a.png", "endless/a.png"])
async def test_large_images_are_not_read_completely(
    server: ThreadingHTTPServer, names: dict[str, list[str]], path: str
) -> None:
    with pytest.raises(PayloadTooLarge, match="MAX_IMAGE_MB"):
        await read(server, path, LOCAL)


async def test_failed_fetch_has_the_reason(server: ThreadingHTTPServer, names: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="404"):
        await read(server, "missing/a.png", LOCAL)
    with pytest.raises(InvalidRequest, match=r"unknown host gone\.test"):
        await read(server, "a.png", AllowedSources(["gone.test"]), "gone.test")
    server.server_close()
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        await read(server, "a.png", LOCAL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_hosts": "https://images.test"}, "IMAGE_HOSTS"),
        ({"image_hosts": "images.test/pictures"}, "IMAGE_HOSTS"),
        ({"image_networks": "10.1.0.0/99"}, "IMAGE_NETWORKS"),
    ],
)
def test_invalid_image_settings_fail_at_start(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(LlmSettings, **settings)


def test_allowed_sources_are_parsed_from_the_settings() -> None:
    settings = load_settings(LlmSettings, image_hosts="Images.Test, *.example.org", image_networks="10.1.0.0/16")
    assert settings.image_hosts == ("images.test", "*.example.org")
    assert settings.image_networks == ("10.1.0.0/16",)
