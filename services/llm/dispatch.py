"""Dispatch of requests: our own paths to the common application, everything else directly to the engine.

Requests to the engine pass only the access checks, no router and no middleware.
"""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from kit.errors import ApiError, respond
from kit.web.body import encoding_refusal
from kit.web.guard import BrowserGuard, KeyRing
from kit.web.metrics import HttpMetrics
from kit.web.middleware import RequestFrame, strip_slash

OWN_PATHS = frozenset({"/health", "/gpu-stats", "/metrics", "/docs", "/redoc", "/openapi.json", "/v1/models"})
OWN_PREFIX = "/v1/models/"


class Dispatcher:
    """The service's ASGI application. API keys guard every path of the engine, not only /v1."""

    def __init__(
        self,
        frame: ASGIApp,
        backend: Callable[[], ASGIApp | ApiError],
        *,
        interrupt: Callable[[], Awaitable[None]],
        browser: BrowserGuard,
        keys: KeyRing,
        metrics: HttpMetrics,
        readable: Callable[[ASGIApp], ASGIApp],
    ) -> None:
        """`readable` adds CORS headers to an application; `interrupt` ends all responses in progress with an error."""
        self.interrupt = interrupt
        self._frame = frame
        self._backend = backend
        self._browser = browser
        self._keys = keys
        unguarded = BrowserGuard(["*"], ["*"])
        self._rejecting = readable(
            RequestFrame(self._reject, metrics=metrics, browser=unguarded, keys=KeyRing([], variable="API_KEYS"))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] == "http":
            strip_slash(scope)
        if scope["type"] != "http" or _is_own(scope["path"]) or _is_preflight(scope):
            await self._frame(scope, receive, send)
            return
        selected = self._select_app(scope)
        # Through our middleware: log, metrics, request id.
        app = self._rejecting if isinstance(selected, ApiError) else selected
        await app(scope, receive, send)

    async def _reject(self, scope: Scope, receive: Receive, send: Send) -> None:
        selected = self._select_app(scope)
        await (respond(selected) if isinstance(selected, ApiError) else selected)(scope, receive, send)

    def _select_app(self, scope: Scope) -> ASGIApp | ApiError:
        host = origin = authorization = api_key = encoding = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"x-api-key":
                api_key = value.decode("latin-1")
            elif name == b"content-encoding":
                encoding = value.decode("latin-1")
        refusal = self._browser.refusal(host, origin) or self._keys.refusal(authorization, api_key)
        return refusal or encoding_refusal(encoding) or self._backend()


def _is_own(path: str) -> bool:
    return path in OWN_PATHS or path.startswith(OWN_PREFIX)


def _is_preflight(scope: Scope) -> bool:
    """Return whether this is a CORS preflight. It carries no key, and the common application answers it."""
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )
