"""POST /explain: the routing decision for a request, without sending it."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from gateway.backends.backend_table import Backends
from gateway.bodies.body import JsonBody
from gateway.bodies.memory_budget import MemoryBudget
from gateway.endpoints import ENDPOINTS, Endpoint
from gateway.http1.headers import session_of
from gateway.routing import Router
from gateway.routing.explanation import explain
from kit.config.catalogue import Catalogue
from kit.errors import NotFound
from kit.web.body import MIB, limited
from kit.web.guard import KeyRing

# The route with the model in its path is routed like /v1/audio/transcriptions.
_BY_PATH: dict[str, Endpoint] = {one.path: one for one in ENDPOINTS if one.body_kind != "audio"}
_EXAMPLE = {"model": "cluster", "messages": [{"role": "user", "content": "What is AI?"}], "stream": True}
_BODY = {"type": "object", "properties": {"model": {"type": "string"}}, "example": _EXAMPLE}


def create_explain_route(
    router: Router, backends: Backends, catalogue: Catalogue, keys: KeyRing, memory: MemoryBudget, max_body_mb: int
) -> APIRouter:
    """Create the route. It requires the same keys as /v1, because its body contains prompts."""
    routes = APIRouter()

    @routes.post(
        "/explain",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}},
    )
    async def explain_request(
        request: Request,
        path: Annotated[str, Query(description="the route for which the body is meant")] = "/v1/chat/completions",
    ) -> Any:
        """Explain which backend would get a request with this body, and why.

        Nothing is sent. The body is that of a request to `path`; for a form, its fields as JSON. If the request would
        be refused, the response has the same error and the candidates. `expected_s` is the expected time to the first
        token, null if nothing has been measured.
        """
        refusal = keys.refusal(request.headers.get("authorization"), request.headers.get("x-api-key"))
        if refusal is not None:
            raise refusal
        endpoint = _BY_PATH.get(path)
        if endpoint is None:
            raise NotFound(f"{path!r} is not a relayed route. Relayed routes: {', '.join(_BY_PATH)}.")
        allocation = memory.allocation(request.client.host if request.client else None)
        body = JsonBody(endpoint, max_body_mb * MIB, session_of(request.headers.raw), allocation)
        try:
            async for piece in limited(request, limit_mb=max_body_mb, setting="MAX_BODY_MB").stream():
                body.add(piece)
            report, error = explain(router, body.routing_request(), backends, catalogue, time.monotonic())
        finally:
            body.close()
        if error is None:
            return report
        return JSONResponse(report | error.body(), status_code=error.status, headers=error.headers)

    return routes
