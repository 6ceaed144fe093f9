"""Factory of every program's FastAPI application: error envelope, middleware, metrics, shared settings."""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import NoDecode
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Lifespan

from kit.config.settings import Settings
from kit.errors import ApiError, install_error_handlers
from kit.logs import LogFormat
from kit.version import __version__
from kit.web.guard import AdminGuard, BrowserGuard, KeyRing
from kit.web.metrics import HttpMetrics
from kit.web.middleware import HeadAsGet, RequestFrame
from kit.web.trusted_hosts import ROOT, TrustedHosts, is_network, networks_of

# Response headers that pages of other origins may read (CORS).
EXPOSED_HEADERS = [
    "x-request-id",
    "x-served-by",
    "x-served-model",
    "x-queue-ms",
    "x-attempts",
    "retry-after",
    "x-tools",
]

# A request with one of these was forwarded by a proxy.
PROXY_HEADERS = ("x-forwarded-for", "forwarded", "x-real-ip", "via")

# FastAPI's own page loads scripts from a CDN: blank without internet, and a leak to a third party with it.
DOCS_PAGE = Path(__file__).with_name("api_docs.html")
DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class HttpSettings(Settings):
    """Settings of every HTTP server of the cluster."""

    host: str = Field("127.0.0.1", description="the address to listen on, 0.0.0.0 for all")
    port: int = Field(ge=1, le=65535, description="the port to listen on, 1 to 65535")
    log_level: str = Field(
        "INFO", pattern="(?i)^(debug|info|warning|error)$", description="debug, info, warning, error"
    )
    log_format: LogFormat = Field("auto", description="auto (console on a terminal, else json), json or console")
    allowed_hosts: CommaSeparated = Field(
        (), description="comma-separated host names to accept, beyond IP addresses and names without a dot"
    )
    allowed_origins: CommaSeparated = Field(
        (), description="comma-separated web origins (https://chat.example.org) whose pages may call this server"
    )
    admin_token: SecretStr | None = Field(
        None, description="the bearer token for routes that change something, required outside ADMIN_TRUSTED_NETWORKS"
    )
    admin_trusted_networks: CommaSeparated = Field(
        ("127.0.0.0/8", "::1/128"),
        description="comma-separated sources whose changes need no token: networks, docker-host (clients of a port "
        "that this container publishes on its host's loopback), host names such as edge",
    )

    @field_validator("admin_trusted_networks", "status_trusted_networks", check_fields=False)
    @classmethod
    def _places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in filter(is_network, value):
            ipaddress.ip_network(network)
        return value

    def browser_guard(self) -> BrowserGuard:
        """Return the Host and Origin check of these settings."""
        return BrowserGuard(self.allowed_hosts, self.allowed_origins)

    def shown_as(self, program: str) -> str:
        """Return this process's name in logs and messages; `program` is the program's name."""
        return program

    def trusted_places(self) -> tuple[str, ...]:
        """Return the entries of ADMIN_TRUSTED_NETWORKS that apply."""
        return self.admin_trusted_networks


def create_app(
    *,
    title: str,
    settings: HttpSettings,
    metrics: HttpMetrics,
    keys: KeyRing,
    status: Any = None,
    lifespan: Lifespan[FastAPI] | None = None,
    exposed_headers: Sequence[str] = (),
) -> FastAPI:
    """Create the FastAPI application; the caller adds its routes.

    `keys` guards /v1, `status`, a dependency, /metrics. `exposed_headers`: more response headers that pages of
    ALLOWED_ORIGINS may read.
    """
    app = FastAPI(
        title=title, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    install_error_handlers(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestFrame, metrics=metrics, browser=settings.browser_guard(), keys=keys)
    if settings.allowed_origins:
        # Outermost: a preflight carries no key, and a page may read errors only if they carry the headers too.
        app.add_middleware(CORSMiddleware, **_cors(settings, exposed_headers))
    page = DOCS_PAGE.read_text(encoding="utf-8")

    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})

    guards = [] if status is None else [status]
    app.add_api_route("/metrics", metrics.page, include_in_schema=False, dependencies=guards)
    app.add_api_route("/docs", docs, include_in_schema=False)
    return app


def readable_by_pages(app: ASGIApp, settings: HttpSettings) -> ASGIApp:
    """Wrap `app` in CORS for ALLOWED_ORIGINS; for ASGI applications not made by `create_app`."""
    return CORSMiddleware(app, **_cors(settings)) if settings.allowed_origins else app


def _cors(settings: HttpSettings, exposed_headers: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "allow_origins": [origin.lower().rstrip("/") for origin in settings.allowed_origins],
        "allow_methods": ["*"],
        "allow_headers": ["*"],
        "expose_headers": [*EXPOSED_HEADERS, *exposed_headers],
        # An admin who allows a public origin means it to reach this private network.
        "allow_private_network": True,
    }


def admin_only(settings: HttpSettings, *, root: Path = ROOT) -> Any:
    """Return a FastAPI dependency for routes that change something, for `dependencies=[...]`.

    Resolves `docker-host` once, here, from the files below `root`.
    """
    refusal = _admin_check(settings, settings.trusted_places(), root)

    async def check(request: Request) -> None:
        error = await refusal(request)
        if error is not None:
            raise error

    return Depends(check)


def keys_unless_trusted(settings: HttpSettings, keys: KeyRing, places: Sequence[str], *, root: Path = ROOT) -> Any:
    """Return a FastAPI dependency for routes that show the state of the cluster.

    With `keys` set, they require a key or the admin token, except from ADMIN_TRUSTED_NETWORKS and `places`, which are
    given in the same way. A network that has every address opens them to everybody, also through a proxy.
    """
    refusal = _admin_check(settings, (*settings.trusted_places(), *places), root)
    is_open = not keys or any(is_network(place) and place.endswith("/0") for place in places)

    async def check(request: Request) -> None:
        if is_open:
            return
        error = keys.refusal(request.headers.get("authorization"), request.headers.get("x-api-key"))
        if error is not None and await refusal(request) is not None:
            raise error

    return Depends(check)


def _admin_check(
    settings: HttpSettings, places: Sequence[str], root: Path
) -> Callable[[Request], Awaitable[ApiError | None]]:
    token = settings.admin_token.get_secret_value() if settings.admin_token else None
    guard, hosts = AdminGuard(token, networks_of(places, root)), TrustedHosts(places)

    async def refusal(request: Request) -> ApiError | None:
        # Behind a reverse proxy on this machine every client has a loopback address: forwarded requests need the token.
        forwarded = any(name in request.headers for name in PROXY_HEADERS)
        client = request.client.host if request.client and not forwarded else None
        if client is not None and await hosts.include(client):
            return None
        return guard.refusal(client, request.headers.get("authorization"))

    return refusal
