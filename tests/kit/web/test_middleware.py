"""The middleware around every request: ids, refusals, bugs, access log, metrics."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from kit.web.guard import BrowserGuard, KeyRing
from kit.web.metrics import HttpMetrics
from kit.web.middleware import RequestFrame, request_id_from
from tests.kit.served import bare_app

MADE = re.compile(r"[0-9a-f]{16}")


@pytest.mark.parametrize(
    "value", ["a", "req-1", "0f8fad5b-d9cb-469f-a165-70867728950e", "x" * 128, "a b", 'with "quotes"', "a=b;c"]
)
def test_caller_request_id_is_kept(value: str) -> None:
    assert request_id_from(value) == value


@pytest.mark.parametrize(
    "value",
    [None, "", "x" * 129, "a\nb", "a\r\nSet-Cookie: x", "a\tb", "\x00", "\x7f", "é", "模", "\u2028", "\x1b[31m"],
)
def test_invalid_request_id_is_replaced(value: str | None) -> None:
    """Ids go into logs and headers."""
    assert MADE.fullmatch(request_id_from(value))


def app_with_routes(metrics: HttpMetrics, **settings: Any) -> FastAPI:
    app: FastAPI = bare_app(metrics=metrics, **settings)
    state = {"health": 200}
    app.state.health = state

    @app.get("/models/{name}")
    async def model(name: str) -> dict[str, str]:
        return {"name": name}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, str]:
        return {"id": request.state.request_id}

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("a bug with a secret in its text")

    included = APIRouter()
    included.add_api_route("/{name}", model)
    app.include_router(included, prefix="/deep")
    return app


@pytest.fixture
def metrics() -> HttpMetrics:
    return HttpMetrics("test")


@pytest.fixture
def client(metrics: HttpMetrics) -> TestClient:
    return TestClient(app_with_routes(metrics), base_url="http://localhost")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


def counted(metrics: HttpMetrics, method: str, route: str, status: int) -> float | None:
    labels = {"method": method, "route": route, "status": str(status)}
    return metrics.registry.get_sample_value("http_requests_total", labels)


def test_request_id_in_handler_response_and_log(client: TestClient) -> None:
    response = client.get("/v1/models", headers={"X-Request-Id": "mine"})
    assert response.json() == {"id": "mine"}
    assert response.headers["x-request-id"] == "mine"


def test_every_response_has_a_request_id(client: TestClient) -> None:
    answers = [client.get("/v1/models"), client.get("/nowhere"), client.get("/", headers={"Host": "evil.example"})]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(MADE.fullmatch(i) for i in ids)
    assert len(set(ids)) == 3


def test_unexpected_exception_is_a_500_with_request_id(
    client: TestClient, metrics: HttpMetrics, logs: list[Any]
) -> None:
    """The response does not show the cause; the log does."""
    response = client.get("/bug", headers={"X-Request-Id": "follow-me"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal_error"
    assert "follow-me" in response.json()["error"]["message"]
    assert "secret" not in response.text
    bug = next(line for line in logs if line["event"] == "bug")
    assert isinstance(bug["exc_info"], ZeroDivisionError)
    assert (bug["log_level"], bug["path"]) == ("error", "/bug")
    assert counted(metrics, "GET", "/bug", 500) == 1


@pytest.mark.parametrize(
    ("path", "host", "key", "status"),
    [
        ("/v1/models", "localhost", "Bearer k", 200),
        ("/v1/models", "localhost", None, 401),
        ("/v1/models", "localhost", "Bearer other", 401),
        ("/v1/nowhere", "localhost", None, 401),
        ("/%76%31/models", "localhost", None, 401),
        ("/v1/%6dodels", "localhost", None, 401),
        ("/models/x", "localhost", None, 200),
        ("/metrics", "localhost", None, 200),
        ("/v1/models", "evil.example", "Bearer k", 403),
        ("/metrics", "evil.example", None, 403),
    ],
)
def test_host_check_before_key_check(path: str, host: str, key: str | None, status: int) -> None:
    """Keys guard /v1 in every spelling; the Host check guards everything."""
    app = bare_app(keys=["k"])
    app.add_api_route("/v1/models", lambda: {})
    app.add_api_route("/models/{name}", lambda name: {})
    headers = {"Host": host} | ({"Authorization": key} if key else {})
    assert TestClient(app, base_url="http://localhost").get(path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        ("/models/a", "/models/{name}", 200),
        ("/models/b", "/models/{name}", 200),
        ("/deep/c", "/deep/{name}", 200),
        ("/metrics", "/metrics", 200),
        ("/scanner/wp-login.php", "other", 404),
        ("/bug", "/bug", 500),
    ],
)
def test_route_label_is_the_template(
    client: TestClient, metrics: HttpMetrics, path: str, route: str, status: int
) -> None:
    client.get(path)
    assert counted(metrics, "GET", route, status) == 1
    assert metrics.registry.get_sample_value("http_request_seconds_count", {"route": route}) == 1
    assert metrics.registry.get_sample_value("http_requests_in_flight") == 0


def test_unknown_methods_share_one_label(client: TestClient, metrics: HttpMetrics) -> None:
    for method in ("BREW", "PROPFIND", "X" * 50):
        client.request(method, "/models/a")
    assert counted(metrics, "other", "/models/{name}", 405) == 3


def test_access_log_line(client: TestClient, logs: list[Any]) -> None:
    """Never the query, which may contain secrets."""
    client.get("/models/a?token=secret", headers={"X-Request-Id": "one"})
    (line,) = logs
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": "/models/a",
        "status": 200,
        "client": "testclient",
    }


@pytest.mark.parametrize(
    ("path", "status", "quiet"),
    [
        ("/health", 200, True),
        ("/health", 503, True),
        ("/health", 500, False),
        ("/gpu-stats", 200, True),
        ("/metrics", 200, True),
        ("/other", 200, False),
        ("/other", 503, False),
    ],
)
async def test_polls_are_logged_only_on_failure(logs: list[Any], path: str, status: int, quiet: bool) -> None:
    await frame_once(answering(status), path=path)
    assert (not logs) is quiet


@pytest.mark.parametrize(("status", "quiet"), [(503, True), (200, True), (500, False)])
async def test_route_can_mark_a_poll_as_quiet(logs: list[Any], status: int, quiet: bool) -> None:
    answer = answering(status)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["quiet"] = True
        await answer(scope, receive, send)

    await frame_once(app, path="/other")
    assert (not logs) is quiet


def test_rejected_poll_is_logged(client: TestClient, logs: list[Any]) -> None:
    client.get("/health", headers={"Host": "evil.example"})
    assert [line["status"] for line in logs] == [403]


def answering(status: int, **start: Any) -> Any:
    """An ASGI application that answers `status`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, **start})
        await send({"type": "http.response.body"})

    return app


