"""The gateway's own routes: what it knows of the cluster, and the two that change something."""

import time
from pathlib import Path
from typing import Any

import httpx2
from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from gateway.api import views
from gateway.api.single_flight import SingleFlight
from gateway.backends.backend import Backend
from gateway.backends.backend_table import Backends
from gateway.endpoints import ENDPOINTS, Endpoint, Takes
from kit.config.catalogue import Catalogue
from kit.errors import ModelNotFound, NotFound

DASHBOARD = Path(__file__).parent / "dashboard" / "index.html"


def create_routes(backends: Backends, catalogue: Catalogue, client: httpx2.AsyncClient, admin: Any) -> APIRouter:
    """Make the routes. `admin` is the dependency that guards those which change something."""
    routes = APIRouter()
    started = time.monotonic()
    dashboard = DASHBOARD.read_text(encoding="utf-8")
    gpus = SingleFlight(lambda: views.gpu_stats(backends, client))

    @routes.get("/", include_in_schema=False)
    async def home() -> dict[str, Any]:
        """Where to go from here."""
        return {
            "service": "gateway of a GPU inference cluster, OpenAI-compatible",
            "try": ["/v1/models", "/services", "/gpu-stats", "/dashboard", "/docs", "/metrics", "/health"],
            "chat": "POST /v1/chat/completions",
        }

    @routes.get("/health")
    async def health() -> dict[str, Any]:
        """200 as long as the gateway runs; how the services are, GET /services tells."""
        return views.health(backends, started)

    @routes.get("/services")
    async def services() -> dict[str, Any]:
        """Every backend: what it serves, its state, its load, its last error."""
        return views.services(backends)

    @routes.post("/services/{name}/drain", dependencies=[admin])
    async def drain(name: str) -> Any:
        """Send this backend nothing more; what is in flight ends by itself."""
        backend = _find(name)
        backend.set_draining(True)
        return views.describe(backend)

    @routes.post("/services/{name}/resume", dependencies=[admin])
    async def resume(name: str) -> Any:
        """Put a drained backend back into rotation."""
        backend = _find(name)
        backend.set_draining(False)
        return views.describe(backend)

    @routes.get("/gpu-stats")
    async def gpu_stats() -> dict[str, Any]:
        """The GPUs of every service, and their sums. A service that does not answer is reported as such."""
        return await gpus.get()

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Every name that a request may use as its model."""
        return {"object": "list", "data": views.models(backends, catalogue)}

    @routes.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """One model, by any of its names."""
        listed = {entry["id"]: entry for entry in views.models(backends, catalogue)}
        if model not in listed:
            raise ModelNotFound(model, listed)
        return listed[model]

    @routes.get("/dashboard", include_in_schema=False)
    async def show_dashboard() -> HTMLResponse:
        """A page that shows services and GPUs, and needs nothing from anywhere else."""
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


# How /docs shows what each kind of route takes: the media type and a schema.
_MODEL = {"type": "string"}
_SOUND = {"type": "string", "format": "binary"}
_TAKES: dict[Takes, tuple[str, dict[str, Any]]] = {
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
    """Show a relayed route in /docs. `gateway.relay.client_protocol` answers it before the application sees it."""
    media, schema = _TAKES[endpoint.takes]
    if endpoint.example is not None:
        schema = {**schema, "example": endpoint.example}

    async def relayed() -> None:
        raise NotFound(f"Write the path as {endpoint.path}, and serve the gateway with its own protocol class.")

    routes.add_api_route(
        endpoint.path,
        relayed,
        methods=["POST"],
        summary=endpoint.summary,
        description=f"Relayed to the best backend with a model of kind {' or '.join(endpoint.kinds)}.",
        operation_id=endpoint.path.strip("/").replace("/", "_").translate(_NO_BRACES),
        openapi_extra={"requestBody": {"content": {media: {"schema": schema}}}}
        | ({"parameters": [_MODEL_IN_PATH]} if endpoint.takes == "audio" else {}),
        tags=["relayed"],
    )
