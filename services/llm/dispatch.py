"""The way of a request into the service: our own few paths to our frame, everything else straight to the engine.

A loaded engine's requests pass nothing of ours but one function call that checks who asks: no router, no middleware.
"""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from kit.errors import ApiError, respond
from kit.web.guard import BrowserGuard, KeyRing
from kit.web.metrics import HttpMetrics
from kit.web.middleware import RequestFrame

OWN_PATHS = frozenset({"/health", "/gpu-stats", "/metrics", "/docs", "/redoc", "/openapi.json", "/v1/models"})
OWN_PREFIX = "/v1/models/"


class Dispatcher:
    """The service's application. Keys guard every path of the engine, not only those under /v1."""

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
        """`readable` lets the pages that may call this service read what it is given; `interrupt` ends all answers."""
        self.interrupt = interrupt
        self._frame = frame
        self._backend = backend
        self._browser = browser
        self._keys = keys
        everyone = BrowserGuard(["*"], ["*"])
        self._refusing = readable(
            RequestFrame(self._refuse, metrics=metrics, browser=everyone, keys=KeyRing([], variable="API_KEYS"))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""
        if scope["type"] != "http" or _is_own(scope["path"]) or _is_preflight(scope):
            await self._frame(scope, receive, send)
            return
        found = self._find(scope)
        # A refusal is logged, counted and given a request id like every answer of ours.
        app = self._refusing if isinstance(found, ApiError) else found
        await app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope)
        await (respond(found) if isinstance(found, ApiError) else found)(scope, receive, send)

    def _find(self, scope: Scope) -> ASGIApp | ApiError:
        host = origin = authorization = api_key = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"x-api-key":
                api_key = value.decode("latin-1")
        refusal = self._browser.refusal(host, origin) or self._keys.refusal(authorization, api_key)
        return refusal or self._backend()


def _is_own(path: str) -> bool:
    return path in OWN_PATHS or path.startswith(OWN_PREFIX)


def _is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if a page may ask. It sends no key with that, and the frame knows which pages may."""
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )
