"""Access to every route of the gateway: each is in exactly one class, by behaviour and in docs/security.md."""

import re
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from gateway.endpoints import ENDPOINTS
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import RunningGateway, error_code
from tests.support.resolver import GONE, FakeResolver

SECURITY = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")
KEY, TOKEN = {"Authorization": "Bearer k"}, {"Authorization": "Bearer t"}
# `test_access.py` covers the relayed routes' keys in detail.
OPEN = {"/", "/health", "/dashboard", "/docs", "/openapi.json"}
STATUS = {"/services", "/gpu-stats", "/metrics"}
BY_KEY = {"/v1/models", "/v1/models/{model:path}", "/explain", *(endpoint.path for endpoint in ENDPOINTS)}
ADMIN = {"/services/{name}/drain", "/services/{name}/resume"}
CLASSES = {"open": OPEN, "status": STATUS, "key": BY_KEY, "admin": ADMIN}
# Whether a request passes without credentials, with a key, and with the admin token.
PASSES = {
    "open": (True, True, True),
    "status": (False, True, True),
    "key": (False, True, False),
    "admin": (False, False, True),
}
# No address that a test has.
ELSEWHERE = ("10.0.0.0/8",)


def routes_of(gateway: RunningGateway) -> list[tuple[str, str]]:
    """(method, path) of every route of the application."""
    app = gateway.server.config.app
    contexts = list(iter_route_contexts(app.routes))  # type: ignore[union-attr]  # a FastAPI application
    return [(method, str(one.path)) for one in contexts for method in sorted((one.methods or set()) - {"HEAD"})]


async def passes(gateway: RunningGateway, method: str, path: str, headers: dict[str, str]) -> bool:
    answer = await gateway.http.request(method, re.sub(r"{\w+(:\w+)?}", "llm-primary", path), headers=headers)
    return answer.status_code != 401


async def test_every_route_is_in_one_class(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """With keys set, asked from another machine: open / status / key / admin."""
    gateway = await start_gateway(
        await start_backend(), gateway_api_keys="k", admin_token="t", admin_trusted_networks=ELSEWHERE
    )
    routes = routes_of(gateway)
    assert {path for _, path in routes} == set().union(*CLASSES.values())
    assert sum(map(len, CLASSES.values())) == len(set().union(*CLASSES.values()))
    for method, path in routes:
        found = tuple([await passes(gateway, method, path, headers) for headers in ({}, KEY, TOKEN)])
        assert [path in CLASSES[name] for name, expected in PASSES.items() if expected == found] == [True], path


async def test_status_is_open_on_the_machine_itself(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """As the quick reference shows; not for requests that a proxy on it forwards."""
    gateway = await start_gateway(await start_backend(), gateway_api_keys="k")
    for path in STATUS:
        assert (await gateway.http.get(path)).status_code == 200
        refused = await gateway.http.get(path, headers={"X-Forwarded-For": "203.0.113.9"})
        assert (refused.status_code, error_code(refused)) == (401, "invalid_api_key")
        assert (await gateway.http.get(path, headers={"X-Forwarded-For": "203.0.113.9", **KEY})).status_code == 200
        assert (await gateway.http.head(path, headers={"X-Forwarded-For": "203.0.113.9"})).status_code == 401


async def test_status_is_open_without_keys(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(await start_backend(), admin_trusted_networks=ELSEWHERE)
    for path in STATUS:
        assert (await gateway.http.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("trusted", "headers", "status"),
    [
        (("127.0.0.0/8",), {}, 200),
        (("prometheus",), {}, 200),
        (("127.0.0.0/8", "prometheus"), {"X-Forwarded-For": "127.0.0.1"}, 401),
        (("0.0.0.0/0",), {"X-Forwarded-For": "203.0.113.9"}, 200),
        (("grafana", "10.0.0.0/8"), {}, 401),
    ],
)
async def test_status_is_opened_by_a_setting(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
    trusted: tuple[str, ...],
    headers: dict[str, str],
    status: int,
) -> None:
    """STATUS_TRUSTED_NETWORKS; a name such as that of the compose files' Prometheus, also beyond loopback."""
    resolver = FakeResolver(monkeypatch)
    resolver.answers |= {"prometheus": ["127.0.0.1"], "grafana": GONE}
    gateway = await start_gateway(
        await start_backend(),
        gateway_api_keys="k",
        cluster_bind="192.168.1.5",
        admin_trusted_networks=ELSEWHERE,
        status_trusted_networks=trusted,
    )
    for path in STATUS:
        assert (await gateway.http.get(path, headers=headers)).status_code == status
    # Nothing else is opened.
    assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 401
    assert (await gateway.http.post("/services/llm-primary/drain", headers=headers)).status_code == 403


def test_documentation_names_every_class() -> None:
    """The table of entry points of docs/security.md."""
    (table,) = re.findall(r"^## Access\n\n(.*?)\n\n", SECURITY, re.MULTILINE | re.DOTALL)
    rows = [set(re.findall(r"`(/[^`]*)`", row)) for row in table.splitlines()]
    assert OPEN in rows
    assert STATUS in rows
    assert {"/v1", "/explain"} in rows
