"""The gateway's own routes: views of the cluster, drain and resume, and the documentation of relayed routes."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2
from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from gateway.api import views
from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.endpoints import ENDPOINTS, BodyKind, Endpoint
from kit.config.catalogue import Catalogue
from kit.errors import ModelNotFound, NotFound

DASHBOARD = Path(__file__).parent / "dashboard" / "index.html"


def create_routes(
    backends: Backends, catalogue: Catalogue, client: httpx2.AsyncClient, *, admin: Any, status: Any
) -> APIRouter:
    """Create the routes. Dependencies: `admin` for those with side effects, `status` for those that show the state."""
    routes = APIRouter()
    started = time.monotonic()
    dashboard = DASHBOARD.read_text(encoding="utf-8")
    gpu_query: asyncio.Task[dict[str, Any]] | None = None

    @routes.get("/", include_in_schema=False)
    async def home() -> dict[str, Any]:
        """List the main routes."""
        return {
            "service": "gateway of a GPU inference cluster, OpenAI-compatible",
            "try": ["/v1/models", "/services", "/gpu-stats", "/dashboard", "/docs", "/metrics", "/health"],
            "chat": "POST /v1/chat/completions",
        }

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        """Return 200 while the gateway runs. See GET /services for the services."""
        return views.health(backends, started)

    @routes.get("/services", dependencies=[status])
    async def services() -> dict[str, Any]:
        """List all backends with their models, state, load and last error."""
        return views.services(backends)

    @routes.post("/services/{name}/drain", dependencies=[admin])
    async def drain(name: str) -> Any:
        """Take a backend out of rotation; requests in flight finish."""
        backend = _find(name)
        backend.set_draining(True)
        return views.describe(backend)

    @routes.post("/services/{name}/resume", dependencies=[admin])
    async def resume(name: str) -> Any:
        """Put a drained backend back into rotation."""
        backend = _find(name)
        backend.set_draining(False)
        return views.describe(backend)

    @routes.get("/gpu-stats", dependencies=[status])
    async def gpu_stats() -> dict[str, Any]:
        """List the GPUs of all services, and their sums. A service that does not respond is listed as unavailable."""
        # Concurrent callers share one query, which a cancelled caller does not cancel.
        nonlocal gpu_query
        if gpu_query is None or gpu_query.done():
            gpu_query = asyncio.create_task(views.gpu_stats(backends, client))
        return await asyncio.shield(gpu_query)

    @routes.get("/v1/models")
    async def models(aliases: bool = False) -> dict[str, Any]:
        """List each model once; with `aliases=true` also under the other names that requests may use."""
        return {"object": "list", "data": views.models(backends, catalogue, aliases=aliases)}

    @routes.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """Return one model, by any of its names."""
        listed = {entry["id"]: entry for entry in views.models(backends, catalogue, aliases=True)}
        if model not in listed:
            raise ModelNotFound(model, (name for name, entry in listed.items() if "root" not in entry))
        return listed[model]

    @routes.get("/dashboard", include_in_schema=False)
    async def show_dashboard() -> HTMLResponse:
        """Return a self-contained page with services and GPUs."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(dashboard, headers={"content-security-policy": policy})

    def _find(name: str) -> Backend:
        backend = backends.get(name)
        if backend is None:
            known = ", ".join(one.name for one in backends) or "none"
            raise NotFound(f"There is no service {name!r}. Services: {known}.")
        return backend

    for endpoint in ENDPOINTS:
        _document(routes, endpoint)
    return routes


# Media type and schema of request bodies, for /docs.
_MODEL = {"type": "string"}
_SOUND = {"type": "string", "format": "binary"}
_BODIES: dict[BodyKind, tuple[str, dict[str, Any]]] = {
    "json": ("application/json", {"type": "object", "properties": {"model": _MODEL}}),
    "form": (
        "multipart/form-data",
        {"type": "object", "properties": {"file": _SOUND, "model": _MODEL}, "required": ["file"]},
    ),
    "audio": ("audio/*", _SOUND),
}
_MODEL_IN_PATH = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_NO_BRACES = str.maketrans("", "", "{}")


def _document(routes: APIRouter, endpoint: Endpoint) -> None:
    """Add a relayed route to /docs. `gateway.relay.client_protocol` handles it before the application does."""
    media, schema = _BODIES[endpoint.body_kind]
    if endpoint.example is not None:
        schema = {**schema, "example": endpoint.example}

    async def relayed() -> None:
        raise NotFound(f"Write the path exactly as {endpoint.path}, and run the gateway with GatewayProtocol.")

    routes.add_api_route(
        endpoint.path,
        relayed,
        methods=["POST"],
        summary=endpoint.summary,
        description=f"Relayed to the best backend with a model of kind {' or '.join(endpoint.kinds)}.",
        operation_id=endpoint.path.strip("/").replace("/", "_").translate(_NO_BRACES),
        openapi_extra={"requestBody": {"content": {media: {"schema": schema}}}}
        | ({"parameters": [_MODEL_IN_PATH]} if endpoint.body_kind == "audio" else {}),
        tags=["relayed"],
    )
