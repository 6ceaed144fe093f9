"""The application behind a real server: official clients, streams, disconnects."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import httpx2
import openai
import pytest
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from kit import errors
from kit.errors import ApiError
from kit.web.metrics import HttpMetrics
from tests.kit.served import bare_app, serve

WITHIN_S = 20


class Ended:
    """Pass requests on, and report when one has ended in any way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                self.ended.set()


class Site:
    """An application that raises errors on request, streams by hand, and reads bodies in three ways."""

    def __init__(self) -> None:
        self.metrics = HttpMetrics("test")
        self.raises: Exception = ApiError("unset")
        self.next_chunk = threading.Event()
        app: FastAPI = bare_app(metrics=self.metrics)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        app.add_api_route("/stream", self._stream)
        app.add_api_route("/endless", self._endless)
        app.add_api_route("/cut", self._cut)
        app.add_api_route("/body/raw", self._raw, methods=["POST"])
        app.add_api_route("/body/model", self._model, methods=["POST"])
        self.app = Ended(app)

    async def _chat(self) -> None:
        raise self.raises

    async def _unfinished(self) -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def _endless(self) -> StreamingResponse:
        return StreamingResponse(self._unfinished())

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield b"one"
        # Blocks the loop on purpose: were anything buffered on the way, "one" could not have left by now.
        assert self.next_chunk.wait(WITHIN_S)
        yield b"two"

    async def _stream(self) -> StreamingResponse:
        return StreamingResponse(self._chunks())

    async def _broken(self) -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    async def _cut(self) -> StreamingResponse:
        return StreamingResponse(self._broken())

    async def _raw(self, request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    class Body(BaseModel):
        text: str

    async def _model(self, body: Body) -> Body:
        return body


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Site, str]]:
    site = Site()
    with structlog.testing.capture_logs(), serve(site.app) as (host, port):
        yield site, f"http://{host}:{port}"


CLASSES: list[tuple[Exception, type[openai.APIStatusError], str | None]] = [
    (errors.InvalidRequest("m", param="n"), openai.BadRequestError, None),
    (errors.InvalidApiKey("m"), openai.AuthenticationError, "invalid_api_key"),
    (errors.Forbidden("m"), openai.PermissionDeniedError, None),
    (errors.NotFound("m"), openai.NotFoundError, "not_found"),
    (errors.ModelNotFound("m", ["qwen"]), openai.NotFoundError, "model_not_found"),
    (ApiError("m", status=409), openai.ConflictError, None),
    (errors.PayloadTooLarge("m"), openai.APIStatusError, "request_too_large"),
    (ApiError("m", status=422), openai.UnprocessableEntityError, None),
    (errors.Busy("m"), openai.RateLimitError, "busy"),
    (ApiError("m"), openai.InternalServerError, None),
    (errors.BadGateway("m"), openai.InternalServerError, "bad_gateway"),
    (errors.NoHealthyBackend("m"), openai.InternalServerError, "no_healthy_backend"),
    (errors.ModelLoading("m"), openai.InternalServerError, "model_loading"),
    (errors.UpstreamTimeout("m"), openai.InternalServerError, "upstream_timeout"),
    (ZeroDivisionError("a bug"), openai.InternalServerError, None),
]


@pytest.mark.parametrize(("error", "class_", "code"), CLASSES, ids=lambda value: getattr(value, "__name__", None))
def test_official_client_maps_each_error(
    served: tuple[Site, str], error: Exception, class_: type[openai.APIStatusError], code: str | None
) -> None:
    """Class, message, code and request id."""
    site, url = served
    site.raises = error
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(model="m", messages=[])
    raised = caught.value
    assert type(raised) is class_
    assert raised.code == code
    assert raised.request_id
    assert isinstance(raised.body, dict)
    if isinstance(error, ApiError):
        assert raised.status_code == error.status
        assert raised.body["message"] == error.message
        assert raised.param == error.param
        assert raised.type == error.type


