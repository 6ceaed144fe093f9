"""Access checks on relayed and own routes, and what a backend sees of a client."""

import pytest

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import error_code, post

SECRETS = {
    "Authorization": "Bearer client-key",
    "Cookie": "session=1",
    "X-Api-Key": "client-key",
    "Proxy-Authorization": "Basic x",
    "X-Served-By": "forged",
    "X-Attempts": "9",
    "TE": "trailers",
    "X-Custom": "kept",
    "Accept-Encoding": "gzip",
}


async def test_backend_sees_no_secrets(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """Client credentials and hop-by-hop headers are removed; the backend gets its own key and all other headers."""
    backend = await start_backend(key="backend-key")
    gateway = await start_gateway(backend, backend_keys="llm-primary=backend-key")
    answer = await gateway.http.post("/v1/chat/completions", json={"model": "qwen"}, headers=SECRETS)
    assert answer.status_code == 200
    (seen,) = backend.requests
    text = str(seen.headers)
    for secret in ("client-key", "session=1", "Basic", "forged", "gzip"):
        assert secret not in text
    assert seen.header("authorization") == "Bearer backend-key"
    assert seen.header("x-custom") == "kept"
    assert seen.header("host") == f"127.0.0.1:{backend.port}"
    assert len([name for name, _ in seen.headers if name == "host"]) == 1
    assert answer.headers["x-served-by"] == "llm-primary"
    assert answer.headers.get_list("x-request-id") == [seen.header("x-request-id")]


async def test_request_id_is_forwarded_and_returned(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """An invalid one is replaced."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    answer = await gateway.http.post("/v1/chat/completions", json={}, headers={"x-request-id": "my-id"})
    assert answer.headers["x-request-id"] == backend.requests[0].header("x-request-id") == "my-id"
    answer = await gateway.http.post("/v1/chat/completions", json={}, headers={"x-request-id": "x" * 200})
    assert len(answer.headers["x-request-id"]) == 16


RELAYED = ["/v1/chat/completions", "/v1/embeddings", "/v1/audio/transcriptions", "/tokenize", "/detokenize"]


@pytest.mark.parametrize("path", RELAYED)
@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, False),
        ({"Authorization": "Bearer wrong"}, False),
        ({"Authorization": "Basic one"}, False),
        ({"Authorization": "Bearer one"}, True),
        ({"Authorization": "bearer two"}, True),
        ({"x-api-key": "one"}, True),
        ({"x-api-key": "wrong"}, False),
    ],
)
async def test_keys_on_relayed_routes(
    start_backend: StartBackend, start_gateway: StartGateway, path: str, headers: dict[str, str], passes: bool
) -> None:
    """With keys set, relayed routes require one, also outside /v1, before the body is read."""
    gateway = await start_gateway(await start_backend(), gateway_api_keys="one,two")
    answer = await gateway.http.post(path, content=b"nonsense", headers=headers)
    assert (answer.status_code != 401) is passes
    if not passes:
        assert error_code(answer) == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_keys_on_own_routes(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """/v1/models requires a key; on this machine, routes of operators and health checks do not."""
    gateway = await start_gateway(await start_backend(), gateway_api_keys="one")
    assert (await gateway.http.get("/v1/models")).status_code == 401
    for headers, status in (
        ({"Authorization": "Bearer one"}, 200),
        ({"x-api-key": "one"}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"Authorization": "Bearer wrong", "x-api-key": "one"}, 401),
    ):
        assert (await gateway.http.get("/v1/models", headers=headers)).status_code == status
    for path in ("/health", "/services", "/metrics"):
        assert (await gateway.http.get(path)).status_code == 200


async def test_request_without_key_is_refused_before_its_body(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(await start_backend(), gateway_api_keys="one")
    head = post(b"x" * 1_000_000, "Expect: 100-continue").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    answer = await gateway.send_raw(head)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/services"])
async def test_rebound_host_and_foreign_origin_get_403(
    start_backend: StartBackend, start_gateway: StartGateway, path: str
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    method = "POST" if path.startswith("/v1") else "GET"
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        answer = await gateway.http.request(method, path, content=b"{}", headers=headers)
        assert answer.status_code == 403
    assert not backend.requests


async def test_allowed_origin_gets_cors_headers(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """On relayed responses and errors, after a preflight."""
    gateway = await start_gateway(await start_backend(), allowed_origins=("https://chat.example.org",))
    headers = {"Origin": "https://chat.example.org"}
    preflight = headers | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    asked = await gateway.http.options("/v1/chat/completions", headers=preflight)
    assert asked.status_code == 200
    for model in ("qwen", "unknown"):
        answer = await gateway.http.post("/v1/chat/completions", json={"model": model}, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example.org"
        assert "x-served-by" in answer.headers["access-control-expose-headers"]
    plain = await gateway.chat("qwen")
    assert "access-control-allow-origin" not in plain.headers


async def test_drain_needs_the_admin_token_off_loopback(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(await start_backend(), admin_trusted_networks=("10.0.0.0/8",), admin_token="t0k")
    assert (await gateway.http.post("/services/llm-primary/drain")).status_code == 401
    answer = await gateway.http.post("/services/llm-primary/drain", headers={"Authorization": "Bearer t0k"})
    assert answer.json()["state"] == "draining"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/embeddings", 405),
        ("POST", "/v1/nothing", 404),
        ("POST", "/v1/chat%2Fcompletions", 404),
        ("POST", "/v1/models", 405),
        ("POST", "/health", 405),
    ],
)
async def test_other_methods_and_paths_reach_no_backend(
    start_backend: StartBackend, start_gateway: StartGateway, method: str, path: str, status: int
) -> None:
    """The application responds, with the error envelope."""
    backend = await start_backend()
    gateway = await start_gateway(backend)
    answer = await gateway.http.request(method, path, content=b"{}")
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert not backend.requests


async def test_absolute_target_is_forwarded_in_origin_form(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    backend = await start_backend()
    gateway = await start_gateway(backend)
    line = post({"model": "qwen"}, "Connection: close", path="http://localhost/v1/chat/completions?x=1")
    assert b"200 OK" in await gateway.send_raw(line)
    assert backend.requests[0].target == "/v1/chat/completions?x=1"
