"""A path with a slash at its end is served as if without: no redirect, which behind a TLS proxy would lead to http://."""

import pytest

from gateway.endpoints import ENDPOINTS
from tests.gateway.conftest import StartBackend, StartGateway

TLS = {"x-forwarded-proto": "https", "x-forwarded-host": "gpu.example.org"}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("slashes", ["/", "//", "/?a=b/", "?a=b/"])
async def test_relayed_path(start_backend: StartBackend, start_gateway: StartGateway, slashes: str) -> None:
    """The backend gets the path without the slash, or would redirect itself. Twice: parsed, then with a known head."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    for target in (CHAT + slashes, f"{gateway.url}{CHAT}{slashes}"):
        for _ in range(2):
            answer = await gateway.http.post(target, json={"model": "qwen"}, headers=TLS)
            assert answer.status_code == 200, answer.text
            assert backend.requests[-1].target == CHAT + slashes.lstrip("/")


async def test_every_relayed_route_is_found(start_gateway: StartGateway) -> None:
    """Its answer without a backend is the same."""
    gateway = await start_gateway(services="a=http://127.0.0.1:9")
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{model}", "whisper")
        headers = TLS | {"x-request-id": "one"}
        answers = [await gateway.http.post(each, content=b"{}", headers=headers) for each in (path, path + "/")]
        assert answers[0].status_code != 404
        assert answers[1].status_code == answers[0].status_code
        assert answers[1].json() == answers[0].json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/", 200),
        ("GET", "/services/", 200),
        ("GET", "/v1/models/", 200),
        ("GET", "/v1/models/qwen//", 200),
        ("GET", "/docs/", 200),
        ("GET", "/", 200),
        ("GET", "//", 200),
        ("GET", "/nowhere/", 404),
        ("GET", "/v1/chat/completions/", 405),
        ("POST", "/explain/", 200),
    ],
)
async def test_other_paths(
    start_backend: StartBackend, start_gateway: StartGateway, method: str, path: str, status: int
) -> None:
    gateway = await start_gateway(await start_backend())
    answer = await gateway.http.request(method, path, headers=TLS, json={} if method == "POST" else None)
    assert answer.status_code == status
    assert "location" not in answer.headers