async def frame_once(
    app: Any, *, path: str = "/x", metrics: HttpMetrics | None = None, type_: str = "http"
) -> list[Message]:
    """Run one request through the frame around `app`; returns what was sent."""
    frame = RequestFrame(
        app, metrics=metrics or HttpMetrics("test"), browser=BrowserGuard(), keys=KeyRing([], variable="K")
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": type_, "method": "GET", "path": path, "headers": [(b"host", b"localhost")]}
    await frame(scope, receive, send)
    return sent


async def test_response_without_headers_gets_the_request_id() -> None:
    """ASGI allows an application to omit `headers`."""
    sent = await frame_once(answering(204))
    assert [name for name, _ in sent[0]["headers"]] == [b"x-request-id"]


async def test_other_scopes_pass_unchanged() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    metrics = HttpMetrics("test")
    await frame_once(app, type_="lifespan", metrics=metrics)
    assert "state" not in seen[0]
    assert metrics.registry.get_sample_value("http_requests_in_flight") == 0


async def test_messages_are_not_buffered() -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            passed.append(f"made {number}")
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 2})

    async def send(message: Message) -> None:
        passed.append("sent " + message.get("body", b"head").decode())

    frame = RequestFrame(app, metrics=HttpMetrics("t"), browser=BrowserGuard(), keys=KeyRing([], variable="K"))
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
    await frame(scope, None, send)  # type: ignore[arg-type]  # this application receives nothing
    assert passed == ["sent head", "made 0", "sent 0", "made 1", "sent 1", "made 2", "sent 2"]


async def test_cancelled_before_the_response_counts_as_499() -> None:

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    metrics = HttpMetrics("test")
    with pytest.raises(asyncio.CancelledError):
        await frame_once(app, metrics=metrics)
    assert counted(metrics, "GET", "other", 499) == 1
    assert metrics.registry.get_sample_value("http_requests_in_flight") == 0


async def test_exception_after_the_headers_is_raised(logs: list[Any]) -> None:
    """The server must then close the connection."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await frame_once(app)
    assert [line["event"] for line in logs] == ["bug", "request"]


ORIGIN = "https://chat.example.org"


def test_cors_for_allowed_origins() -> None:
    """The preflight needs no key; pages may read responses and errors."""
    app = bare_app(keys=["k"], allowed_origins=f"{ORIGIN}/")
    app.add_api_route("/v1/chat", lambda: {}, methods=["POST"])
    client = TestClient(app, base_url="http://localhost")
    preflight = client.options(
        "/v1/chat",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-allow-private-network"] == "true"
    for headers, status in (({"Authorization": "Bearer k"}, 200), ({}, 401)):
        answer = client.post("/v1/chat", headers={"Origin": ORIGIN, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_no_cors_headers_for_other_origins() -> None:
    for app in (bare_app(), bare_app(allowed_origins=ORIGIN)):
        app.add_api_route("/v1/chat", lambda: {}, methods=["POST"])
        client = TestClient(app, base_url="http://localhost")
        for answer in (
            client.post("/v1/chat", headers={"Origin": "https://evil.example"}),
            client.options(
                "/v1/chat", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
            ),
        ):
            assert answer.status_code in (400, 403)
            assert "access-control-allow-origin" not in answer.headers