@pytest.mark.parametrize(
    ("error", "again"), [(errors.Busy("m", retry_after=7), True), (errors.InvalidRequest("m"), False)]
)
def test_official_client_retries_429_after_retry_after(served: tuple[Site, str], error: Exception, again: bool) -> None:
    """It does not retry a 400."""
    site, url = served
    site.raises = error
    asked: list[dict[str, str]] = []
    http = httpx2.Client(event_hooks={"request": [lambda request: asked.append(dict(request.headers))]})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=1, http_client=http) as client:
        waits: list[str] = []
        client._sleep_for_retry = lambda **kwargs: waits.append(kwargs["response"].headers["retry-after"])  # type: ignore[method-assign]  # the wait, not the client's decision, is replaced
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model="m", messages=[])
    assert len(asked) == (2 if again else 1)
    assert waits == (["7"] if again else [])


def test_stream_is_not_buffered(served: tuple[Site, str]) -> None:
    """The client has the first chunk before the second exists."""
    site, url = served
    with httpx2.stream("GET", f"{url}/stream", timeout=WITHIN_S) as response:
        pieces = response.iter_raw()
        assert next(pieces) == b"one"
        site.next_chunk.set()
        assert next(pieces) == b"two"


def test_exception_during_a_stream_closes_the_connection(served: tuple[Site, str]) -> None:
    """The client sees a truncated response."""
    _, url = served
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"{url}/cut")


@pytest.mark.parametrize("way", ["raw", "model"])
def test_disconnect_during_upload_counts_as_499(served: tuple[Site, str], way: str) -> None:
    site, url = served
    address = httpx2.URL(url)
    site.app.ended.clear()
    with socket.create_connection((address.host, address.port)) as peer:
        peer.sendall(
            f"POST /body/{way} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            'Content-Length: 100\r\n\r\n{"te'.encode()
        )
    assert site.app.ended.wait(WITHIN_S)
    labels = {"method": "POST", "route": f"/body/{way}", "status": "499"}
    assert site.metrics.registry.get_sample_value("http_requests_total", labels) == 1
    assert site.metrics.registry.get_sample_value("http_requests_in_flight") == 0


def test_disconnect_during_a_stream_counts_as_499(served: tuple[Site, str]) -> None:
    site, url = served
    site.app.ended.clear()
    with httpx2.stream("GET", f"{url}/endless", timeout=WITHIN_S) as response:
        assert response.status_code == 200
        assert next(response.iter_raw()) == b"one"
    assert site.app.ended.wait(WITHIN_S)
    counts = {
        status: site.metrics.registry.get_sample_value(
            "http_requests_total", {"method": "GET", "route": "/endless", "status": status}
        )
        for status in ("200", "499")
    }
    assert counts == {"200": None, "499": 1}


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/metrics", "/stream"])
def test_head_is_get_without_its_body(served: tuple[Site, str], path: str) -> None:
    """On every route that has GET (RFC 9110, 9.3.2); a stream is not produced. The connection is kept."""
    site, url = served
    site.next_chunk.set()
    with httpx2.Client(base_url=url, timeout=WITHIN_S) as client:
        head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert get.content
    varying = {"content-length", "transfer-encoding", "date", "x-request-id"}
    assert {name: head.headers[name] for name in head.headers if name not in varying} == {
        name: get.headers[name] for name in get.headers if name not in varying
    }
    if path != "/metrics":  # whose size changes
        assert head.headers.get("content-length") == get.headers.get("content-length")


def test_head_is_counted_as_head(served: tuple[Site, str]) -> None:
    site, url = served
    httpx2.head(f"{url}/docs")
    labels = {"method": "HEAD", "route": "/docs", "status": "200"}
    assert site.metrics.registry.get_sample_value("http_requests_total", labels)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("HEAD", "/body/raw", 405, {"POST"}),
        ("HEAD", "/nothing", 404, set()),
        ("POST", "/docs", 405, {"GET", "HEAD"}),
        ("DELETE", "/body/raw", 405, {"POST"}),
    ],
)
def test_methods_that_a_route_lacks(
    served: tuple[Site, str], method: str, path: str, status: int, allow: set[str]
) -> None:
    """`Allow` has HEAD wherever it has GET."""
    answer = httpx2.request(method, served[1] + path)
    assert answer.status_code == status
    assert {name for name in answer.headers.get("allow", "").split(", ") if name} == allow
    assert bool(answer.content) == (method != "HEAD")
