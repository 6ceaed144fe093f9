"""ASGI middleware around every request; it never buffers.

In order: a request id, the Host and Origin check, the key check on /v1, the check for an encoded body, the access log
line, the metrics. A path that ends with a slash is served as if without.
"""

import random
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kit.errors import ApiError, respond
from kit.web.body import encoding_refusal
from kit.web.guard import BrowserGuard, KeyRing
from kit.web.metrics import HttpMetrics

log = structlog.get_logger("access")

# Polled every few seconds by machines: logged only on failure. 503 is the normal status while a model loads. Other
# routes mark a poll by `request.state.quiet = True`.
QUIET_PATHS = frozenset({"/health", "/metrics", "/gpu-stats"})
QUIET_STATUSES = frozenset({*range(400), 503})
MAX_REQUEST_ID = 128
# Metric labels must stay bounded: RFC 9110's methods and PATCH.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
METHOD_NOT_ALLOWED = 405
CLIENT_LEFT = 499  # nginx's code for a client that disconnected before its response was complete


def request_id_from(value: str | None) -> str:
    """Return the caller's id if it is short, printable ASCII (it goes into logs and headers), else a new one."""
    if value and len(value) <= MAX_REQUEST_ID and value.isascii() and value.isprintable():
        return value
    # Not a secret, and os.urandom is slow. Each process has its own sequence, after a fork too.
    return "%016x" % random.getrandbits(64)  # noqa: UP031  # the fastest by far


class HeadAsGet:
    """HEAD on every route that has GET and no HEAD of its own: the same headers, no body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope: after a 405 for HEAD, ask the application for GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # The server must go on seeing HEAD in its own scope, and routing writes into the one that it gets.
        as_get = {**scope, "method": "GET"}
        supported = True
        ended = False

        async def send_unless_405(message: Message) -> None:
            nonlocal supported
            if message["type"] == "http.response.start":
                supported = message["status"] != METHOD_NOT_ALLOWED
            if supported:
                await send(message)

        async def send_without_body(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.body":
                # The first piece ends it: the rest of a stream would be made for nothing.
                message = {"type": "http.response.body", "body": b""}
            if not ended:
                ended = message["type"] == "http.response.body"
                await send(message)

        await self._app(scope, receive, send_unless_405)
        if not supported:
            await self._app(as_get, receive, send_without_body)


def strip_slash(scope: Scope) -> None:
    """Remove slashes at the end of the path.

    Starlette would redirect, to `http://` behind a proxy that ends TLS: clients drop their key there, or leave TLS.
    """
    path = scope["path"]
    if path.endswith("/") and path != "/":
        scope["path"] = path.rstrip("/") or "/"


class RequestFrame:
    """Request id, access checks, access log and metrics around an ASGI application. `keys` guards only /v1."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics, browser: BrowserGuard, keys: KeyRing) -> None:
        self._app = app
        self._metrics = metrics
        self._browser = browser
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope; other than HTTP passes through unchanged."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        strip_slash(scope)
        headers = Headers(scope=scope)
        request_id = request_id_from(headers.get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(scope, send, request_id, self._metrics)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                refusal = self._refusal(scope, headers)
                app = self._app if refusal is None else respond(refusal)
                await app(scope, receive, exchange.send)
            except ClientDisconnect:
                pass  # recorded below as 499
            except Exception as error:
                log.error("bug", method=scope["method"], path=scope["path"], exc_info=error)
                if exchange.status:
                    exchange.is_complete = True  # as far as it goes: the client has not left
                    raise  # the server closes the connection, so that the client sees a truncated response
                bug = ApiError(f"Internal error. The server's log has its cause under request id {request_id}.")
                await respond(bug)(scope, receive, exchange.send)
            finally:
                exchange.finish()

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        refusal = self._browser.refusal(headers.get("host"), headers.get("origin"))
        if refusal is None and scope["path"].startswith("/v1/"):
            refusal = self._keys.refusal(headers.get("authorization"), headers.get("x-api-key"))
        return refusal or encoding_refusal(headers.get("content-encoding"))


class _Exchange:
    """Accounting of one request: status, durations, access log, metrics."""

    def __init__(self, scope: Scope, send: Send, request_id: str, metrics: HttpMetrics) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._metrics = metrics
        self._began = time.perf_counter()
        self.status = 0  # 0 until the response's headers are sent
        self.is_complete = False
        self._first_byte_s = 0.0
        metrics.in_flight.inc()

    async def send(self, message: Message) -> None:
        """Forward `message`; add the request id to the response's headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._first_byte_s = time.perf_counter() - self._began
            message.setdefault("headers", [])  # ASGI lets an application leave them out
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        else:
            self.is_complete = not message.get("more_body", False)
        await self._send(message)

    def finish(self) -> None:
        """Write the log line and the metrics; called exactly once."""
        route = _route(self._scope)
        status = self.status if self.is_complete else CLIENT_LEFT
        method = self._scope["method"]
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(self._first_byte_s or time.perf_counter() - self._began)
        if status in QUIET_STATUSES and (self._scope["path"] in QUIET_PATHS or self._scope["state"].get("quiet")):
            return
        client = self._scope.get("client")
        log.info(
            "request",
            method=method,
            path=self._scope["path"],
            status=status,
            ms=round((time.perf_counter() - self._began) * 1000, 1),
            client=client[0] if client else None,
        )


def _route(scope: Scope) -> str:
    """Return the matched route's template (`/models/{name}`), or `other`: metric labels must stay bounded."""
    # FastAPI stores the route with its `include_router` prefix here, without it under "route".
    included = scope.get("fastapi", {}).get("effective_route_context")
    return str(getattr(included or scope.get("route"), "path", "other"))
