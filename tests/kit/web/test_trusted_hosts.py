"""Trusted sources: this container's host, and hosts by name."""

import asyncio
from pathlib import Path

import httpx2
import pytest
import structlog
from fastapi import FastAPI

from kit.config.settings import SettingsError, load_settings
from kit.web.app import HttpSettings, admin_only
from kit.web.trusted_hosts import ROOT, TrustedHosts
from tests.kit.served import bare_app
from tests.support.resolver import FAILING, GONE, FakeResolver

ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	000012AC	00000000	0001	0	0	0	0000FFFF	0	0	0
eth0	00000000	010012AC	0003	0	0	0	00000000	0	0	0
"""
HOST = "172.18.0.1"
EDGE = "172.18.0.9"
OTHER = "172.18.0.5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a container's file system, as the program sees it."""
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(ROUTES)
    (tmp_path / ".dockerenv").touch()
    return tmp_path


@pytest.fixture
async def resolver(monkeypatch: pytest.MonkeyPatch) -> FakeResolver:
    """The resolver of the test's loop."""
    return FakeResolver(monkeypatch)


class Site:
    """An application with one route that changes something, asked from any address."""

    def __init__(self, places: str, token: str | None = "t0k", root: Path = ROOT) -> None:
        settings = load_settings(HttpSettings, port=1, admin_trusted_networks=places, admin_token=token)
        self.app: FastAPI = bare_app()
        self.app.add_api_route(
            "/change", self._change, methods=["POST"], dependencies=[admin_only(settings, root=root)]
        )

    async def _change(self) -> None:
        pass

    async def status(self, client: str, **headers: str) -> int:
        transport = httpx2.ASGITransport(self.app, client=(client, 1234))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return (await http.post("/change", headers=headers)).status_code


async def test_docker_host_needs_no_token(root: Path) -> None:
    """Through a port published on the host's loopback, requests come from the default gateway."""
    site = Site("127.0.0.0/8,docker-host", root=root)
    assert await site.status(HOST) == 200
    assert await site.status("::ffff:" + HOST) == 200
    assert await site.status("127.0.0.1") == 200
    for other in (OTHER, "172.18.0.2", "fd00::1", "not an address"):
        assert await site.status(other) == 401
        assert await site.status(other, Authorization="Bearer t0k") == 200


async def test_forwarded_request_from_docker_host_needs_the_token(root: Path, resolver: FakeResolver) -> None:
    resolver.answers["edge"] = [EDGE]
    site = Site("docker-host,edge", root=root)
    for client in (HOST, EDGE):
        assert await site.status(client) == 200
        assert await site.status(client, **{"X-Forwarded-For": "203.0.113.9"}) == 401
        assert await site.status(client, Forwarded="for=127.0.0.1") == 401


@pytest.mark.parametrize("change", ["no container", "no default route", "no table"])
async def test_docker_host_does_not_apply_elsewhere(root: Path, change: str) -> None:
    """Outside a container that address is the network's router. Logged at start."""
    if change == "no container":
        (root / ".dockerenv").unlink()
    elif change == "no default route":
        (root / "proc/net/route").write_text("\n".join(ROUTES.splitlines()[:2]))
    else:
        (root / "proc/net/route").unlink()
    with structlog.testing.capture_logs() as logs:
        site = Site("docker-host", root=root)
    assert [line["event"] for line in logs] == ["trusted docker-host does not apply"]
    assert await site.status(HOST) == 401
    assert await site.status("0.0.0.0") == 401


async def test_host_name_is_trusted_at_its_current_address(resolver: FakeResolver) -> None:
    resolver.answers["edge"] = [EDGE]
    site = Site("edge")
    assert (await site.status(EDGE), await site.status(OTHER)) == (200, 401)
    hosts = TrustedHosts(["edge"], cache_ttl_s=0.0)
    assert (await hosts.include(EDGE), await hosts.include(OTHER)) == (True, False)
    resolver.answers["edge"] = [OTHER]
    assert (await hosts.include(EDGE), await hosts.include(OTHER)) == (False, True)


async def test_slow_name_is_not_trusted(resolver: FakeResolver) -> None:
    resolver.answers["edge"] = [EDGE]
    resolver.hanging["edge"] = asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        assert not await TrustedHosts(["edge"], lookup_timeout_s=0.02).include(EDGE)
    assert [line["host"] for line in logs if "does not resolve" in line["event"]] == ["edge"]


@pytest.mark.parametrize("how", [GONE, FAILING], ids=["gone", "failing"])
async def test_unresolvable_name_is_not_trusted(resolver: FakeResolver, how: Exception) -> None:
    resolver.answers["edge"] = how
    site = Site("edge")
    with structlog.testing.capture_logs() as logs:
        assert await site.status(EDGE) == 401
        assert await site.status(EDGE, Authorization="Bearer t0k") == 200
    assert [line["host"] for line in logs if "does not resolve" in line["event"]] == ["edge"]


async def test_concurrent_requests_share_one_lookup(resolver: FakeResolver) -> None:
    resolver.answers["edge"] = [EDGE]
    site = Site("edge")
    assert set(await asyncio.gather(*(site.status(OTHER) for _ in range(20)))) == {401}
    assert resolver.asked["edge"] == 1


@pytest.mark.parametrize("place", ["10.0.0.0/33", "300.1.1.1", "10.0.0.1/8", "-edge", "a b", "edge/24", "http://edge"])
def test_invalid_entry_is_rejected(place: str) -> None:
    """A network with a typo must not pass as a host name."""
    with pytest.raises(SettingsError, match="ADMIN_TRUSTED_NETWORKS is"):
        load_settings(HttpSettings, port=1, admin_trusted_networks=place)
