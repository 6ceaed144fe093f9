"""Images by address: only from hosts that were named, only where these are public or in a network that was named."""

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
from services.llm.image_source import ImageSource, Places
from services.llm.images import ImageLimits
from services.llm.settings import LlmSettings

LIMITS = ImageLimits(count=2, mb=1, megapixels=1)
LOOPBACK = (ip_network("127.0.0.0/8"),)


class Shelf(BaseHTTPRequestHandler):
    """Answers with what its path asks for, and remembers who was asked for what."""

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
def shelf() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    server.seen = []  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave in the middle are meant to
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the resolver knows: each question takes the next answer, the last one stays."""
    known: dict[str, list[str]] = {"images.test": ["127.0.0.1"]}

    async def getaddrinfo(_loop: object, host: str, *_: Any, **__: Any) -> list[Any]:
        answers = known.get(host)
        if answers is None:
            try:
                return [(None, None, None, "", (socket.inet_ntoa(socket.inet_aton(host)), 0))]
            except OSError:
                raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(None, None, None, "", (one, 0)) for one in answer.split()]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return known


async def read(shelf: ThreadingHTTPServer, path: str, places: Places, host: str = "images.test") -> bytes:
    source = ImageSource(LIMITS, places)
    try:
        return await source.read(f"http://{host}:{shelf.server_port}/{path}")
    finally:
        await source.aclose()


def asked(shelf: ThreadingHTTPServer) -> list[str]:
    return [path for _, path, _ in shelf.seen]  # type: ignore[attr-defined]


HERE = Places(["images.test"], LOOPBACK)


async def test_an_image_is_fetched_by_its_name_from_the_address_that_was_checked(
    shelf: ThreadingHTTPServer, names: dict[str, list[str]]
) -> None:
    """A second question would be answered otherwise; it is not asked."""
    names["images.test"] = ["127.0.0.1", "203.0.113.9"]
    assert await read(shelf, "a.png", HERE) == b"an image"
    ((host, path, headers),) = shelf.seen  # type: ignore[attr-defined]
    assert (host, path) == (f"images.test:{shelf.server_port}", "/a.png")
    assert headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization"} & {name.lower() for name in headers}


@pytest.mark.parametrize("url", ["http://images.test/a.png", "HTTPS://example.org/a.png"])
async def test_nothing_is_fetched_unless_hosts_are_named(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"data URI.*IMAGE_HOSTS"):
        await ImageSource(LIMITS, Places()).read(url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "", "ftp://images.test/a.png", "a.png"])
async def test_nothing_but_http_and_data_uris_is_read(url: str) -> None:
    with pytest.raises(InvalidRequest, match="data URI"):
        await ImageSource(LIMITS, HERE).read(url)


@pytest.mark.parametrize(
    "host", ["evil.test", "images.test.evil.test", "images.test@evil.test", "evil.test#images.test", "xn--images.test"]
)
async def test_other_hosts_are_refused_unasked(
    shelf: ThreadingHTTPServer, names: dict[str, list[str]], host: str
) -> None:
    names[host] = ["127.0.0.1"]
    with pytest.raises(InvalidRequest, match="IMAGE_HOSTS") as refused:
        await read(shelf, "a.png", HERE, host)
    assert refused.value.code == "image_url_not_allowed"
    assert asked(shelf) == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.5", "172.17.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "::1", "fd00::1", "fe80::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "8.8.8.8 10.0.0.5"],
)  # fmt: skip
async def test_a_named_host_in_a_private_network_is_refused(
    shelf: ThreadingHTTPServer, names: dict[str, list[str]], address: str
) -> None:
    """By the address that its name has now, whichever it had when it was named; one of several is enough."""
    names["images.test"] = [address]
    with pytest.raises(InvalidRequest, match="private network"):
        await read(shelf, "a.png", Places(["images.test"]))
    assert asked(shelf) == []


def test_public_addresses_and_named_networks_are_taken() -> None:
    assert Places().has_address("8.8.8.8")
    assert Places().has_address("2606:4700::1111")
    assert Places(networks=[ip_network("10.1.0.0/16")]).has_address("10.1.2.3")
    assert not Places(networks=[ip_network("10.1.0.0/16")]).has_address("10.2.0.1")


def test_a_star_stands_for_all_below_a_name_and_not_for_the_name() -> None:
    places = Places(["*.example.org"])
    assert places.has_host("a.b.example.org")
    assert not places.has_host("example.org")
    assert not places.has_host("evilexample.org")


async def test_a_redirect_within_the_named_hosts_is_followed(
    shelf: ThreadingHTTPServer, names: dict[str, list[str]]
) -> None:
    names["cdn.test"] = ["127.0.0.1"]
    places = Places(["images.test", "cdn.test"], LOOPBACK)
    assert await read(shelf, f"to/http://cdn.test:{shelf.server_port}/a.png", places) == b"an image"
    assert await read(shelf, "to/a.png", places) == b"an image"


async def test_every_redirect_is_asked_the_same_questions(
    shelf: ThreadingHTTPServer, names: dict[str, list[str]]
) -> None:
    """A host that was not named; one that was and is private; the same host, whose address is private by then."""
    port = shelf.server_port
    names["cdn.test"] = ["10.0.0.5"]
    places = Places(["images.test", "cdn.test"], LOOPBACK)
    for target, says in [
        (f"http://evil.test:{port}/a.png", "IMAGE_HOSTS"),
        (f"http://cdn.test:{port}/a.png", "private network"),
        ("file:///etc/passwd", "IMAGE_HOSTS"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            await read(shelf, f"to/{target}", places)
    names["images.test"] = ["127.0.0.1", "169.254.169.254"]
    with pytest.raises(InvalidRequest, match="private network"):
        await read(shelf, "to/a.png", places)
    assert not [path for path in asked(shelf) if not path.startswith("/to/")]


async def test_redirects_end(shelf: ThreadingHTTPServer, names: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest, match="redirected more than"):
        await read(shelf, "to/to/to/to/to/a.png", HERE)


@pytest.mark.parametrize("path", ["large/a.png", "endless/a.png"])
async def test_too_many_bytes_are_not_read(shelf: ThreadingHTTPServer, names: dict[str, list[str]], path: str) -> None:
    with pytest.raises(PayloadTooLarge, match="MAX_IMAGE_MB"):
        await read(shelf, path, HERE)


async def test_an_image_that_is_not_there_is_told_with_the_reason(
    shelf: ThreadingHTTPServer, names: dict[str, list[str]]
) -> None:
    with pytest.raises(InvalidRequest, match="404"):
        await read(shelf, "missing/a.png", HERE)
    with pytest.raises(InvalidRequest, match=r"no host gone\.test"):
        await read(shelf, "a.png", Places(["gone.test"]), "gone.test")
    shelf.server_close()
    with pytest.raises(InvalidRequest, match="cannot be fetched"):
        await read(shelf, "a.png", HERE)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_hosts": "https://images.test"}, "IMAGE_HOSTS"),
        ({"image_hosts": "images.test/pictures"}, "IMAGE_HOSTS"),
        ({"image_networks": "10.1.0.0/99"}, "IMAGE_NETWORKS"),
    ],
)
def test_impossible_places_are_told_at_start(settings: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(LlmSettings, **settings)


def test_places_are_read_from_the_settings() -> None:
    settings = load_settings(LlmSettings, image_hosts="Images.Test, *.example.org", image_networks="10.1.0.0/16")
    assert settings.image_hosts == ("images.test", "*.example.org")
    assert settings.image_networks == ("10.1.0.0/16",)
