"""The registry's application, put together from its settings."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from kit.app import create_app
from kit.errors import ApiError, InvalidRequest, respond
from kit.guard import KeyRing
from kit.hub_names import BadName
from kit.metrics import HttpMetrics
from registry.hub_api import HubApi
from registry.library import Library
from registry.open_store import open_store
from registry.routes import ModelRoutes
from registry.settings import RegistrySettings
from registry.store import StoreError


def create_registry(settings: RegistrySettings) -> FastAPI:
    """Make the application. Raises SettingsError when the store or the catalogue cannot be used."""
    library = Library(open_store(settings), settings.load_catalogue())
    keys = settings.key_ring()

    @contextlib.asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            library.store.close()

    app = create_app(title="Registry", settings=settings, metrics=HttpMetrics("registry"), keys=keys, lifespan=running)
    app.add_exception_handler(BadName, _answer_bad_name)
    app.add_exception_handler(StoreError, _answer_store_error)
    models = ModelRoutes(library)
    readers = [_readers_only(keys)]
    app.add_api_route("/health", models.health, methods=["GET"])
    app.include_router(models.router(), dependencies=readers)
    app.include_router(HubApi(library, internal_hosts=settings.s3_internal_hosts).router(), dependencies=readers)
    return app


def _readers_only(keys: KeyRing) -> Any:
    """A dependency for routes that read: one of API_KEYS, if there are any."""

    def check(request: Request) -> None:
        refusal = keys.refusal(request.headers.get("authorization"))
        if refusal is not None:
            raise refusal

    return Depends(check)


async def _answer_bad_name(_: Request, error: Exception) -> JSONResponse:
    return respond(InvalidRequest(str(error)))


async def _answer_store_error(_: Request, error: Exception) -> JSONResponse:
    answer = ApiError(
        str(error), status=503, type="service_unavailable", code="store_failed", headers={"Retry-After": "5"}
    )
    return respond(answer)
